"""Sweeps the threshold over stored labels: what each accepts, costs and, with truth, risks, in one pass over them."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.columns import codes, equals
from pipeline.errors import MasksieveError, UnavailableError
from pipeline.policy import Policy
from pipeline.rules import ruled
from pipeline.sweep_curve import Curve, chosen, curve
from pipeline.sweep_examples import Candidates, Example
from pipeline.sweep_input import LabelFile, Labels, Opened, SweepError, opened
from pipeline.sweep_sums import (
    Cell,
    Floats,
    Ints,
    Mask,
    Moments,
    Places,
    Sums,
    count_groups,
    count_stretches,
    count_truth,
    grid,
    total,
)  # fmt: skip
from pipeline.sweep_truth import Truth, row_key

log = logging.getLogger(__name__)

MOST_GROUPS = 500
CONFIDENCE = 0.95


class Group(NamedTuple):
    """Rows of one source, label and model; None where they have none."""

    source: str | None
    label: str | None
    model: str | None


OTHERS = Group("others", None, None)
"""All groups beyond the first `MOST_GROUPS`."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Args:
        policy: whose rules hold at every threshold; its own are the column "now".
        overall: of all rows. groups: of each, most rows first.
        told: which columns of the curves are told, positions of thresholds ascending.
        now: position of the policy's threshold among all; -1 where groups have others (the last column is the policy).
        overall_sums, group_sums: what they were made of.
        examples: rows near each threshold, by bin.
        videos, frames, days: swept; days None where the commits do not tell.
        truth_videos, truth_rows: matched.
        left_out: files that could not be read, and why.
        policies: ids of the policies that the labels were decided by.
    """

    policy: Policy
    bad_iou: float
    confidence: float
    overall: Curve
    groups: dict[Group, Curve]
    told: Ints
    now: int
    overall_sums: Sums
    group_sums: dict[Group, Sums]
    examples: tuple[Example, ...]
    videos: int
    frames: int
    days: int | None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    policies: tuple[str, ...] = ()

    @property
    def thresholds_k(self) -> Floats:
        """The grid, and NaN for the policy as it stands."""
        return self.overall.thresholds_k

    @property
    def group_thresholds(self) -> list[float | None]:
        """What the policy asks of each group; None: it accepts none of it."""
        return [threshold_of(self.policy, group) for group in self.groups]


def threshold_of(policy: Policy, group: Group) -> float | None:
    """The threshold that counts for a group; None: nothing of it is accepted."""
    for one in policy.groups:
        asked = (one.source, one.label, one.model)
        if all(mine is None or mine == theirs for mine, theirs in zip(asked, group, strict=True)):
            return one.max_uncertainty
    return policy.max_uncertainty


@dataclass
class _FileSums:
    """What one file adds."""

    file: LabelFile
    groups: dict[Group, Sums] = field(default_factory=dict)
    cells: dict[str, dict[Group, Cell]] = field(default_factory=dict)
    videos: set[str] = field(default_factory=set)
    frames: int = 0
    candidates: Candidates | None = None
    policy_id: str | None = None
    error: MasksieveError | None = None


def sweep(
    labels: Labels,
    policy: Policy,
    *,
    truth: Truth | None = None,
    bad_iou: float = 0.5,
    confidence: float = CONFIDENCE,
    days: int | None = None,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Sweep:
    """One pass over the labels.

    Args:
        policy: rules; its thresholds are swept.
        truth: IoU by video_id; None is none at all.
        bad_iou: a mask with a lower IoU is a bad one, 0..1.
        confidence: of the intervals.
        days: that the labels are of, for the load of a day.
        threads: files at a time; None for as many as there are processors, four at most.
        progress: called with a file, how many are done, and how many there are.
    Returns: curves of all rows and of each group.
    Raises:  SweepError if no file can be read, no row is a prediction, none has a score, or truth fits no row;
             UnavailableError if the store does not answer.
    """
    edges = grid(policy)
    size = len(edges)
    tally = _Total(size, edges)
    work = _Work(policy, edges, truth or {}, bad_iou, len(labels.files))
    threads = threads or min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    for done, one in enumerate(_in_order(work, labels.files, threads), 1):
        tally.add(one)
        if progress is not None:
            progress(one.file.key.rpartition("/")[2], done, len(labels.files))
    tally.close_all()
    return tally.result(policy, bad_iou, confidence, days, truth is not None, labels)


def _in_order(work: _Work, files: Sequence[LabelFile], threads: int) -> Iterator[_FileSums]:
    """The sums of each file in turn, some files ahead."""
    ahead: deque[Future[_FileSums]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="masksieve-sweep") as pool:
        try:
            for file in files:
                ahead.append(pool.submit(work, file))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class _Work:
    """Sums up one file; called by several threads."""

    def __init__(self, policy: Policy, edges: Floats, truth: Truth, bad_iou: float, videos: int) -> None:
        self.policy, self.edges, self.truth, self.bad_iou = policy, edges, truth, bad_iou
        self.videos = len(truth) or videos

    def __call__(self, file: LabelFile) -> _FileSums:
        sums = _FileSums(file)
        try:
            with opened(file) as one:
                sums.policy_id = one.metadata.get("policy_id")
                reader = _Reader(self, one, sums)
                for batch in one.batches(self.policy):
                    reader.add(batch)
        except UnavailableError:
            raise
        except MasksieveError as error:
            return _FileSums(file, error=error)
        return sums


class _Reader:
    """Adds up the batches of a file in order; what runs on from one to the next is kept."""

    def __init__(self, work: _Work, one: Opened, sums: _FileSums) -> None:
        self._work, self._one, self._sums = work, one, sums
        self._size = len(work.edges)
        self._numbers: dict[str, int] = {}
        self._last_frame = -1
        # Of the batch before, by video and object: key, flag bin and whether it is flagged now.
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
        """The video of each row as a number into the list; None where the file has one."""
        file = self._sums.file
        if file.video_id is not None:
            self._sums.videos.add(file.video_id)
            return None, [file.video_id]
        video_n, names = codes(batch, "video_id")
        video_n %= len(names)
        found = [name or "" for name in names]
        present = np.unique(video_n)
        self._sums.videos.update(found[number] for number in present.tolist())
        return video_n, found

    def _global(self, videos: list[str], video_n: Ints | None, rows: int) -> Ints:
        """Numbers of videos that stay the same from batch to batch."""
        if video_n is None:
            return np.zeros(rows, np.int64)
        number_v = np.array([self._numbers.setdefault(one, len(self._numbers)) for one in videos], np.int64)
        return number_v[video_n]

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
        self._carry = np.stack([key_n[lasts], flag_n[lasts], now_n[lasts].astype(np.int64)])

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
        for number, video_id in enumerate(videos):
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
    if (limit := policy.hold_above_uncertainty) is not None:
        above_n = passes_n & (found.compared_n > limit)
        passes_n, held_n = passes_n & ~above_n, held_n | above_n
    bin_n = np.searchsorted(edges, found.compared_n)  # NaN comes last, behind the grid
    accept_n = np.where(passes_n, bin_n, size)
    accept_n[found.always_n] = 0
    flag_n = np.where(predicted_n & ~held_n, accept_n, 0)
    accept_n[~predicted_n] = size + 1
    scored_n = np.isfinite(found.compared_n)
    blocked_n = np.where(predicted_n & ~passes_n & ~found.always_n & ~held_n & scored_n, bin_n, size + 1)
    accepted_now_n = found.always_n | (passes_n & (found.compared_n <= found.threshold_n))
    counts: dict[str, Mask] = {
        "rows": np.ones(len(bin_n), bool), "predicted": predicted_n, "held": held_n & predicted_n,
        "unscored": predicted_n & ~scored_n & ~found.always_n, "always": found.always_n,
    }  # fmt: skip
    flagged_now_n = predicted_n & ~held_n & ~accepted_now_n
    return Places(accept_n, blocked_n, flag_n, accepted_now_n, flagged_now_n, counts), found.compared_n


class _Total:
    """Adds up files."""

    def __init__(self, size: int, edges: Floats) -> None:
        self.size, self.edges = size, edges
        self.groups: dict[Group, Sums] = {}
        self.overall = Moments(size + 1)
        self.cells: dict[str, dict[Group, Cell]] = {}
        self.candidates = Candidates(size)
        self.loose_videos: set[str] = set()
        self.videos = self.frames = 0
        self.left_out: list[tuple[str, str]] = []
        self.policies: set[str] = set()

    def add(self, one: _FileSums) -> None:
        """A file."""
        if one.error is not None:
            log.warning("left out: %s", one.error)
            self.left_out.append((one.file.uri, " ".join(str(one.error).split())))
            return
        if one.policy_id:
            self.policies.add(one.policy_id)
        self.frames += one.frames
        for group, sums in one.groups.items():
            self._sums(group).add(sums)
        if one.candidates is not None:
            self.candidates.merge(one.candidates, one.file)
        if one.file.video_id is not None:
            self.videos += 1
            for cells in one.cells.values():
                self.close(cells)
            return
        self.loose_videos |= one.videos
        for video_id, cells in one.cells.items():  # a video may go on in the next file
            mine = self.cells.setdefault(video_id, {})
            for group, cell in cells.items():
                mine.setdefault(group, Cell(self.size)).add(cell)

    def close(self, cells: Mapping[Group, Cell]) -> None:
        """A video with truth is complete."""
        whole = Cell(self.size)
        by_group: dict[Group, Cell] = {}
        for group, cell in cells.items():
            whole.add(cell)
            by_group.setdefault(self._key(group), Cell(self.size)).add(cell)
        self.overall.add_video(whole)
        for group, cell in by_group.items():
            sums = self._sums(group)
            sums.truth = sums.truth or Moments(self.size + 1)
            sums.truth.add_video(cell)

    def close_all(self) -> None:
        """There is nothing more to come."""
        for cells in self.cells.values():
            self.close(cells)
        self.cells = {}
        self.videos += len(self.loose_videos)

    def _key(self, group: Group) -> Group:
        return group if group in self.groups or len(self.groups) < MOST_GROUPS else OTHERS

    def _sums(self, group: Group) -> Sums:
        return self.groups.setdefault(self._key(group), Sums(self.size))

    def result(
        self, policy: Policy, bad_iou: float, confidence: float, days: int | None, with_truth: bool, labels: Labels
    ) -> Sweep:
        """The curves of all that was added."""
        overall = total(self.groups.values(), self.size)
        overall.truth = self.overall if with_truth else None
        self._check(overall, labels)
        named = {policy.max_uncertainty, *(one.max_uncertainty for one in policy.groups)}
        told = chosen(overall, self.edges, {one for one in named if one is not None})
        ordered = sorted(self.groups.items(), key=lambda item: (-item[1].counts["rows"], tuple(map(str, item[0]))))
        return Sweep(
            policy, bad_iou, confidence,
            overall=curve(overall, self.edges, confidence),
            groups={group: curve(sums, self.edges, confidence) for group, sums in ordered},
            told=told,
            now=-1 if policy.groups else int(np.flatnonzero(self.edges == policy.max_uncertainty)[0]),
            overall_sums=overall, group_sums=dict(ordered), examples=tuple(self.candidates.examples()),
            videos=self.videos, frames=self.frames, days=days, left_out=self.left_out,
            policies=tuple(sorted(self.policies)),
        )  # fmt: skip

    def _check(self, overall: Sums, labels: Labels) -> None:
        """Whether there is anything to tell."""
        where, counts = labels.store.url, overall.counts
        if self.left_out and len(self.left_out) == len(labels.files):
            raise SweepError(f"labels that can be read in {where}", self.left_out[0][1], "label again")
        if not counts["predicted"]:
            raise SweepError(f"predicted masks in {where}", f"{counts['rows']:,} rows, none of them one", "label more")
        if counts["unscored"] == counts["predicted"]:
            got = f"{counts['predicted']:,} predicted rows, all without one"
            raise SweepError(f"rows with a score in {where}", got, "label again with a model that scores its masks")
        if overall.truth is not None and not overall.truth.rows:
            got = f"a truth of which no row is one of {counts['predicted']:,} predicted rows"
            raise SweepError(f"truth of the videos in {where}", got, "give the truth of the same videos and objects")
