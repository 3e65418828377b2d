"""What a decoding process is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.video.index import FrameIndex, count_at_rate

Decoded = tuple[int, float, NDArray[np.uint8] | None]


@dataclass(frozen=True, eq=False)
class Job:
    """What to decode, and into which ring.

    Args:
        is_prefix: whether there is something after `num_frames` that is damaged.
        start: the first frame that is delivered.
        indices: (n,) int64 frames to deliver, ascending, none before `start`; None delivers all from `start` on and
            checks their number.
        slots: of the ring.
    """

    path: Path
    decoder: str
    num_frames: int
    fps: float
    rotation: int
    mirrored: bool
    height: int
    width: int
    is_prefix: bool
    index: FrameIndex | None
    start: int
    indices: NDArray[np.int64] | None
    slots: int

    def wants(self, index: int) -> bool:
        """Whether a frame is to be delivered."""
        if self.indices is None:
            return index >= self.start
        at = int(np.searchsorted(self.indices, index))
        return at < self.indices.size and bool(self.indices[at] == index)

    def stretches(self) -> Iterator[tuple[int, int | None]]:
        """What to decode: (first, end) frame_index; end None means to the end of the video, whose count is checked."""
        known = count_at_rate(self.num_frames, self.fps) if self.index is None else self.index
        if self.indices is None:
            yield known.entry(self.start), self.num_frames if self.is_prefix else None
        else:
            yield from known.stretches(self.indices)
