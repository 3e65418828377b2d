"""Rows to look at near each threshold, one for each step of the grid, drawn by a hash: every sweep shows the same."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.sweep_input import LabelFile

VIDEOS = 24
"""About so many videos give examples: a picture of each has to be decoded."""
_WITHOUT_TRUTH, _ASIDE = np.uint64(1) << np.uint64(63), np.uint64(1) << np.uint64(62)
"""Added to the draw of rows that come last: where there is truth one would rather see it, and not all videos."""


class Example(NamedTuple):
    """A row that one threshold of the grid accepts and the one before does not.

    Args:
        bin: position of that threshold in the grid.
        compared: its uncertainty with the margin of automatic objects.
        iou: with the truth, None where it is not known.
    """

    bin: int
    file: LabelFile
    video_id: str
    frame_index: int
    object_id: int
    compared: float
    iou: float | None = None


class Candidates:
    """One row for each bin, of what a file or all files have.

    Args:
        size: of the grid.
        with_truth: videos that are preferred.
        videos: how many there are about, of those that are preferred if any is.
    """

    def __init__(self, size: int, with_truth: Collection[str] = (), videos: int = 0) -> None:
        self._size, self._with_truth = size, with_truth
        self._one_in = max(1, videos // VIDEOS)
        self._draw_b = np.full(size, np.iinfo(np.uint64).max, np.uint64)
        self._rows: dict[int, tuple[str, int, int, float]] = {}
        self._files: dict[int, LabelFile] = {}
        self._turn = 0

    def add(
        self,
        row_m: NDArray[np.intp],
        bin_n: NDArray[np.int64],
        videos: list[str],
        video_n: NDArray[np.int64] | None,
        frame_n: NDArray[Any],
        object_n: NDArray[Any],
        compared_n: NDArray[np.float64],
    ) -> None:
        """Rows of a batch.

        Args:
            row_m: which rows of it may be examples.
            bin_n: of each row.
            videos, video_n: ids, and the number of each row's; None where all are of the first.
        """
        if not len(row_m):
            return
        self._turn += 1
        shift = int(hashlib.sha256(f"{videos[0]}:{self._turn}".encode()).hexdigest()[:8], 16) % len(row_m)
        slot_b = np.full(self._size, -1, np.int64)
        turned = np.roll(row_m, shift)
        slot_b[bin_n[turned]] = turned  # of several rows of a bin the last one stays
        bins = np.flatnonzero(slot_b >= 0)
        rows = slot_b[bins]
        number_m = np.zeros(len(rows), np.int64) if video_n is None else video_n[rows]
        seed_v = np.zeros(len(videos), np.uint64)
        for number in np.unique(number_m).tolist():
            seed_v[number] = self._seed(videos[number])
        draw_m = _draw(seed_v[number_m], frame_n[rows], object_n[rows])
        better = np.flatnonzero(draw_m < self._draw_b[bins])
        self._draw_b[bins[better]] = draw_m[better]
        for one, row, number in zip(
            bins[better].tolist(), rows[better].tolist(), number_m[better].tolist(), strict=True
        ):
            self._rows[one] = videos[number], int(frame_n[row]), int(object_n[row]), float(compared_n[row])

    def merge(self, other: Candidates, file: LabelFile) -> None:
        """The candidates of one file too."""
        for one in np.flatnonzero(other._draw_b < self._draw_b).tolist():
            self._rows[one], self._files[one] = other._rows[one], file
        self._draw_b = np.minimum(self._draw_b, other._draw_b)

    def _seed(self, video_id: str) -> int:
        number = int.from_bytes(hashlib.sha256(f"example:{video_id}".encode()).digest()[:8], "big") >> 2
        aside = 0 if number % self._one_in == 0 else int(_ASIDE)
        return number | aside | (0 if not self._with_truth or video_id in self._with_truth else int(_WITHOUT_TRUTH))

    def examples(self) -> list[Example]:
        """What was drawn, by bin."""
        return [Example(one, self._files[one], *self._rows[one]) for one in sorted(self._rows)]


def _draw(seed_m: NDArray[np.uint64], frame_m: NDArray[Any], object_m: NDArray[Any]) -> NDArray[np.uint64]:
    """A number per row made of frame, object and the seed of its video, whose two high bits stay."""
    state = seed_m.copy()
    with np.errstate(over="ignore"):
        for part in (frame_m, object_m):
            state = (state + part.astype(np.int64).view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            state ^= state >> np.uint64(29)
    return (state >> np.uint64(2)) | (seed_m & (_WITHOUT_TRUTH | _ASIDE))
