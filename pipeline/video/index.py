"""When each frame is shown, and from which frames decoding may begin without a difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

SEEK_GAIN_FRAMES = 16  # a seek costs about as much as so many frames


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """The frames of a video by frame_index.

    Args:
        ticks_n: (n,) int64 presentation times in units of time_base, ascending.
        time_base: seconds per tick.
        exact: whether the times are the container's; otherwise they are counted at the average rate.
        entries_n: (m,) int64 frames from which decoding may begin: keyframes that nothing after them reaches behind,
            in containers whose seek is exact; ascending, 0 among them.
    """

    ticks_n: NDArray[np.int64]
    time_base: Fraction
    exact: bool
    entries_n: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.ticks_n.size)

    def seconds(self) -> NDArray[np.float64]:
        """(n,) presentation times in seconds."""
        return self.ticks_n * self.time_base.numerator / np.float64(self.time_base.denominator)

    def entry(self, index: int) -> int:
        """The last frame, not after `index`, from which decoding may begin."""
        return int(self.entries_n[np.searchsorted(self.entries_n, index, side="right") - 1])

    def stretches(self, wanted_n: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """The fewest frames to decode for some that are wanted: (first, end) frame_index of each stretch.

        A stretch begins at an entry; a new one begins where an entry saves decoding.

        Args: wanted_n: (n,) int64 frame_index, ascending.
        """
        if not wanted_n.size:
            return
        entries_n = self.entries_n[np.searchsorted(self.entries_n, wanted_n, side="right") - 1]
        gaps = np.flatnonzero(entries_n[1:] > wanted_n[:-1] + SEEK_GAIN_FRAMES) + 1
        for first, last in zip([0, *gaps], [*(gaps - 1), -1], strict=True):
            yield int(entries_n[first]), int(wanted_n[last]) + 1

    def with_entries(self, ticks: Iterable[int]) -> FrameIndex:
        """The same index, with the frames of these times as entries."""
        wanted = np.unique(np.fromiter(ticks, np.int64))
        entries = np.flatnonzero(np.isin(self.ticks_n, wanted, assume_unique=True))
        return dataclasses.replace(self, entries_n=np.union1d([0], entries).astype(np.int64))


def count_at_rate(count: int, fps: float) -> FrameIndex:
    """The index of frames without times: frame_index / fps."""
    rate = Fraction(fps).limit_denominator(1_000_000)
    return FrameIndex(np.arange(count, dtype=np.int64), 1 / rate, False, np.zeros(1, np.int64))
