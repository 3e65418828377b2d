"""The pool of labelled videos, without truth: where thresholds may lie, what a policy leaves for people to review."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.certificate import difference, process_of
from pipeline.certificate_parts import Process
from pipeline.columns import Floats, Mask, floats
from pipeline.errors import StorageError, UnavailableError
from pipeline.policy import Policy
from pipeline.route import Sides
from pipeline.rules import Examined
from pipeline.sweep_input import LabelFile, opened

log = logging.getLogger(__name__)

STEPS = 10_000
"""Thresholds have four decimals."""
GRID = 100
"""So many thresholds at most, at equal steps of coverage."""
LEAST_ROWS = 200
"""A smaller pool says nothing of where thresholds should lie; then it is every hundredth."""


class Grid(NamedTuple):
    """Thresholds, rising, and the one at which the walk starts; None: the pool does not say."""

    threshold_k: Floats
    start: float | None


@dataclass
class Group:
    """Rows of the pool in one group: how many, and candidates for acceptance by what they would have to meet."""

    rows: int = 0
    always: int = 0
    candidates_b: NDArray[np.int64] = field(default_factory=lambda: np.zeros(STEPS + 1, np.int64))

    def grid(self, start_coverage: float) -> Grid:
        """Thresholds at equal steps of coverage, from where it reaches `start_coverage` on.

        Where the rules leave fewer candidates than that, the walk starts at half of those that there are.
        """
        accepted_b = self.always + self.candidates_b.cumsum()
        if self.rows < LEAST_ROWS or accepted_b[-1] == self.always:
            return Grid(np.arange(1, 101) / 100, None)
        most = accepted_b[-1] / self.rows
        first = min(start_coverage, (self.always / self.rows + most) / 2)
        levels = np.linspace(first, most, GRID) * self.rows
        bins = np.unique(np.searchsorted(accepted_b, np.minimum(levels, accepted_b[-1]) - 1e-9))
        return Grid(bins / STEPS, float(bins[0] / STEPS))


@dataclass
class Pool:
    """What the files tell without truth.

    Attributes:
        videos: all that the certifying ones' process made. others: those of other models, heads or settings.
        groups: rows of videos that certify nothing, by number of the policy's group; the last one is the rest.
        rows_v: predicted rows of each of these videos.
        keys, certifying_keys: of the labels of these videos and of the certifying ones.
    """

    videos: int = 0
    others: int = 0
    groups: list[Group] = field(default_factory=list)
    rows_v: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    certifying_keys: list[str] = field(default_factory=list)

    def cap(self) -> int | None:
        """The 99th percentile of rows per video; None without a video."""
        return int(np.ceil(np.percentile(self.rows_v, 99))) if self.rows_v else None


class Load(NamedTuple):
    """Rows and stretches that people would see."""

    rows: int
    stretches: int


def survey(
    files: Sequence[LabelFile],
    policy: Policy,
    processes: Sequence[Process],
    certifying: Collection[str],
    audited: bool,
    progress: Callable[[int, int], None],
) -> Pool:
    """Count the rows of the pool by uncertainty.

    Args:    policy: with a group for each that is certified apart.
             certifying: ids of videos that are left out of all counts but their number.
             audited: leave them in: where verdicts are about rows drawn from everywhere, what is left is no fair pool,
                 and its scores tell nothing of losses.
             progress: called with the files so far, and of how many.
    """
    pool = Pool(groups=[Group() for _ in range(len(policy.groups) + 1)])
    for number, (file, model, batches) in enumerate(_alike(files, policy, processes, () if audited else certifying), 1):
        progress(number, len(files))
        if batches is None:
            pool.others += 1
            continue
        pool.videos += 1
        if file.video_id in certifying:
            pool.certifying_keys.append(file.key)
            if not audited:
                continue
        rows = 0
        for batch in batches:
            ruled = Examined(batch, policy, file.source, model).ruled()
            rows += int(ruled.predicted_n.sum())
            for group, counts in enumerate(pool.groups):
                here_n = ruled.group_n == (group if group < len(policy.groups) else -1)
                counts.rows += int((ruled.predicted_n & here_n).sum())
                counts.always += int((ruled.always_n & here_n).sum())
                met_n = ruled.compared_n[ruled.passes_n & here_n & (ruled.compared_n <= 1)]
                bins = np.ceil(met_n * STEPS - 1e-6).astype(np.int64)
                counts.candidates_b += np.bincount(bins, minlength=STEPS + 1)
        if file.video_id not in certifying:
            pool.keys.append(file.key)
        pool.rows_v.append(rows)
    return pool


def review_load(
    files: Sequence[LabelFile],
    policies: Sequence[Policy],
    processes: Sequence[Process],
    progress: Callable[[int, int], None],
) -> list[Load]:
    """What people would see by each of some policies that differ in what they hold alone, in one pass.

    Args: policies: alike but for `hold_above_uncertainty` and `review_stretches_per_video`.
    """
    loads = np.zeros((len(policies), 2), np.int64)
    plain = policies[0].model_copy(update={"hold_above_uncertainty": None, "audit_rate": 0.0})
    for number, (file, model, batches) in enumerate(_alike(files, plain, processes), 1):
        progress(number, len(files))
        for batch in batches or ():
            sides = Sides(batch, plain, file.source, model)
            examined, flagged_n = sides.examined, sides.choice_n == 1
            object_n = floats(batch, "object_id")
            order = np.lexsort((floats(batch, "frame_index"), object_n))
            first_n = np.append(True, object_n[order][1:] != object_n[order][:-1])
            for place, policy in enumerate(policies):
                hold = np.inf if policy.hold_above_uncertainty is None else policy.hold_above_uncertainty
                seen_n: Mask = (flagged_n & ~(examined.scored_n & (examined.compared_n > hold)))[order]
                stretches = int((seen_n & (first_n | ~np.append(False, seen_n[:-1]))).sum())
                most = policy.review_stretches_per_video
                kept = stretches if most is None else min(stretches, most)
                loads[place] += int(seen_n.sum() * kept / max(stretches, 1)), kept
    return [Load(int(rows), int(stretches)) for rows, stretches in loads]


def _alike(
    files: Sequence[LabelFile], policy: Policy, processes: Sequence[Process], closed: Collection[str] = ()
) -> Iterator[tuple[LabelFile, str | None, list[pa.RecordBatch] | None]]:
    """Each file with its model's name and its rows; None for one of another process; damaged ones are passed over.

    Args: closed: ids of videos whose rows nobody wants.
    """
    for file in files:
        try:
            with opened(file) as one:
                process = process_of(one.metadata)
                alike = process is not None and difference(process, processes) is None
                wanted = alike and file.video_id not in closed
                rows = list(one.batches(policy)) if wanted else [] if alike else None
                about = file, one.model, rows
        except UnavailableError:
            raise
        except StorageError as error:
            log.warning("passed over: %s", error)
            continue
        yield about
