"""Replacement curves: what mean IoU becomes when the most uncertain masks are replaced, and one number for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from usam.errors import EvaluationError

FloatArray = NDArray[np.float64]


class Ranking:
    """Rows sorted by a value, equal values as one group: sums per group, for any weights of the rows.

    Every figure here is worked out on groups, as its expectation over the order within a group, so it cannot depend on
    the order in which rows come.

    Args:    value_n: (n,) finite, sorted upwards.
    """

    def __init__(self, value_n: ArrayLike) -> None:
        value_n = np.asarray(value_n)
        self.order_n = np.argsort(value_n, kind="stable")
        sorted_n = value_n[self.order_n]
        first_n = np.ones(len(sorted_n), bool)
        first_n[1:] = sorted_n[1:] != sorted_n[:-1]
        self._starts_g = np.flatnonzero(first_n)
        self._group_n = np.empty(len(sorted_n), np.intp)
        self._group_n[self.order_n] = np.cumsum(first_n) - 1
        self._all_differ = len(self._starts_g) == len(sorted_n)

    def sums(self, x_n: FloatArray) -> FloatArray:
        """(G,) sums over the groups, in sorted order."""
        sorted_n = x_n[self.order_n]
        return sorted_n if self._all_differ else np.add.reduceat(sorted_n, self._starts_g)

    def ranks(self, weight_n: FloatArray | None = None) -> FloatArray:
        """(n,) average ranks from 1; a row of weight w counts as w equal rows."""
        mass_g = self.sums(np.ones(len(self.order_n)) if weight_n is None else weight_n)
        return (np.cumsum(mass_g) - (mass_g - 1) / 2)[self._group_n]


@dataclass(frozen=True)
class Replacement:
    """An application: the most uncertain masks get a better variant (a larger model, more clicks, the truth, ...).

    Attributes:
        base_n:   (n,) IoU of the masks as they are.
        better_n: (n,) IoU of what replaces them; it may be worse on some rows.
    """

    base_n: FloatArray
    better_n: FloatArray

    @property
    def gain_n(self) -> FloatArray:
        """(n,) what each replacement changes."""
        return self.better_n - self.base_n


class ReplacementCurve:
    """Mean IoU over the share of rows that are replaced, the most uncertain first.

    Args:
        replacement: base and better IoU.
        uncertainty_n: (n,) higher is replaced first; equal values are replaced in random order (expected value).
    Raises: EvaluationError for columns of unequal length, none, or values that are not finite.
    """

    def __init__(self, replacement: Replacement, uncertainty_n: ArrayLike) -> None:
        value_n = np.asarray(uncertainty_n, np.float64)
        self._base_n, self._gain_n = replacement.base_n, replacement.gain_n
        if value_n.shape != self._gain_n.shape or value_n.ndim != 1 or not len(value_n):
            raise EvaluationError(
                f"{len(self._gain_n)} uncertainties, at least one", str(value_n.shape), "give one per row"
            )
        if not (np.isfinite(value_n).all() and np.isfinite(self._gain_n).all() and np.isfinite(self._base_n).all()):
            raise EvaluationError("finite uncertainties and IoU", "a value that is not", "leave such rows out")
        self._ranking = Ranking(-value_n)
        self._latest: tuple[FloatArray, tuple[FloatArray, FloatArray]] | None = None

    def points(self, weight_n: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
        """The curve's corners: shares in [0, 1] and mean IoU, from (0, nothing replaced) to (1, everything).

        The latest is kept for as long as the same array of weights is given, which must not be changed in place.
        """
        weight_n = np.ones(len(self._gain_n)) if weight_n is None else weight_n
        if self._latest is not None and self._latest[0] is weight_n:
            return self._latest[1]
        total = weight_n.sum()
        share = np.concatenate([[0.0], np.cumsum(self._ranking.sums(weight_n)) / total])
        gain = np.concatenate([[0.0], np.cumsum(self._ranking.sums(weight_n * self._gain_n)) / total])
        share[-1] = 1.0
        points = share, gain + float(weight_n @ self._base_n) / float(total)
        self._latest = weight_n, points
        return points

    def gain_area(self, until: float = 1.0, weight_n: FloatArray | None = None) -> float:
        """Area between the curve and its start, for shares in [0, until]."""
        share, iou = self.points(weight_n)
        return area(share, iou - iou[0], until)


def area(share: FloatArray, height: FloatArray, until: float = 1.0) -> float:
    """Area under a polygon given at `share` (rising from 0 to 1), for shares in [0, until]."""
    if until < 1:
        edge = float(np.interp(until, share, height))
        kept = int(np.searchsorted(share, until))
        share, height = np.append(share[:kept], until), np.append(height[:kept], edge)
    return float(np.diff(share) @ (height[1:] + height[:-1])) / 2


class RelativeArea:
    """How near a score's replacement curve comes to the oracle's: `(A - A_random) / (A_oracle - A_random)` on [0, 1].

    A is the area under mean IoU over the share replaced. Random replacement gives 0, replacing by true gain gives 1, a
    score that is worse than random less than 0. A strictly monotone transformation of the score changes nothing.
    NaN where every replacement gains the same, for then no order is better than another.

    Args:
        replacement: base and better IoU.
        uncertainty_n: see `ReplacementCurve`.
        oracle: the curve by true gain, where several scores share it.
    """

    def __init__(
        self, replacement: Replacement, uncertainty_n: ArrayLike, oracle: ReplacementCurve | None = None
    ) -> None:
        self.curve = ReplacementCurve(replacement, uncertainty_n)
        self.oracle = oracle or ReplacementCurve(replacement, replacement.gain_n)

    def __call__(self, weight_n: FloatArray | None = None) -> float:
        """The number, for rows counted with weights."""
        return self._ratio(1.0, weight_n, minus_random=True)

    def published(self, weight_n: FloatArray | None = None) -> float:
        """The raw ratio of gain areas on [0, .5], score over oracle, as the paper's figures seem to use.

        It flatters: random replacement does not score 0 (`published_random`), and the definition is not confirmed.
        """
        return self._ratio(0.5, weight_n, minus_random=False)

    def published_random(self) -> float:
        """What random replacement scores in `published`, on the same rows."""
        oracle = self.oracle.gain_area(0.5)
        _, iou = self.oracle.points()
        return float((iou[-1] - iou[0]) / 8 / oracle) if abs(oracle) > _NOTHING else float("nan")

    def _ratio(self, until: float, weight_n: FloatArray | None, *, minus_random: bool) -> float:
        share, iou = self.oracle.points(weight_n)
        random = float(iou[-1] - iou[0]) / 2 if minus_random else 0.0
        best = area(share, iou - iou[0], until) - random
        mine = self.curve.gain_area(until, weight_n) - random
        return mine / best if best > _NOTHING else float("nan")


_NOTHING = 1e-12  # below this an area is rounding
