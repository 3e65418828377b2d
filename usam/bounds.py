"""Upper bounds on the risk among accepted masks: exact for single rows, over whole videos for clustered ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv
from scipy.stats import binom

from usam.curves import FloatArray
from usam.errors import EvaluationError

DRAWS = 4000
_CHUNK = 250


def clopper_pearson(bad_k: ArrayLike, total_k: ArrayLike, delta: float) -> FloatArray:
    """Upper confidence bound of a share, from independent rows that are good or bad.

    Rows of one video are not independent: with those of many videos pooled the bound is broken more often than `delta`.

    Args:    bad_k, total_k: counts, 0 <= bad <= total. delta: probability that the bound is too low, (0, 1).
    Returns: (k,) in [0, 1]; 1 where there is no row.
    Source:  Clopper and Pearson, Biometrika 1934.
    """
    bad, total = np.asarray(bad_k, np.float64), np.asarray(total_k, np.float64)
    with np.errstate(invalid="ignore"):
        bound = betaincinv(bad + 1, np.maximum(total - bad, 1e-300), 1 - delta)
    out: FloatArray = np.where(bad >= total, 1.0, bound)
    return out


def hoeffding_bentkus(mean_k: ArrayLike, count: int, at_most: float) -> FloatArray:
    """P-value of "the mean is above `at_most`", from independent losses in [0, 1].

    Args:    mean_k: mean losses. count: of the losses. at_most: (0, 1).
    Returns: (k,) in [0, 1].
    Source:  Bates et al., Distribution-Free, Risk-Controlling Prediction Sets, JACM 2021, section 3.1.
    """
    mean = np.asarray(mean_k, np.float64)
    low = np.minimum(mean, at_most)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(low > 0, low * np.log(low / at_most), 0.0)
        entropy = entropy + np.where(low < 1, (1 - low) * np.log((1 - low) / (1 - at_most)), 0.0)
    bentkus = np.e * binom.cdf(np.ceil(count * mean - 1e-9), count, at_most)
    out: FloatArray = np.minimum(1.0, np.minimum(np.exp(-count * entropy), bentkus))
    return out


def clustered_bound(
    accepted_nk: FloatArray, lost_nk: FloatArray, delta: float, *, copies: float = 1.0, draws: int = DRAWS
) -> FloatArray:
    """Upper confidence bound of lost / accepted over all videos, from the sums of independent videos.

    The videos are drawn again with Dirichlet weights, together with one more that nobody saw: as large as an average
    one with accepted rows, and lost altogether. Where every video has one accepted row that is good or bad, this is
    Clopper-Pearson's bound; for bounded means it is the bound of Learned-Miller and Thomas with that video in place
    of the worst that can be. For many videos it is as sharp as a normal interval. It is not proven for videos of every
    distribution: `benchmarks/promise.py` measures it, `usam.betting` has a test that is.

    Args:
        accepted_nk: (videos, thresholds) weight of accepted rows, at least 0.
        lost_nk: the same of their losses, 0 <= lost <= accepted.
        delta: probability that the bound is too low, (0, 1).
        copies: as if every video had come so often, to tell how many more it takes.
    Returns: (thresholds,) in [0, 1]; 1 where no row is accepted.
    Raises:  EvaluationError for no video, or arrays that do not fit.
    Source:  Rubin, The Bayesian Bootstrap, 1981; Learned-Miller and Thomas, A New Confidence Interval for the Mean of a
        Bounded Random Variable, 2019.
    """
    if accepted_nk.ndim != 2 or accepted_nk.shape != lost_nk.shape or not len(accepted_nk):
        got = f"{accepted_nk.shape} and {lost_nk.shape}"
        raise EvaluationError("sums (videos, thresholds) of one shape, and a video", got, "give one row per video")
    unseen_k = accepted_nk.sum(0) / np.maximum((accepted_nk > 0).sum(0), 1)
    both = np.concatenate([accepted_nk, lost_nk], 1)
    ratios = []
    for weights_dn, unseen_d in _weights(len(both), copies, draws):
        sums = weights_dn @ both
        more = unseen_d[:, None] * unseen_k
        accepted, lost = np.split(sums, 2, 1)
        with np.errstate(invalid="ignore"):
            ratios.append((lost + more) / (accepted + more))
    bound: FloatArray = np.quantile(np.concatenate(ratios), 1 - delta, axis=0, method="higher")
    out: FloatArray = np.where(unseen_k > 0, np.minimum(bound, 1.0), 1.0)
    return out


def _weights(videos: int, copies: float, draws: int) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Weights (draws, videos) and of the unseen video (draws,), not normalised; the same in every call."""
    rng = np.random.default_rng(0)
    for start in range(0, draws, _CHUNK):
        count = min(_CHUNK, draws - start)
        unseen = rng.standard_exponential(count)
        yield rng.standard_gamma(copies, (count, videos)), unseen
