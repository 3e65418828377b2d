"""Intervals by drawing whole videos again, the same draw for every figure, so that differences are paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from usam.curves import FloatArray
from usam.errors import EvaluationError

# Takes how often each video was drawn (v,) and each row through its video (n,); gives one figure.
Statistic = Callable[[FloatArray, FloatArray], float]


def bootstrap(
    statistics: Sequence[Statistic],
    video_n: NDArray[np.intp],
    videos: int,
    replicates: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FloatArray:
    """Figures on videos drawn with replacement.

    Rows of one video are alike, so the video is the unit; treating rows as independent would make intervals too narrow.

    Args:
        statistics: the figures.
        video_n: (n,) video of each row, 0..videos - 1.
        videos: how many there are; `replicates`: how many draws; `seed`: of the draws.
        progress: told how many draws of how many are done.
    Returns: (replicates, figures) float64, NaN where a draw leaves a figure undefined.
    Raises:  EvaluationError for a negative number of replicates.
    """
    if replicates < 0:
        raise EvaluationError("replicates of at least 0", str(replicates), "use 1000, or 0 for no intervals")
    rng = np.random.default_rng(seed)
    out = np.full((replicates, len(statistics)), np.nan)
    for done, row in enumerate(out, 1):
        drawn_v = rng.multinomial(videos, np.full(videos, 1 / videos)).astype(np.float64)
        weight_n = drawn_v[video_n]
        row[:] = [statistic(drawn_v, weight_n) for statistic in statistics]
        if progress is not None:
            progress(done, replicates)
    return out


def interval(replicates_b: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of replicates, those that are NaN left out; (NaN, NaN) if fewer than two remain."""
    finite_b = replicates_b[np.isfinite(replicates_b)]
    if len(finite_b) < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(finite_b, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
