"""The rows of a labelled video, regrouped per object over time (a masklet) for the pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_CODES = {"accept": 1, "review": 2, "hold": 3}


@dataclass(frozen=True)
class Masklet:
    """One object over time.

    Args:
        frame_index_n: (n,) int64, ascending.
        pts_seconds_n: (n,) float64.
        uncertainty_n: (n,) float64 in 0..1, NaN where there is none.
        decision_n: (n,) str: accept | review | hold.
        visibility_n: (n,) str: visible | absent | untracked.
        prompted_n: (n,) str, "" on a tracked frame.
        error_n: (n,) float64, 1 - true IoU, where the truth is known.
        shot_index_n: (n,) int64, the shot that each frame lies in, where it is known.
    """

    object_id: int
    label: str | None
    frame_index_n: NDArray[np.int64] = field(repr=False)
    pts_seconds_n: NDArray[np.float64] = field(repr=False)
    uncertainty_n: NDArray[np.float64] = field(repr=False)
    decision_n: NDArray[np.str_] = field(repr=False)
    visibility_n: NDArray[np.str_] = field(repr=False)
    prompted_n: NDArray[np.str_] = field(repr=False)
    error_n: NDArray[np.float64] | None = field(default=None, repr=False)
    shot_index_n: NDArray[np.int64] | None = field(default=None, repr=False)

    def renamed(self, label: str) -> Masklet:
        """The same masklet under another label, for pictures of several videos."""
        return dataclasses.replace(self, label=label)

    @property
    def review_share(self) -> float:
        """The share of rows that a person is asked to look at, in 0..1."""
        return float(np.mean(self.decision_n == "review")) if self.decision_n.size else 0.0

    @property
    def cut_frames_n(self) -> NDArray[np.int64]:
        """The first frame_index of every shot but the first, among the frames of the rows."""
        if self.shot_index_n is None:
            return np.zeros(0, np.int64)
        found: NDArray[np.int64] = self.frame_index_n[1:][np.diff(self.shot_index_n) != 0]
        return found

    @property
    def decision_code_n(self) -> NDArray[np.uint8]:
        """(n,) uint8: 0 nothing, 1 accept, 2 review, 3 hold; the codes of `overlay.Strip`."""
        codes = np.zeros(self.decision_n.size, np.uint8)
        for name, code in _CODES.items():
            codes[self.decision_n == name] = code
        return codes


def masklets(rows: pa.Table) -> list[Masklet]:
    """Group the rows of one video by object.

    Args:
        rows: columns frame_index, pts_seconds, object_id, label, visibility, prompted, uncertainty, decision and, where
            they are known, shot_index and true_iou.
    Returns: one masklet per object, ascending object_id.
    """
    found: list[Masklet] = []
    for object_id in sorted(pc.unique(rows["object_id"]).to_pylist()):
        part = rows.filter(pc.equal(rows["object_id"], object_id)).sort_by("frame_index")
        labels = [label for label in pc.unique(part["label"]).to_pylist() if label]
        found.append(
            Masklet(
                object_id=int(object_id),
                label=labels[0] if labels else None,
                frame_index_n=_floats(part["frame_index"]).astype(np.int64),
                pts_seconds_n=_floats(part["pts_seconds"]),
                uncertainty_n=_floats(part["uncertainty"]),
                decision_n=_strings(part["decision"]),
                visibility_n=_strings(part["visibility"]),
                prompted_n=_strings(part["prompted"]),
                shot_index_n=part["shot_index"].to_numpy().astype(np.int64)
                if "shot_index" in part.column_names
                else None,
                error_n=1 - _floats(part["true_iou"]) if "true_iou" in part.column_names else None,
            )
        )
    return found


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")).to_numpy(), dtype=np.float64)


def _strings(column: pa.ChunkedArray) -> NDArray[np.str_]:
    return np.asarray(pc.fill_null(pc.cast(column, pa.string()), "").to_pylist(), dtype=np.str_)


def runs(values_n: Sequence[object] | NDArray[np.generic]) -> list[tuple[int, int]]:
    """Stretches of equal neighbours.

    Args:    values_n: n values.
    Returns: (start, stop) positions, stop exclusive, covering 0..n.
    """
    values = np.asarray(values_n)
    if values.size == 0:
        return []
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate([[0], edges])
    stops = np.concatenate([edges, [values.size]])
    return [(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]
