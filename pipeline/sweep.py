"""Sweeps the threshold over stored labels: what each accepts, costs and, with truth, risks, in one pass over them."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.policy import Policy
from pipeline.sweep_curve import Curve, chosen, curve
from pipeline.sweep_examples import Candidates, Example
from pipeline.sweep_input import LabelFile, Labels, SweepError
from pipeline.sweep_reader import FileReader, FileSums, Group
from pipeline.sweep_sums import Cell, Floats, Ints, Moments, Sums, grid, named, total
from pipeline.sweep_truth import Truth

log = logging.getLogger(__name__)

MOST_GROUPS = 500
CONFIDENCE = 0.95
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
        overall_sums: what it was made of.
        examples: rows near each threshold, by bin.
        videos, frames, days: swept; days None where the commits do not tell.
        left_out: files that could not be read, and why.
        policies: ids of the policies that the labels were decided by.
        makers: what made the facts, as the files say: one of each kind.
    """

    policy: Policy
    bad_iou: float
    confidence: float
    overall: Curve
    groups: dict[Group, Curve]
    told: Ints
    now: int
    overall_sums: Sums
    examples: tuple[Example, ...]
    videos: int
    frames: int
    days: int | None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    policies: tuple[str, ...] = ()
    makers: tuple[dict[str, Any], ...] = ()

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


def sweep(
    labels: Labels,
    policy: Policy,
    *,
    truth: Truth | None = None,
    bad_iou: float = 0.5,
    confidence: float = CONFIDENCE,
    days: int | None = None,
    also: Sequence[float] = (),
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
        also: thresholds that are told in any case, besides the policy's.
        threads: files at a time; None for as many as there are processors, four at most.
        progress: called with a file, how many are done, and how many there are.
    Returns: curves of all rows and of each group.
    Raises:  SweepError if no file can be read, no row is a prediction, none has a score, or truth fits no row;
             UnavailableError if the store does not answer.
    """
    edges = grid(policy, also)
    size = len(edges)
    tally = _Total(size, edges)
    work = FileReader(policy, edges, truth or {}, bad_iou, len(labels.files))
    threads = threads or min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
    for done, one in enumerate(_in_order(work, labels.files, threads), 1):
        tally.add(one)
        if progress is not None:
            progress(one.file.key.rpartition("/")[2], done, len(labels.files))
    tally.close_all()
    told = {*named(policy), *also}
    return tally.result(policy, told, bad_iou, confidence, days, truth is not None, labels)


def _in_order(work: FileReader, files: Sequence[LabelFile], threads: int) -> Iterator[FileSums]:
    """The sums of each file in turn, some files ahead."""
    ahead: deque[Future[FileSums]] = deque()
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
        self.makers: dict[str, dict[str, Any]] = {}

    def add(self, one: FileSums) -> None:
        """A file."""
        if one.error is not None:
            log.warning("left out: %s", one.error)
            self.left_out.append((one.file.uri, " ".join(str(one.error).split())))
            return
        if one.policy_id:
            self.policies.add(one.policy_id)
        self.makers.setdefault(json.dumps(one.maker, sort_keys=True), one.maker)
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
        self,
        policy: Policy,
        keep: set[float],
        bad_iou: float,
        confidence: float,
        days: int | None,
        with_truth: bool,
        labels: Labels,
    ) -> Sweep:
        """The curves of all that was added."""
        overall = total(self.groups.values(), self.size)
        overall.truth = self.overall if with_truth else None
        self._check(overall, labels)
        told = chosen(overall, self.edges, keep)
        ordered = sorted(self.groups.items(), key=lambda item: (-item[1].counts["rows"], tuple(map(str, item[0]))))
        return Sweep(
            policy, bad_iou, confidence,
            overall=curve(overall, self.edges, confidence),
            groups={group: curve(sums, self.edges, confidence) for group, sums in ordered},
            told=told,
            now=-1 if policy.groups else int(np.flatnonzero(self.edges == policy.max_uncertainty)[0]),
            overall_sums=overall, examples=tuple(self.candidates.examples()),
            videos=self.videos, frames=self.frames, days=days, left_out=self.left_out,
            policies=tuple(sorted(self.policies)), makers=tuple(self.makers.values()),
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
