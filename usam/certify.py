"""The largest threshold whose risk among accepted rows is certified, by a walk from the strict to the lenient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from usam.betting import positive_mean
from usam.bounds import clustered_bound
from usam.curves import FloatArray
from usam.errors import EvaluationError

Method = Literal["clustered", "betting"]
MOST_VIDEOS = 1_000_000


@dataclass(frozen=True)
class VideoSums:
    """What each video adds to coverage and risk at every threshold.

    Attributes:
        threshold_k: rising.
        accepted_nk, lost_nk: (videos, thresholds) weight of the accepted rows, and of their losses.
        rows_n: (videos,) weight of all rows, accepted or not.
        cap: no video weighs more.
    """

    threshold_k: FloatArray
    accepted_nk: FloatArray
    lost_nk: FloatArray
    rows_n: FloatArray
    cap: float

    @property
    def observed_k(self) -> FloatArray:
        """Risk among the accepted rows; NaN where there is none."""
        with np.errstate(invalid="ignore"):
            risk: FloatArray = self.lost_nk.sum(0) / self.accepted_nk.sum(0)
        return risk

    @property
    def coverage_k(self) -> FloatArray:
        """Share of the rows that is accepted."""
        share: FloatArray = self.accepted_nk.sum(0) / self.rows_n.sum()
        return share


@dataclass(frozen=True)
class Walk:
    """What a walk over thresholds proved.

    Attributes:
        sums: of the videos. bound_k: upper bound of the risk at each threshold, by itself.
        passed_k: the thresholds that are certified, all at once.
        threshold: the largest of them; None if the first one failed.
        observed, bound, coverage: at the threshold; at the start of the walk if there is none.
        videos: how many there were. needs_videos: how many it takes, if things stay as they look, until the start of
            the walk passes; None if it does, or if no number would do because the risk seen there is too high.
    """

    sums: VideoSums
    bound_k: FloatArray
    passed_k: FloatArray
    threshold: float | None
    observed: float
    bound: float
    coverage: float
    videos: int
    needs_videos: int | None


def video_sums(
    video_n: NDArray[np.intp],
    score_n: FloatArray,
    loss_n: FloatArray,
    weight_n: FloatArray,
    grid_k: FloatArray,
    *,
    cap: float | None = None,
    estimand: Literal["rows", "videos"] = "rows",
) -> VideoSums:
    """Sums per video and threshold.

    Args:
        video_n: video of each row, 0, 1, ...; those without a row are left out.
        score_n: uncertainty; NaN is never accepted, -inf always.
        loss_n: in [0, 1], what accepting the row costs; of rows that are never accepted it does not matter.
        weight_n: above 0; 1, or the inverse of the chance that the row was judged.
        grid_k: thresholds; a row is accepted at those that its score does not exceed.
        cap: rows of a video that weighs more are scaled down to it; None: the heaviest video's weight.
        estimand: `rows` counts every row alike, `videos` every video.
    Raises: EvaluationError for columns that do not fit or values out of range.
    """
    grid = np.unique(np.asarray(grid_k, np.float64))
    if not len(video_n) or not len(video_n) == len(score_n) == len(loss_n) == len(weight_n) or not len(grid):
        got = f"{len(video_n)}, {len(score_n)}, {len(loss_n)}, {len(weight_n)} rows and {len(grid)} thresholds"
        raise EvaluationError("columns of equal length, at least one row and one threshold", got, "check the rows")
    taken = ~np.isnan(score_n)
    losses = np.where(taken, loss_n, 0.0)
    if not (np.isfinite(losses).all() and (losses >= 0).all() and (losses <= 1).all() and (weight_n > 0).all()):
        raise EvaluationError("losses in [0, 1] and weights above 0", "others", "leave rows without truth out")
    _, video_n = np.unique(video_n, return_inverse=True)
    videos, thresholds = int(video_n.max()) + 1, len(grid)
    place_n = np.where(taken, np.searchsorted(grid, np.where(taken, score_n, np.inf), side="left"), thresholds)
    cell_n = video_n * (thresholds + 1) + place_n

    def summed(values_n: FloatArray) -> FloatArray:
        table = np.bincount(cell_n, values_n, videos * (thresholds + 1)).reshape(videos, thresholds + 1)
        return table[:, :-1].cumsum(1)

    rows_n = np.bincount(video_n, weight_n, videos).astype(np.float64)
    if estimand == "videos":
        top, scale_n = 1.0, 1 / rows_n
    else:
        top = float(rows_n.max()) if cap is None else float(cap)
        scale_n = np.minimum(1.0, top / rows_n)
    scale = scale_n[:, None]
    return VideoSums(grid, summed(weight_n) * scale, summed(weight_n * losses) * scale, rows_n * scale_n, top)


def certify(sums: VideoSums, *, at_most: float, delta: float, start: float, method: Method = "clustered") -> Walk:
    """Walk from a threshold to larger ones while the risk is certified.

    Every threshold that passes is certified, with no allowance for their number: the walk stops at the first that fails
    (fixed-sequence testing), and neither its start nor its steps come from the losses.

    Args:
        sums: of the certifying videos, drawn alike and independently, at thresholds that were chosen without them.
        at_most: the risk that is promised, (0, 1).
        delta: probability that the promise is broken, (0, 1).
        start: the walk begins at the first threshold that is at least so large, chosen without the losses of these
            videos: for example what accepts a fifth of the rows of a pool. Too low, and too few rows are accepted to
            prove anything; too high, and the risk is.
        method: `clustered`: `usam.bounds.clustered_bound`; `betting`: `usam.betting.positive_mean`, proven for every
            distribution, which takes more videos.
    Raises:  EvaluationError for a risk or delta out of range, or a start beyond the last threshold.
    Source:  Angelopoulos et al., Learn then Test, 2021, with fixed-sequence testing.
    """
    for name, value in (("at_most", at_most), ("delta", delta)):
        if not 0 < value < 1:
            raise EvaluationError(f"{name} between 0 and 1", f"{value:g}", "give a share")
    first = int(np.searchsorted(sums.threshold_k, start, side="left"))
    if first == len(sums.threshold_k):
        raise EvaluationError(f"a threshold of at least {start:g}", f"{sums.threshold_k[-1]:g} at most", "start lower")
    if method == "betting":
        bound_k = _betting_bounds(sums, delta, at_most)
    else:
        bound_k = clustered_bound(sums.accepted_nk, sums.lost_nk, delta)
    fails = np.flatnonzero(~(bound_k[first:] <= at_most))
    end = first + int(fails[0]) if len(fails) else len(bound_k)
    at = max(end - 1, first)
    observed = float(sums.observed_k[at])
    passed_k = sums.threshold_k[first:end]
    return Walk(
        sums=sums,
        bound_k=bound_k,
        passed_k=passed_k,
        threshold=float(passed_k[-1]) if len(passed_k) else None,
        observed=observed,
        bound=float(bound_k[at]),
        coverage=float(sums.coverage_k[at]),
        videos=len(sums.rows_n),
        needs_videos=None if len(passed_k) else _needs_videos(sums, first, at_most, delta),
    )


def oracle(sums: VideoSums, at_most: float) -> tuple[float | None, float]:
    """The largest threshold whose observed risk is at most so high, and its coverage; None and 0 if there is none.

    On the rows of all videos it is the best that any procedure can do; on those that one calibrates with it is the
    naive choice, which breaks its promise about every second time.
    """
    good = np.flatnonzero(sums.observed_k <= at_most)
    if not len(good):
        return None, 0.0
    return float(sums.threshold_k[good[-1]]), float(sums.coverage_k[good[-1]])


def fewest_videos(at_most: float, delta: float) -> int:
    """With fewer videos nothing can be certified, even if no accepted row is bad."""
    return math.ceil(math.log(delta) / math.log1p(-at_most))


def _passes(sums: VideoSums, at_most_k: FloatArray, delta: float) -> NDArray[np.bool_]:
    payoff_nk = (at_most_k * sums.accepted_nk - sums.lost_nk) / sums.cap
    order = np.random.default_rng(0).permutation(len(payoff_nk))  # truth may come sorted by how good it is
    return positive_mean(payoff_nk[order], at_most_k - 1, delta)


def _betting_bounds(sums: VideoSums, delta: float, at_most: float) -> FloatArray:
    """The least risk that passes at each threshold, to .001; where `at_most` decides, it is tried as it is."""
    low_k, high_k = np.zeros(len(sums.threshold_k)), np.ones(len(sums.threshold_k))
    for _ in range(10):
        middle_k = (low_k + high_k) / 2
        passes_k = _passes(sums, middle_k, delta)
        low_k, high_k = np.where(passes_k, low_k, middle_k), np.where(passes_k, middle_k, high_k)
    decided_k = _passes(sums, np.full(len(low_k), at_most), delta)
    above = np.nextafter(at_most, 1)
    bound_k: FloatArray = np.where(decided_k, np.minimum(high_k, at_most), np.maximum(high_k, above))
    return bound_k


def _needs_videos(sums: VideoSums, first: int, at_most: float, delta: float) -> int | None:
    if not sums.observed_k[first] < at_most:
        return None
    column = slice(first, first + 1)
    have, low, high = len(sums.rows_n), 1.0, 2.0

    def enough(copies: float) -> bool:
        bound = clustered_bound(sums.accepted_nk[:, column], sums.lost_nk[:, column], delta, copies=copies, draws=1000)
        return bool(bound[0] <= at_most)

    while not enough(high):
        low, high = high, 2 * high
        if high * have > MOST_VIDEOS:
            return None
    while (high - low) * have > max(1.0, 0.02 * high * have):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return math.ceil(high * have)
