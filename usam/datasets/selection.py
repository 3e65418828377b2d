"""Which videos and frames to read: limits that a seed makes random and repeatable; and no video in two splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from usam.errors import DatasetError

Item = TypeVar("Item", str, int)


@dataclass(frozen=True)
class Selection:
    """Limits on what is read.

    A larger limit with the same seed keeps what a smaller one chose, and what is chosen of one video does not depend on
    the others.

    Attributes:
        max_videos: videos to read, None for all.
        max_frames: frames per video that have truth, None for all.
        seed:       None takes the first ones (consecutive frames, as propagation wants); a number takes random ones.
    Raises: DatasetError for a limit below 1.
    """

    max_videos: int | None = None
    max_frames: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_videos", "max_frames"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise DatasetError(f"{name} of at least 1", str(limit), "leave it out to read everything")

    def videos(self, video_ids: Sequence[str]) -> list[str]:
        """The chosen videos, in the order they came."""
        return self._pick(video_ids, self.max_videos, "video")

    def frames(self, video_id: str, frame_indices: Sequence[int]) -> list[int]:
        """The chosen frames of a video, in the order they came."""
        return self._pick(frame_indices, self.max_frames, f"frame of {video_id}")

    def _pick(self, items: Sequence[Item], limit: int | None, what: str) -> list[Item]:
        if limit is None or limit >= len(items):
            return list(items)
        if self.seed is None:
            return list(items[:limit])
        drawn = sorted(
            range(len(items)),
            key=lambda i: sha256(f"{self.seed} {what} {items[i]}".encode(errors="surrogatepass")).digest(),
        )
        return [items[i] for i in sorted(drawn[:limit])]


@dataclass(frozen=True)
class Consecutive(Selection):
    """A selection whose seed picks videos only: of each, the first frames are read, as propagation wants them."""

    def frames(self, video_id: str, frame_indices: Sequence[int]) -> list[int]:
        """The first frames of a video."""
        return list(frame_indices[: self.max_frames])


EVERYTHING = Selection()


def refuse_shared(dataset: str, videos_by_split: Mapping[str, Collection[str]]) -> None:
    """Check that no video is in two splits: its frames would be trained and judged on at once.

    Raises: DatasetError that names the first such video and both splits.
    """
    splits = list(videos_by_split)
    for i, first in enumerate(splits):
        for second in splits[i + 1 :]:
            shared = sorted(set(videos_by_split[first]).intersection(videos_by_split[second]))
            if shared:
                got = f"{len(shared)} in {first} and in {second}, such as {shared[0]}"
                raise DatasetError(f"every video of {dataset} in one split", got, "take it out of one of them")
