"""Watches after a certificate: whether the promise still holds of audited masks, and whether videos are still alike.

Both may be looked at as often as one likes: the chance to be told "no longer" by mistake is `alpha` at most, however
long the watch goes on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from usam.betting import Wealth
from usam.curves import FloatArray
from usam.errors import EvaluationError

FEATURES = ("mean_uncertainty", "absent_share", "area_share", "objects", "fps", "megapixels")
"""What one video is to the mix. Counts, rates and sizes are compared by their logarithms."""
_LOGARITHMIC = np.array([False, False, False, True, True, True])
_LEAST_SPREAD = np.array([0.01, 0.01, 0.01, 0.05, 0.05, 0.05])  # where all videos are alike, this much is a step
_EXCEEDED = 10  # permutations at least as far apart end the drawing: the p-value is large enough to be known
_CHUNK = 64


class RiskWatch:
    """Bets against "the risk among accepted masks is at most `at_most`", one video at a time.

    A video's audited masks enter as one payoff: what they lost beyond the promise, as a share of `most_rows`. Videos
    are independent, masks of one need not be. If the promise holds, the wealth ever reaches 1 / alpha with probability
    alpha at most (Ville), for every distribution and at any time.

    Args:
        at_most: the promised risk, (0, 1).
        most_rows: audited masks of a video that has more count as this many; chosen before the first is judged.
    """

    def __init__(self, at_most: float, most_rows: float) -> None:
        if not (0 < at_most < 1 and most_rows > 0):
            got = f"{at_most:g} and {most_rows:g}"
            raise EvaluationError("a risk between 0 and 1, and most_rows above 0", got, "correct them")
        self.at_most, self.most_rows = at_most, most_rows
        self._wealth = Wealth(-at_most)

    def add(self, lost: float, rows: float) -> float:
        """Take in a video.

        Args:    lost: sum of its audited masks' losses. rows: how many there are. 0 <= lost <= rows.
        Returns: the wealth (the e-value).
        """
        if not 0 <= lost <= rows + 1e-9:
            raise EvaluationError("losses between 0 and the number of masks", f"{lost:g} of {rows:g}", "check the rows")
        payoff = (lost - self.at_most * rows) / max(rows, self.most_rows)
        return self._wealth.bet(max(payoff, -self.at_most))

    @property
    def value(self) -> float:
        """The e-value, 1 at first."""
        return self._wealth.value


def most_audited(rows: float, rate: float) -> float:
    """How many masks of a video are hardly ever exceeded by an audit: four standard deviations above the mean.

    Args:    rows: the most that count of a video. rate: of the audit, (0, 1].
    """
    return max(1.0, rows * rate + 4 * math.sqrt(rows * rate * (1 - rate)))


@dataclass(frozen=True)
class Compared:
    """Two samples held against each other.

    Attributes:
        distance: energy distance of the scaled features, at least 0 up to rounding.
        p: chance of one so large if the videos were alike.
        level: at which it is judged.
        further: the feature whose means are furthest apart, in pooled standard deviations; `by`: so many, with sign.
    """

    distance: float
    p: float
    level: float
    further: str
    by: float

    @property
    def changed(self) -> bool:
        """Whether that is called a change."""
        return self.p <= self.level


def look_level(look: int, alpha: float) -> float:
    """The share of `alpha` that a look may spend; all looks together spend no more, however many there are.

    Args: look: 1 is the first.
    """
    n = look + 1
    return alpha * 0.4739 / (n * math.log(n) ** 2)  # the sum of 1 / (n log(n)^2) from 2 on is 2.1098


def compare(reference_nf: ArrayLike, batch_mf: ArrayLike, *, level: float, seed: int = 0) -> Compared:
    """Whether a batch of videos is drawn like the reference: a permutation test on the energy distance.

    Valid for any distribution, as the features are scaled by both samples together. Repeated looks share one reference,
    so their p-values depend on each other: give each its part of alpha (`look_level`), which holds all the same.

    Args:
        reference_nf, batch_mf: (videos, len(FEATURES)); NaN where a video has no such number.
        level: p-values at most so large are a finding; so many permutations are drawn that one could be.
        seed: of the permutations.
    Raises:  EvaluationError for fewer than two videos on a side, or other columns.
    Source:  Szekely and Rizzo, Energy statistics, 2013; drawing ends early as in Besag and Clifford, 1991.
    """
    reference, batch = np.asarray(reference_nf, np.float64), np.asarray(batch_mf, np.float64)
    for side in (reference, batch):
        if side.ndim != 2 or side.shape[1] != len(FEATURES) or len(side) < 2:
            got = f"{side.shape}"
            raise EvaluationError(f"at least two videos with {len(FEATURES)} features", got, "wait for more videos")
    both = _scaled(np.concatenate([reference, batch]))
    count, total = len(batch), len(both)
    squares = (both * both).sum(1)
    distance_nn = np.sqrt(np.maximum(squares[:, None] + squares - 2 * both @ both.T, 0.0))
    np.fill_diagonal(distance_nn, 0.0)
    chosen = np.zeros((1, total))
    chosen[0, len(reference) :] = 1
    observed = float(_energy(distance_nn, chosen, count)[0])
    most = max(999, math.ceil(10 / level))
    rng, drawn, exceeded, chunk = np.random.default_rng(seed), 0, 0, _CHUNK
    p = math.nan
    while drawn < most and math.isnan(p):
        size = min(chunk, most - drawn)
        chosen = np.zeros((size, total))
        np.put_along_axis(chosen, rng.random((size, total)).argpartition(count - 1, axis=1)[:, :count], 1.0, axis=1)
        hits = _energy(distance_nn, chosen, count) >= observed - 1e-12
        need = _EXCEEDED - exceeded
        if hits.sum() >= need:
            p = _EXCEEDED / (drawn + int(np.flatnonzero(hits)[need - 1]) + 1)
        drawn, exceeded, chunk = drawn + size, exceeded + int(hits.sum()), min(1024, 2 * chunk)
    if math.isnan(p):
        p = (exceeded + 1) / (drawn + 1)
    apart = both[len(reference) :].mean(0) - both[: len(reference)].mean(0)
    far = int(np.abs(apart).argmax())
    return Compared(observed, p, level, FEATURES[far], float(apart[far]))


def _scaled(both_nf: FloatArray) -> FloatArray:
    """Features on one scale; both samples together decide it, so that permutations leave it as it is."""
    values = np.where(_LOGARITHMIC, np.log(np.maximum(both_nf, 1e-3)), both_nf)
    for column in values.T:
        known = column[np.isfinite(column)]
        column[~np.isfinite(column)] = np.median(known) if len(known) else 0.0
    scaled: FloatArray = (values - values.mean(0)) / np.maximum(values.std(0), _LEAST_SPREAD)
    return scaled


def _energy(distance_nn: FloatArray, chosen_bn: FloatArray, count: int) -> FloatArray:
    """Energy distance of each choice of `count` videos to the others."""
    others = len(distance_nn) - count
    near_bn = chosen_bn @ distance_nn
    within = (near_bn * chosen_bn).sum(1)
    across = near_bn.sum(1) - within
    rest = distance_nn.sum() - 2 * across - within
    energy: FloatArray = 2 * across / (count * others) - within / count**2 - rest / others**2
    return energy
