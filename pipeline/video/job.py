"""What a decoding process is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.video.index import FrameIndex

Decoded = tuple[int, float, NDArray[np.uint8] | None]
SEEK_GAIN_FRAMES = 16  # a seek costs about as much as so many frames


@dataclass(frozen=True, eq=False)
class Job:
    """What to decode, and into which ring.

    Args:
        is_prefix: whether there is something after `num_frames` that is damaged.
        start: the first frame that is delivered.
        indices: frames to deliver, ascending; None delivers all from `start` on and checks their number.
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
    indices: tuple[int, ...] | None
    slots: int

    def wants(self, index: int) -> bool:
        """Whether a frame is to be delivered."""
        if self.indices is None:
            return index >= self.start
        at = int(np.searchsorted(self.indices, index))
        return at < len(self.indices) and self.indices[at] == index

    def stretches(self) -> Iterator[tuple[int, int | None]]:
        """What to decode: (first, end) frame_index; end None means to the end of the video, whose count is checked.

        A stretch begins at an entry of the index; a new one begins where an entry saves decoding.
        """
        if self.indices is None:
            yield self._entry(self.start), self.num_frames if self.is_prefix else None
            return
        if not self.indices:
            return
        begin, position = self._entry(self.indices[0]), self.indices[0] + 1
        for wanted in self.indices[1:]:
            entry = self._entry(wanted)
            if entry >= position + SEEK_GAIN_FRAMES:
                yield begin, position
                begin = entry
            position = wanted + 1
        yield begin, position

    def _entry(self, index: int) -> int:
        return 0 if self.index is None else self.index.entry(index)
