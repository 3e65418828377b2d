"""Rows to look at near each threshold: one for each step of the grid, drawn by a hash, so that a second sweep shows the same."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.sweep_input import LabelFile

UNKNOWN = np.uint64(1) << np.uint64(63)
"""Added to the draw of a row without truth: where there is truth, one would rather see it."""


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

    Args:    size: of the grid.
    """

    def __init__(self, size: int) -> None:
        self._size = size
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
        with_truth: Collection[str],
    ) -> None:
        """Rows of a batch.

        Args:
            row_m: which rows of it may be examples.
            bin_n: of each row.
            videos, video_n: ids, and the number of each row's; None where all are of the first.
            with_truth: videos that are preferred.
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
        seeds = np.array([_seed(one, one in with_truth) for one in videos], np.uint64)
        seed_m = np.full(len(rows), seeds[0]) if video_n is None else seeds[video_n[rows]]
        draw_m = _draw(seed_m, frame_n[rows], object_n[rows])
        better = np.flatnonzero(draw_m < self._draw_b[bins])
        self._draw_b[bins[better]] = draw_m[better]
        for one, row in zip(bins[better].tolist(), rows[better].tolist(), strict=True):
            video = videos[0] if video_n is None else videos[int(video_n[row])]
            self._rows[one] = video, int(frame_n[row]), int(object_n[row]), float(compared_n[row])

    def merge(self, other: Candidates, file: LabelFile) -> None:
        """The candidates of one file too."""
        for one in np.flatnonzero(other._draw_b < self._draw_b).tolist():
            self._rows[one], self._files[one] = other._rows[one], file
        self._draw_b = np.minimum(self._draw_b, other._draw_b)

    def examples(self) -> list[Example]:
        """What was drawn, by bin."""
        return [Example(one, self._files[one], *self._rows[one]) for one in sorted(self._rows)]


def _seed(video_id: str, known: bool) -> int:
    """Of a video; the highest bit marks those without truth."""
    number = int.from_bytes(hashlib.sha256(f"example:{video_id}".encode()).digest()[:8], "big") >> 1
    return number if known else number | int(UNKNOWN)


def _draw(seed_m: NDArray[np.uint64], frame_m: NDArray[Any], object_m: NDArray[Any]) -> NDArray[np.uint64]:
    """A number per row that depends on nothing but video, frame and object."""
    state = seed_m & ~UNKNOWN
    with np.errstate(over="ignore"):
        for part in (frame_m, object_m):
            state = (state + part.astype(np.int64).view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            state ^= state >> np.uint64(29)
    return (state >> np.uint64(1)) | (seed_m & UNKNOWN)
