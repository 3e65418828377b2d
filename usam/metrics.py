"""How well an uncertainty follows true IoU: correlation, selective risk, calibration; pooled and within videos."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from usam.curves import FloatArray, Ranking

CALIBRATION_BINS = 15
_FLAT = 1e-12  # variance below this is none


def pearson(x_n: FloatArray, y_n: FloatArray, weight_n: FloatArray | None = None) -> float:
    """Pearson correlation, rows counted with weights.

    Returns: in [-1, 1]; 0 where x is constant (it says nothing), NaN where y is (there is nothing to say).
    """
    w = np.ones(len(x_n)) if weight_n is None else weight_n
    total = w.sum()
    dx, dy = x_n - (w @ x_n) / total, y_n - (w @ y_n) / total
    var_x, var_y = (w @ (dx * dx)) / total, (w @ (dy * dy)) / total
    if var_y <= _FLAT:
        return float("nan")
    return (
        0.0
        if var_x <= _FLAT * max(1.0, float(x_n @ x_n) / len(x_n))
        else float(np.clip((w @ (dx * dy)) / total / np.sqrt(var_x * var_y), -1, 1))
    )


class Spearman:
    """Spearman rank correlation of two columns, ties at their average rank, for any weights of the rows."""

    def __init__(self, x_n: ArrayLike, y_n: ArrayLike) -> None:
        self._x, self._y = Ranking(x_n), Ranking(y_n)

    def __call__(self, weight_n: FloatArray | None = None) -> float:
        """In [-1, 1]; 0 where x is constant, NaN where y is."""
        return pearson(self._x.ranks(weight_n), self._y.ranks(weight_n), weight_n)


class Aurc:
    """Area under the risk-coverage curve: mean over k of the mean loss of the k most certain rows; lower is better.

    Ties are taken in random order (expected value). A row of weight w, an integer, counts as w rows.

    Args:    uncertainty_n: (n,). loss_n: (n,), here 1 - IoU.
    Source:  Geifman, Uziel, El-Yaniv, ICLR 2019.
    """

    def __init__(self, uncertainty_n: ArrayLike, loss_n: FloatArray) -> None:
        self._ranking, self._loss_n = Ranking(uncertainty_n), loss_n

    def __call__(self, weight_n: FloatArray | None = None) -> float:
        w = np.ones(len(self._loss_n)) if weight_n is None else weight_n
        count_g, loss_g = self._ranking.sums(w), self._ranking.sums(w * self._loss_n)
        return float(_risk_sums(count_g, loss_g, _before(count_g), _before(loss_g)).sum() / count_g.sum())


def _before(x_g: FloatArray) -> FloatArray:
    before_g: FloatArray = np.concatenate([[0.0], np.cumsum(x_g)[:-1]])
    return before_g


def _risk_sums(
    count_g: FloatArray, loss_g: FloatArray, count_before: FloatArray, loss_before: FloatArray
) -> FloatArray:
    """Per group of ties, the sum of selective risks while its rows are accepted one by one.

    With L loss and N rows accepted before, m rows of mean loss s: sum over j = 1..m of (L + j s) / (N + j), which is
    m s + (L - N s) (H(N + m) - H(N)) with H the harmonic numbers.
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, round(float((count_before + count_g).max())) + 1))])
    mean_g = loss_g / np.maximum(count_g, 1)
    start = np.rint(count_before).astype(np.intp)
    end = np.rint(count_before + count_g).astype(np.intp)
    risks_g: FloatArray = loss_g + (loss_before - count_before * mean_g) * (harmonic[end] - harmonic[start])
    return risks_g


def calibration_error(
    predicted_n: FloatArray, true_n: FloatArray, bins: int = CALIBRATION_BINS, weight_n: FloatArray | None = None
) -> float:
    """Expected calibration error of predicted IoU: |mean predicted - mean true| per bin, averaged by rows.

    Args:
        predicted_n: (n,) predicted IoU; outside of [0, 1] it falls into the outer bins.
        true_n: (n,) true IoU.
        bins: equal widths on [0, 1].
        weight_n: rows counted with weights.
    Returns: in [0, 1] for predictions in it.
    """
    bin_n = np.clip((predicted_n * bins).astype(np.intp), 0, bins - 1)
    difference_n = (predicted_n - true_n) if weight_n is None else weight_n * (predicted_n - true_n)
    total = len(predicted_n) if weight_n is None else float(weight_n.sum())
    return float(np.abs(np.bincount(bin_n, difference_n, bins)).sum() / total)


def within_groups(
    uncertainty_n: FloatArray, iou_n: FloatArray, group_n: NDArray[np.intp], groups: int, min_rows: int
) -> dict[str, FloatArray]:
    """Pearson, Spearman and AURC inside every group (video), all at once.

    Args:
        uncertainty_n, iou_n: (n,). group_n: (n,) group of each row, 0..groups - 1.
        min_rows: groups with fewer rows get NaN.
    Returns: `pearson` and `spearman` of -uncertainty with IoU, and `aurc`, each (groups,). Correlations are NaN where
             IoU is constant, and 0 where only the uncertainty is: every score is averaged over the same videos.
    """
    count_v = np.bincount(group_n, minlength=groups).astype(np.float64)
    enough_v = count_v >= max(min_rows, 1)
    safe_v = np.maximum(count_v, 1)

    def correlation(x_n: FloatArray, y_n: FloatArray) -> FloatArray:
        dx = x_n - (np.bincount(group_n, x_n, groups) / safe_v)[group_n]
        dy = y_n - (np.bincount(group_n, y_n, groups) / safe_v)[group_n]
        var_x, var_y, cov = (np.bincount(group_n, z, groups) / safe_v for z in (dx * dx, dy * dy, dx * dy))
        flat_x = var_x <= _FLAT * np.maximum(1.0, np.bincount(group_n, x_n * x_n, groups) / safe_v)
        out = np.where(flat_x, 0.0, cov / np.sqrt(np.where(flat_x | (var_y <= _FLAT), 1.0, var_x * var_y)))
        return np.where(enough_v & (var_y > _FLAT), np.clip(out, -1, 1), np.nan)

    rank_u, first_g, group_of_row, order_n = _ranks_within(uncertainty_n, group_n)
    rank_iou = _ranks_within(iou_n, group_n)[0]
    loss_n = 1 - iou_n
    video_g = group_n[order_n][first_g]
    ties_g: FloatArray = np.diff(np.append(first_g, len(order_n))).astype(np.float64)
    loss_g = np.bincount(group_of_row, loss_n, len(first_g)).astype(np.float64)
    opens_g = np.searchsorted(video_g, np.arange(groups))
    count_before, loss_before = _before(ties_g), _before(loss_g)
    start_v = np.append(count_before, len(order_n))[opens_g]
    lost_v = np.append(loss_before, loss_n.sum())[opens_g]
    sums_g = _risk_sums(ties_g, loss_g, count_before - start_v[video_g], loss_before - lost_v[video_g])
    aurc_v = np.bincount(video_g, sums_g, groups) / safe_v
    return {
        "pearson": correlation(-uncertainty_n, iou_n),
        "spearman": correlation(-rank_u, rank_iou),
        "aurc": np.where(enough_v, aurc_v, np.nan),
    }


def _ranks_within(
    value_n: FloatArray, group_n: NDArray[np.intp]
) -> tuple[FloatArray, NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Average ranks inside groups; first sorted row of each tie, the tie of each row, and the sorted order."""
    order_n = np.lexsort((value_n, group_n))
    value_s, group_s = value_n[order_n], group_n[order_n]
    new_s = np.ones(len(order_n), bool)
    new_s[1:] = (value_s[1:] != value_s[:-1]) | (group_s[1:] != group_s[:-1])
    first_g = np.flatnonzero(new_s)
    tie_of_row = np.empty(len(order_n), np.intp)
    tie_of_row[order_n] = np.cumsum(new_s) - 1
    middle_g = (first_g + np.append(first_g[1:], len(order_n)) - 1) / 2
    # A constant per group does not change a correlation, so ranks need not restart; centred, they stay exact.
    start_v = np.searchsorted(group_s, np.arange(int(group_s[-1]) + 1 if len(group_s) else 0))
    return middle_g[tie_of_row] - start_v[group_n] + 1, first_g, tie_of_row, order_n
