"""A row of an output and what the truth says of it: the little that all formats of truth share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from pipeline.errors import MasksieveError


class TruthError(MasksieveError):
    """Truth that cannot be read, does not fit the output, or contradicts itself."""


class Fact(NamedTuple):
    """A predicted mask at the video's size; `counts` are COCO's, those of an empty mask where the object is absent."""

    frame_index: int
    object_id: int
    height: int
    width: int
    counts: bytes
    area_px: int


class Judged(NamedTuple):
    """What the truth says of a row.

    Args:
        iou: of the predicted mask with the true one, in [0, 1]; 1 if both are empty, 0 if one is. Of a verdict: 1 for
            right, 0 for wrong.
        weight: so many rows it stands for, above 0; the inverse of the probability that it was judged.
    """

    frame_index: int
    object_id: int
    iou: float
    weight: float = 1.0


class Source(Protocol):
    """Truth in some format.

    Attributes:
        kind: coco, davis, npz, iou, masks or verdicts.
        where: path, for messages.
    """

    kind: str
    where: str

    def names(self) -> Sequence[str]:
        """The videos that it speaks of: a video_id each, or the name of the video's file, with or without suffix."""
        ...

    def judge(self, name: str, facts: Iterable[Fact]) -> Iterator[Judged]:
        """Judge those rows of a video that it knows, in their order.

        Args:   facts: rows that the model looked at, by frame_index and object_id.
        Raises: TruthError, DatasetError for truth that is damaged or does not fit the rows.
        """
        ...


def said(video: str, frame_index: int, object_id: int) -> str:
    """A row, for messages."""
    return f"video {video[:24]}, frame {frame_index}, object {object_id}"
