"""Reads one file of labels into sums: where each row stands on the grid of thresholds, and where stretches begin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.columns import codes, equals
from pipeline.errors import MasksieveError, UnavailableError
from pipeline.policy import Policy
from pipeline.rules import ruled
from pipeline.sweep_examples import Candidates
from pipeline.sweep_input import LabelFile, Opened, opened
from pipeline.sweep_sums import Cell, Floats, Ints, Mask, Places, Sums, count_groups, count_stretches, count_truth
from pipeline.sweep_truth import Truth, row_key

MAKER = ("model", "heads_sha256", "config")
"""What the metadata of a file says of the process that made its facts."""


class Group(NamedTuple):
    """Rows of one source, label and model; None where they have none."""

    source: str | None
    label: str | None
    model: str | None


@dataclass
class FileSums:
    """What one file adds."""

    file: LabelFile
    groups: dict[Group, Sums] = field(default_factory=dict)
    cells: dict[str, dict[Group, Cell]] = field(default_factory=dict)
    videos: set[str] = field(default_factory=set)
    frames: int = 0
    candidates: Candidates | None = None
    policy_id: str | None = None
    maker: dict[str, Any] = field(default_factory=dict)
    error: MasksieveError | None = None


class FileReader:
    """Sums up one file; called by several threads."""

    def __init__(self, policy: Policy, edges: Floats, truth: Truth, bad_iou: float, videos: int) -> None:
        self.policy, self.edges, self.truth, self.bad_iou = policy, edges, truth, bad_iou
        self.videos = len(truth) or videos

    def __call__(self, file: LabelFile) -> FileSums:
        sums = FileSums(file)
        try:
            with opened(file) as one:
                sums.policy_id = one.metadata.get("policy_id")
                sums.maker = {name: one.metadata.get(name) for name in MAKER}
                reader = _Batches(self, one, sums)
                for batch in one.batches(self.policy):
                    reader.add(batch)
        except UnavailableError:
            raise
        except MasksieveError as error:
            return FileSums(file, error=error)
        return sums


class _Batches:
    """Adds up the batches of a file in order; what runs on from one to the next is kept."""

    def __init__(self, work: FileReader, one: Opened, sums: FileSums) -> None:
        self._work, self._one, self._sums = work, one, sums
        self._size = len(work.edges)
        self._numbers: dict[str, int] = {}
        self._last_frame = -1
        # Of the last row of each object of the video, by key: key, flag bin and whether it is flagged now.
        self._carry = np.zeros((3, 0), np.int64)

    def add(self, batch: pa.RecordBatch) -> None:
        """The next rows."""
        if not batch.num_rows:
            return
        work, file = self._work, self._sums.file
        places, compared_n = _places(batch, work.policy, work.edges, file.source, self._one.model)
        label_n, names = codes(batch, "label")
        label_n %= len(names)  # null is the last one
        video_n, videos = self._videos(batch)
        object_n = batch.column("object_id").to_numpy(zero_copy_only=False)
        frame_n = batch.column("frame_index").to_numpy(zero_copy_only=False)
        sums = count_groups(places, label_n, len(names), self._size)
        self._stretches(places, sums, label_n, video_n, object_n)
        groups = [Group(file.source or None, name, self._one.model) for name in names]
        for group, one in zip(groups, sums, strict=True):
            if one.counts["rows"]:
                self._sums.groups.setdefault(group, Sums(self._size)).add(one)
        self._frames(video_n, frame_n)
        self._truth(places, groups, label_n, videos, video_n, frame_n, object_n)
        if self._sums.candidates is None:
            self._sums.candidates = Candidates(self._size, self._work.truth, self._work.videos)
        seen_n = equals(batch, "visibility", "visible") & (places.accept_n < self._size)
        self._sums.candidates.add(
            np.flatnonzero(seen_n), places.accept_n, videos, video_n, frame_n, object_n, compared_n
        )

    def _videos(self, batch: pa.RecordBatch) -> tuple[Ints | None, list[str]]:
        """The video of each row as a number into the list, that of all batches; None where the file has one video."""
        file = self._sums.file
        if file.video_id is not None:
            self._sums.videos.add(file.video_id)
            return None, [file.video_id]
        code_n, names = codes(batch, "video_id")
        number_c = np.array([self._numbers.setdefault(name or "", len(self._numbers)) for name in names], np.int64)
        self._sums.videos.update(names[code] or "" for code in np.unique(code_n).tolist())
        return number_c[code_n], list(self._numbers)

    def _frames(self, video_n: Ints | None, frame_n: NDArray[Any]) -> None:
        key_n = frame_n.astype(np.int64) if video_n is None else row_key(video_n, frame_n)
        self._sums.frames += int(np.count_nonzero(np.diff(key_n))) + int(key_n[0] != self._last_frame)
        self._last_frame = int(key_n[-1])

    def _stretches(
        self, places: Places, sums: list[Sums], label_n: Ints, video_n: Ints | None, object_n: NDArray[Any]
    ) -> None:
        key_n = object_n.astype(np.int64) if video_n is None else row_key(video_n, object_n)
        low = int(key_n.min())
        small = int(key_n.max()) - low < 1 << 16
        order = np.argsort((key_n - low).astype(np.uint16) if small else key_n, kind="stable")
        key_n, flag_n = key_n[order], places.flag_n[order]
        now_n = places.flagged_now_n[order]
        first_n = np.r_[True, key_n[1:] != key_n[:-1]]
        before_n, before_now_n = np.r_[0, flag_n[:-1]], np.r_[False, now_n[:-1]]
        firsts = np.flatnonzero(first_n)
        before_n[firsts], before_now_n[firsts] = 0, False
        if self._carry.shape[1]:
            at = np.searchsorted(self._carry[0], key_n[firsts]).clip(0, self._carry.shape[1] - 1)
            known = self._carry[0][at] == key_n[firsts]
            before_n[firsts[known]] = self._carry[1][at[known]]
            before_now_n[firsts[known]] = self._carry[2][at[known]] > 0
        count_stretches(sums, label_n[order], before_n, flag_n, now_n & ~before_now_n)
        lasts = np.r_[firsts[1:] - 1, len(key_n) - 1]
        here = np.stack([key_n[lasts], flag_n[lasts], now_n[lasts].astype(np.int64)])
        gone = np.isin(self._carry[0], here[0])
        if video_n is not None:
            gone |= self._carry[0] >> 32 != video_n[-1]  # a video's rows lie together
        kept = np.concatenate([self._carry[:, ~gone], here], axis=1)
        self._carry = kept[:, np.argsort(kept[0])]

    def _truth(
        self,
        places: Places,
        groups: list[Group],
        label_n: Ints,
        videos: list[str],
        video_n: Ints | None,
        frame_n: NDArray[Any],
        object_n: NDArray[Any],
    ) -> None:
        for number in [0] if video_n is None else np.unique(video_n).tolist():
            video_id = videos[number]
            known = self._work.truth.get(video_id)
            if known is None:
                continue
            here = np.arange(len(frame_n)) if video_n is None else np.flatnonzero(video_n == number)
            hits, at = known.find(row_key(frame_n[here], object_n[here]))
            rows = here[hits]
            for code in np.unique(label_n[rows]).tolist():
                of_group = label_n[rows] == code
                iou, weight = known.iou_n[at[of_group]], known.weight_n[at[of_group]]
                cell = count_truth(places, rows[of_group], iou, weight, self._work.bad_iou, self._size)
                cells = self._sums.cells.setdefault(video_id, {})
                cells.setdefault(groups[code], Cell(self._size)).add(cell)


def _places(
    batch: pa.RecordBatch, policy: Policy, edges: Floats, source: str, model: str | None
) -> tuple[Places, Floats]:
    """Where rows stand on the grid, and what was compared."""
    found = ruled(batch, policy, source=source, model=model)
    size = len(edges)
    predicted_n, held_n, passes_n = found.predicted_n, found.held_n, found.passes_n
    passes_n &= ~held_n  # above `hold_above_uncertainty`
    bin_n = np.searchsorted(edges, found.compared_n)  # NaN comes last, behind the grid
    accept_n = np.where(passes_n, bin_n, size)
    accept_n[found.always_n] = 0
    flag_n = np.where(predicted_n & ~held_n, accept_n, 0)
    accept_n[~predicted_n] = size + 1
    scored_n = np.isfinite(found.compared_n)
    blocked_n = np.where(predicted_n & ~passes_n & ~found.always_n & ~held_n & scored_n, bin_n, size + 1)
    accepted_now_n = (found.always_n | (passes_n & (found.compared_n <= found.threshold_n))) & (found.threshold_n >= 0)
    counts: dict[str, Mask] = {
        "rows": np.ones(len(bin_n), bool), "predicted": predicted_n, "held": held_n & predicted_n,
        "unscored": predicted_n & ~scored_n & ~found.always_n, "always": found.always_n,
    }  # fmt: skip
    flagged_now_n = predicted_n & ~held_n & ~accepted_now_n
    return Places(accept_n, blocked_n, flag_n, accepted_now_n, flagged_now_n, counts), found.compared_n
