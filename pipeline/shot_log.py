"""Which shot a row lies in, and whether a scene cut parts it from every prompt of its object."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.records import MASKS
from pipeline.shots import ShotDetector


class ShotLog:
    """The cuts of one video and the prompted frames of its objects, noted on the way and written at the merge.

    Whether a row lies across a cut depends on prompts and cuts that may come later, so it is known at the end only.
    What is kept grows with cuts and prompts, not with rows.

    Args:
        detector: finds the cuts; None looks for none, so that the video is one shot.
    Attributes:
        cuts: source frame_index of the first frame of every shot but the first, ascending.
    """

    def __init__(self, detector: ShotDetector | None = None) -> None:
        self._detector = detector
        self.cuts: list[int] = []
        self._prompted: dict[int, set[int]] = {}

    def see(self, frame_index: int, rgb_hw3: NDArray[np.uint8]) -> bool:
        """Look at the next frame that is labelled, in time order; returns whether a shot begins on it."""
        if self._detector is None or not self._detector.is_cut(rgb_hw3):
            return False
        self.cut(frame_index)
        return True

    def cut(self, frame_index: int) -> None:
        """A shot begins on this frame. Cuts come in ascending order; one that is known already changes nothing."""
        if not self.cuts or frame_index > self.cuts[-1]:
            self.cuts.append(frame_index)

    def prompt(self, object_id: int, frame_index: int) -> None:
        """This frame carries a prompt of this object."""
        self._prompted.setdefault(object_id, set()).add(frame_index)

    def shot(self, frame_index: int) -> int:
        """The number of the shot that a frame lies in, from 0."""
        return bisect.bisect_right(self.cuts, frame_index)

    def annotate(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Fill `shot_index` and `across_cut`: no prompted frame of the row's object lies in the row's shot.

        Args:    batches: MASKS columns, of the whole video, after its last cut and prompt were noted.
        Yields:  the same rows with the two columns filled.
        """
        cuts = np.asarray(self.cuts, dtype=np.int64)
        prompted = {(one, self.shot(frame)) for one, frames in self._prompted.items() for frame in frames}
        for batch in batches:
            shots = np.searchsorted(cuts, batch.column("frame_index").to_numpy(), side="right")
            pairs = zip(batch.column("object_id").to_pylist(), shots.tolist(), strict=True)
            across = np.array([pair not in prompted for pair in pairs], dtype=bool)
            filled = _with(batch, "shot_index", pa.array(shots, pa.int32()))
            yield _with(filled, "across_cut", pa.array(across))

    def state(self) -> dict[str, Any]:
        """Everything noted and the detector's state, as plain lists and numbers."""
        return {
            "cuts": list(self.cuts),
            "prompted": {one: sorted(frames) for one, frames in self._prompted.items()},
            "detector": None if self._detector is None else self._detector.state(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ShotLog:
        """The log that `state` was taken of; it goes on with the next frame."""
        detector = state["detector"]
        log = cls(None if detector is None else ShotDetector.from_state(detector))
        log.cuts = list(state["cuts"])
        log._prompted = {int(one): set(frames) for one, frames in state["prompted"].items()}
        return log


def _with(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), MASKS.field(name), column)
