"""Stretches: consecutive flagged rows of one object, found over whole columns, and which of them a person sees."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.columns import Mask, Rows, column
from pipeline.route import Sides

GAIN_STEPS = 1_000_000
_KINDS: tuple[Literal["review", "audit"], ...] = ("review", "audit")


@dataclass
class Stretch:
    """Consecutive flagged rows of one object: one thing for a person to look at.

    Args:
        review_id: stable: made from video, object, kind and first frame.
        kind: review, or audit for one accepted row that was drawn.
        representative_frame: the one of highest uncertainty, the first of equals.
        uncertainty: of that frame; None if none was scored.
        gain: what there is to gain from a look: uncertainty summed over the rows, in millionths; an unscored row is 1.
    """

    review_id: str
    kind: Literal["review", "audit"]
    object_id: int
    first_frame: int
    last_frame: int
    rows: int
    representative_frame: int
    uncertainty: float | None
    gain: int = field(default=0, compare=False)


class StretchFinder:
    """Finds the stretches of a video in rows that come in batches, by frame and object.

    Args:
        video_id: whose rows.
    """

    def __init__(self, video_id: str) -> None:
        self._video_id = video_id
        self._found: list[Stretch] = []
        self._running: dict[int, Stretch | None] = {}

    @property
    def objects(self) -> int:
        """How many objects had rows."""
        return len(self._running)

    def add(self, object_n: npt.NDArray[np.integer], frame_n: npt.NDArray[np.integer], sides: Sides) -> None:
        """Take the next rows: their object_id, frame_index and decisions."""
        if not len(object_n):
            return
        order = np.argsort(object_n, kind="stable")
        kind_n = np.where(sides.audit_n, 2, sides.choice_n == 1)[order].astype(np.int8)
        object_n, frame_n = object_n[order], frame_n[order]
        uncertainty_n = sides.examined.uncertainty_n[order]
        new_n = np.r_[True, object_n[1:] != object_n[:-1]]
        starts = np.flatnonzero(new_n | (kind_n == 2) | np.r_[True, kind_n[1:] != kind_n[:-1]])
        ends = np.r_[starts[1:], len(object_n)]
        gain_s = np.add.reduceat(np.rint(np.nan_to_num(uncertainty_n, nan=1.0) * GAIN_STEPS).astype(np.int64), starts)
        known_n = np.nan_to_num(uncertainty_n, nan=-1.0)
        most_s = np.maximum.reduceat(known_n, starts)
        segment_n = np.repeat(np.arange(len(starts)), ends - starts)
        peaks = np.flatnonzero(known_n == most_s[segment_n])
        peak_s = peaks[np.unique(segment_n[peaks], return_index=True)[1]]
        columns = (
            kind_n[starts], object_n[starts], new_n[starts], frame_n[starts], frame_n[ends - 1], ends - starts,
            frame_n[peak_s], most_s, gain_s,
        )  # fmt: skip
        for kind, object_id, new, first, last, rows, peak, most, gain in zip(
            *(one.tolist() for one in columns), strict=True
        ):
            if not kind:
                self._running[object_id] = None
                continue
            before = self._running.get(object_id) if new and kind == 1 else None
            if before is None or before.kind == "audit":
                name = _KINDS[kind - 1]
                text = f"{self._video_id}:{object_id}:{name}:{first}"
                review_id = hashlib.sha256(text.encode()).hexdigest()[:20]
                uncertainty = None if most < 0 else most
                stretch = Stretch(review_id, name, object_id, first, last, rows, peak, uncertainty, gain)
                self._found.append(stretch)
                self._running[object_id] = stretch
                continue
            before.last_frame, before.rows, before.gain = last, before.rows + rows, before.gain + gain
            if most >= 0 and (before.uncertainty is None or most > before.uncertainty):
                before.representative_frame, before.uncertainty = peak, most

    def stretches(self) -> list[Stretch]:
        """All of them, by object and first frame."""
        return sorted(self._found, key=lambda one: (one.object_id, one.first_frame))


class Places:
    """Which stretch a flagged row is part of.

    Args:
        stretches: all of a video, by object and first frame.
        budget: how many review stretches a person has time for: those of highest gain; None is all.

    Attributes:
        all: the stretches.
        seen: those that are shown, audits among them.
    """

    def __init__(self, stretches: Sequence[Stretch], budget: int | None = None) -> None:
        self._key_s = _key(
            np.array([one.object_id for one in stretches], np.int64),
            np.array([one.first_frame for one in stretches], np.int64),
        )
        spared = [number for number, one in enumerate(stretches) if one.kind == "review"]
        spared.sort(key=lambda number: (-stretches[number].gain, number))
        spared = [] if budget is None else spared[budget:]
        self._seen_s: Mask = np.ones(len(stretches), dtype=bool)
        self._seen_s[spared] = False
        self.all = stretches
        self.seen = [one for one, seen in zip(stretches, self._seen_s, strict=True) if seen]
        self.unseen_rows = sum(stretches[number].rows for number in spared)

    def of(self, object_n: npt.NDArray[np.integer], frame_n: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
        """The number of each flagged row's stretch among all; of other rows the one before."""
        return np.searchsorted(self._key_s, _key(object_n, frame_n), side="right") - 1

    def unseen(self, rows: Rows, review_n: Mask) -> Mask:
        """Which of the rows to review nobody has time for."""
        unseen_n = np.zeros(len(review_n), dtype=bool)
        if self.unseen_rows:
            object_n, frame_n = (column(rows, name).to_numpy()[review_n] for name in ("object_id", "frame_index"))
            unseen_n[review_n] = ~self._seen_s[self.of(object_n, frame_n)]
        return unseen_n


def _key(object_n: npt.NDArray[np.integer], frame_n: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Object and frame as one number that sorts as they do."""
    return (object_n.astype(np.int64) << 32) + frame_n.astype(np.int64)
