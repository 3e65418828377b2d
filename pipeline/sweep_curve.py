"""The curve of a sweep: coverage, review load and risk with its interval at every threshold, from sums over rows.

Risk is a ratio of sums over videos (bad rows to rows), so its variance is that of the ratio estimator, linearised, with
the video as the unit: rows of a video are alike. The intervals are pointwise: each holds for a threshold that was
chosen beforehand, not for the one that looks best, and none is a certificate.

Source: Cochran, Sampling Techniques, ch. 6 (ratio estimates); Korn and Graubard 1998 (effective sample size).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from pipeline.sweep_sums import Floats, Ints, Moments, Sums

GRID = 200


@dataclass(frozen=True)
class Risk:
    """Estimates from rows with truth at each threshold, NaN where none is accepted; bounds need two videos.

    Args:
        rows_k, videos_k: accepted rows with truth, and their videos.
        error_k, error_low_k, error_high_k: share of them with an IoU below bad_iou.
        iou_k, iou_low_k, iou_high_k: their mean IoU.
    """

    rows_k: Ints
    videos_k: Ints
    error_k: Floats
    error_low_k: Floats
    error_high_k: Floats
    iou_k: Floats
    iou_low_k: Floats
    iou_high_k: Floats


@dataclass(frozen=True)
class Curve:
    """What each threshold accepts and costs; the last column is the policy as it stands.

    Args:
        thresholds_k: (k + 1,), the last is NaN.
        predicted: rows that a threshold is asked about, and that coverage is a share of.
        accepted_k, flagged_k, stretches_k: rows accepted, rows and stretches for a person.
        risk: None without truth.
    """

    thresholds_k: Floats
    predicted: int
    accepted_k: Ints
    flagged_k: Ints
    stretches_k: Ints
    risk: Risk | None

    @property
    def coverage_k(self) -> Floats:
        """Share of the predicted rows that is accepted, NaN without any."""
        return self.accepted_k / self.predicted if self.predicted else np.full(len(self.accepted_k), np.nan)


def curve(sums: Sums, thresholds_k: Floats, confidence: float) -> Curve:
    """The curve of a group of rows.

    Args:
        thresholds_k: the grid.
        confidence: of the intervals, 0..1.
    """
    return Curve(
        np.r_[thresholds_k, np.nan],
        sums.counts["predicted"],
        sums.accepted_k,
        sums.flagged_k,
        sums.stretches_k,
        None if sums.truth is None else risk(sums.truth, confidence),
    )


def risk(moments: Moments, confidence: float) -> Risk:
    """Error rate and mean IoU of the accepted rows at each threshold, with intervals over videos.

    The error rate's is Wilson's with the effective sample size of the linearised variance, so that it neither leaves
    0..1 nor closes where no bad row was seen (a video is one row then). The mean IoU's is Student's, cut to 0..1.
    """
    rows_k, weight_k, bad_k, iou_sum_k = moments.sums_ck
    weight2_k, bad2_k, bad_weight_k, iou2_k, iou_weight_k = moments.products_ck
    videos_k = moments.videos_k
    with np.errstate(divide="ignore", invalid="ignore"):
        error_k, iou_k = bad_k / weight_k, iou_sum_k / weight_k
        spread_k = videos_k / (videos_k - 1) / weight_k**2
        error_variance_k = np.maximum(bad2_k - 2 * error_k * bad_weight_k + error_k**2 * weight2_k, 0) * spread_k
        iou_variance_k = np.maximum(iou2_k - 2 * iou_k * iou_weight_k + iou_k**2 * weight2_k, 0) * spread_k
        student_k = stdtrit(videos_k - 1, (1 + confidence) / 2)
        low_k, high_k = _wilson(error_k, error_variance_k, rows_k, videos_k, student_k)
        half_k = student_k * np.sqrt(iou_variance_k)
    few = videos_k < 2
    low_k[few] = high_k[few] = half_k[few] = np.nan
    return Risk(
        rows_k.astype(np.int64), videos_k, error_k, low_k, high_k,
        iou_k, np.clip(iou_k - half_k, 0, 1), np.clip(iou_k + half_k, 0, 1),
    )  # fmt: skip


def _wilson(error_k: Floats, variance_k: Floats, rows_k: Floats, videos_k: Ints, student_k: Floats) -> tuple[Any, Any]:
    """Wilson's interval of a share whose variance is known, as if so many rows were independent."""
    effective_k = np.where(variance_k > 0, error_k * (1 - error_k) / variance_k, videos_k)
    effective_k = np.minimum(effective_k, rows_k)
    square_k = student_k**2 / effective_k
    middle_k = (error_k + square_k / 2) / (1 + square_k)
    half_k = student_k * np.sqrt(error_k * (1 - error_k) / effective_k + square_k / (4 * effective_k)) / (1 + square_k)
    return np.clip(middle_k - half_k, 0, 1), np.clip(middle_k + half_k, 0, 1)


def chosen(sums: Sums, thresholds_k: Floats, keep: set[float]) -> Ints:
    """Which thresholds of the grid are told: about `GRID` at equal steps of coverage, filled up evenly; and `keep`.

    Args:    keep: thresholds that are told in any case, those of the policy.
    Returns: positions in the grid, ascending; the first and the last are always there.
    """
    size = len(thresholds_k)
    accepted_k = sums.accepted_k[:-1]
    picked = {0, size - 1, *np.flatnonzero(np.isin(thresholds_k, list(keep))).tolist()}
    if accepted_k[-1] > accepted_k[0]:
        steps = np.linspace(accepted_k[0], accepted_k[-1], GRID * 3 // 4)
        picked |= set(np.searchsorted(accepted_k, steps).clip(0, size - 1).tolist())
    even = np.linspace(0, size - 1, GRID // 4 + 1).round().astype(int)
    if len(picked) < GRID // 2:
        even = np.linspace(0, size - 1, GRID).round().astype(int)
    return np.array(sorted(picked | set(even.tolist())), np.int64)
