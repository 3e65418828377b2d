"""Isotonic regression: the rising map from a score to IoU that fits best, by pooling adjacent violators."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from usam.curves import FloatArray
from usam.errors import EvaluationError


@dataclass(frozen=True, eq=False)
class Isotonic:
    """A piecewise linear map that never falls; constant beyond its ends.

    Attributes:
        score_k: (k,) float64, rising, no two equal.
        value_k: (k,) float64, not falling.
    """

    score_k: FloatArray
    value_k: FloatArray

    def __post_init__(self) -> None:
        ends = self.score_k.shape == self.value_k.shape and self.score_k.ndim == 1 and len(self.score_k) > 0
        finite = ends and bool(np.isfinite(self.score_k).all() and np.isfinite(self.value_k).all())
        if not finite or (np.diff(self.score_k) <= 0).any() or (np.diff(self.value_k) < 0).any():
            raise EvaluationError("rising scores and values that do not fall", "others", "fit the map again")

    @staticmethod
    def fit(score_n: ArrayLike, target_n: ArrayLike, weight_n: ArrayLike | None = None) -> Isotonic:
        """The map with the least (weighted) squared error among those that do not fall.

        Rows of equal score are one row of their mean. The ends of each constant stretch are kept and joined by lines,
        so a score that lies between two stretches gets a value between theirs.

        Args:
            score_n: (n,) finite.
            target_n: (n,) finite, e.g. IoU in [0, 1].
            weight_n: (n,) at least 0, not all 0; all 1 if None. A row of weight w counts as w rows.
        Returns: the map, with at most two knots per stretch.
        Raises:  EvaluationError for arrays that do not fit, values that are not finite, or no row.
        Source:  Barlow et al., Statistical Inference under Order Restrictions, 1972 (PAVA).
        """
        score_n, target_n = np.asarray(score_n, np.float64), np.asarray(target_n, np.float64)
        weights_n = np.ones(len(score_n)) if weight_n is None else np.asarray(weight_n, np.float64)
        _check(score_n, target_n, weights_n)
        score_n, target_n, weights_n = (a[weights_n > 0] for a in (score_n, target_n, weights_n))
        score_k, row_n = np.unique(score_n, return_inverse=True)
        weight_k: FloatArray = np.bincount(row_n, weights_n).astype(np.float64)
        first_b, value_b = _pool(np.bincount(row_n, weights_n * target_n) / weight_k, weight_k)
        last_b = np.append(first_b[1:], len(score_k)) - 1
        knots = np.stack([first_b, last_b], 1).reshape(-1)
        keep = np.append(True, knots[1:] != knots[:-1])
        return Isotonic(score_k[knots[keep]], value_b.repeat(2)[keep])

    def __call__(self, score_n: ArrayLike) -> FloatArray:
        """The values, shaped as the scores; NaN stays NaN."""
        values: FloatArray = np.interp(np.asarray(score_n, np.float64), self.score_k, self.value_k)
        return values

    def to_json(self) -> str:
        """As text, to the last bit."""
        return json.dumps({"score": self.score_k.tolist(), "value": self.value_k.tolist()})

    @staticmethod
    def from_json(text: str) -> Isotonic:
        """The map that `to_json` wrote.

        Raises: EvaluationError for text that is none.
        """
        try:
            values = json.loads(text)
            return Isotonic(np.asarray(values["score"], np.float64), np.asarray(values["value"], np.float64))
        except (ValueError, TypeError, KeyError) as error:
            got = f"{type(error).__name__}: {error}"
            raise EvaluationError('JSON with lists "score" and "value"', got, "fit the map again") from error

    def save(self, path: Path) -> Path:
        """Write `to_json` to a file, whole or not at all."""
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json() + "\n")
        return part.replace(path)


def _pool(mean_k: FloatArray, weight_k: FloatArray) -> tuple[NDArray[np.intp], FloatArray]:
    """The first row and the value of each constant stretch, left to right."""
    first: list[int] = []
    mean: list[float] = []
    weight: list[float] = []
    for k, (m, w) in enumerate(zip(mean_k.tolist(), weight_k.tolist(), strict=True)):
        start = k
        while mean and mean[-1] >= m:
            m, w, start = (mean[-1] * weight[-1] + m * w) / (weight[-1] + w), weight[-1] + w, first[-1]
            del mean[-1], weight[-1], first[-1]
        first.append(start)
        mean.append(m)
        weight.append(w)
    # Rounding of a pooled mean may undercut its left neighbour by one unit in the last place.
    return np.asarray(first, np.intp), np.maximum.accumulate(np.asarray(mean, np.float64))


def _check(score_n: FloatArray, target_n: FloatArray, weight_n: FloatArray) -> None:
    if score_n.ndim != 1 or target_n.shape != score_n.shape or weight_n.shape != score_n.shape:
        got = f"{score_n.shape}, {target_n.shape}, {weight_n.shape}"
        raise EvaluationError("scores, targets and weights (n,)", got, "give one of each per row")
    if not all(np.isfinite(a).all() for a in (score_n, target_n, weight_n)):
        raise EvaluationError("finite scores, targets and weights", "a value that is not", "leave such rows out")
    if (weight_n < 0).any() or not weight_n.any():
        raise EvaluationError("at least one row, weights of at least 0", f"{len(weight_n)} rows", "give rows to fit on")
