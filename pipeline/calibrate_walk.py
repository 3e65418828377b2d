"""Certifies thresholds group by group: the walk over each group's grid, and the map from predicted IoU to IoU."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.calibrate_pool import STEPS, Grid, Pool
from pipeline.calibrate_request import Request
from pipeline.calibrate_rows import JudgedRows, group_matches, subset
from pipeline.certificate_parts import ErrorRate, Group, IouMap, Match
from pipeline.columns import Floats, Mask
from usam.certify import VideoSums, Walk, certify, fewest_videos, oracle, video_sums
from usam.isotonic import Isotonic


def losses_of(rows: JudgedRows, request: Request) -> Floats:
    if isinstance(request.promise, ErrorRate):
        return (rows.iou_n < request.promise.bad_iou).astype(np.float64)
    return 1.0 - rows.iou_n


def matches_of(rows: JudgedRows, request: Request) -> list[Match]:
    """The groups that are certified apart; the last one is the rest.

    Where only some drops count, each group is of one of them: of others nobody saw a video, and the rest has none.
    """
    if request.by:
        found = [*group_matches(rows, request.by, request.min_videos), Match()]
    else:
        named = [Match(source=one.source, label=one.label, model=one.model) for one in request.policy.groups]
        found = [*(one for one in named if not one.anything), Match()]
    if not request.drops:
        return found
    within = [(one, drop) for drop in request.drops for one in found if one.source in (None, drop)]
    return [*dict.fromkeys(one.model_copy(update={"source": drop}) for one, drop in within), Match()]


def _group_number(rows: JudgedRows, matches: list[Match]) -> NDArray[np.int64]:
    """(n,) the first group that each row matches."""
    number_n = np.full(len(rows.video_n), len(matches) - 1)
    for number in reversed(range(len(matches))):
        number_n[rows.matching(matches[number])] = number
    return number_n


def certify_groups(
    rows: JudgedRows, loss_n: Floats, request: Request, matches: list[Match], pool: Pool, cap: int, *, audited: bool
) -> list[Group]:
    """Walk over the thresholds of every group; the confidence is shared among those that have videos."""
    number_n = _group_number(rows, matches)
    there = np.unique(number_n)
    level = (1 - request.confidence) / len(there)
    least = fewest_videos(request.at_most, level)
    found = []
    for number, match in enumerate(matches):
        here_n = number_n == number
        part, losses = subset(rows, here_n), loss_n[here_n]
        videos = len(np.unique(part.video_n))
        group = Group(
            match=match, threshold=None, passed=(), videos=videos, rows=len(losses), observed=None, bound=None,
            coverage=0.0, level=level, needs_videos=least if 0 < videos < least else None,
        )  # fmt: skip
        if videos >= least and not np.isnan(part.score_n).all():
            grid = pool.groups[number].grid(request.start_coverage)
            grid = _within_support(grid, part) if audited else grid
            start = grid.start if grid.start is not None else _start(part, grid, request.start_coverage)
            sums = video_sums(
                part.video_n, part.score_n, losses, part.weight_n, grid.threshold_k, cap=cap, estimand=request.estimand
            )
            walk = certify(sums, at_most=request.at_most, delta=level, start=start, method=request.method)
            proven = certify(sums, at_most=request.at_most, delta=level, start=start, method="betting").threshold
            group = group.model_copy(update={**_proved(walk, sums, part, request.at_most), "proven": proven})
        found.append(group)
    return found


def _proved(walk: Walk, sums: VideoSums, rows: JudgedRows, at_most: float) -> dict[str, object]:
    """What a walk says of its group; without a threshold, at the start."""
    return {
        "threshold": walk.threshold,
        "passed": tuple(walk.passed_k.tolist()),
        "observed": None if math.isnan(walk.observed) else walk.observed,
        "bound": walk.bound,
        "coverage": walk.coverage if walk.threshold is not None else 0.0,
        "absent_share": float(np.average(rows.absent_n, weights=rows.weight_n)),
        "oracle_coverage": oracle(sums, at_most)[1],
        "needs_videos": walk.needs_videos,
    }


def _start(rows: JudgedRows, grid: Grid, start_coverage: float) -> float:
    """Where the scores, not the losses, of the labelled rows reach the coverage: for want of a pool."""
    met_n = np.sort(np.where(np.isnan(rows.score_n), np.inf, rows.score_n))
    wanted = met_n[min(int(start_coverage * len(met_n)), len(met_n) - 1)]
    place = int(np.searchsorted(grid.threshold_k, wanted))
    return float(grid.threshold_k[min(place, len(grid.threshold_k) - 1)])


def _within_support(grid: Grid, rows: JudgedRows) -> Grid:
    """Only thresholds up to the highest uncertainty that anybody judged: beyond, verdicts say nothing.

    An audit draws from what was accepted, so it ends at the threshold of its day.
    """
    judged = rows.score_n[np.isfinite(rows.score_n)]
    highest = math.floor(judged.max() * STEPS) / STEPS if len(judged) else 0.0
    kept = np.append(grid.threshold_k[grid.threshold_k < highest], highest)
    return Grid(kept, None if grid.start is None else min(grid.start, float(kept[-1])))


def fit_iou_map(rows: JudgedRows) -> IouMap | None:
    """The isotonic map from predicted IoU to IoU; None without rows to fit it on."""
    scored_n: Mask = np.isfinite(rows.uncertainty_n)
    if not scored_n.any():
        return None
    fitted = Isotonic.fit(1 - rows.uncertainty_n[scored_n], rows.iou_n[scored_n], rows.weight_n[scored_n])
    videos = len(np.unique(rows.video_n[scored_n]))
    return IouMap(score=tuple(fitted.score_k.tolist()), value=tuple(fitted.value_k.tolist()), videos=videos)
