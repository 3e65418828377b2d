"""Correlations, selective risk and calibration agree with values worked out by hand and with plain loops."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usam.metrics import Aurc, Spearman, calibration_error, pearson, within_groups


def aurc_in_order(loss: np.ndarray) -> float:
    return float(np.mean(np.cumsum(loss) / np.arange(1, len(loss) + 1)))


def aurc_over_all_orders(uncertainty: list[int], loss: np.ndarray) -> float:
    """The definition: the mean over every order that the ties allow."""
    orders = [p for p in permutations(range(len(loss))) if all(np.diff([uncertainty[i] for i in p]) >= 0)]
    return float(np.mean([aurc_in_order(loss[list(p)]) for p in orders]))


def test_aurc_by_hand() -> None:
    loss = np.array([0.1, 0.4, 0.7])
    assert Aurc([1, 2, 3], loss)() == pytest.approx((0.1 + 0.25 + 0.4) / 3)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1)), min_size=1, max_size=6))
def test_aurc_is_its_mean_over_the_orders_of_ties(rows: list[tuple[int, float]]) -> None:
    uncertainty, loss = [u for u, _ in rows], np.array([v for _, v in rows])
    assert Aurc(uncertainty, loss)() == pytest.approx(aurc_over_all_orders(uncertainty, loss), abs=1e-9)


@given(st.integers(1, 20), st.integers(0, 10**6))
def test_weights_count_like_copies(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, iou, weight = rng.integers(0, 5, n).astype(float), rng.random(n), rng.integers(0, 4, n)
    weight[0] = 2
    copied_u, copied_iou, w = u.repeat(weight), iou.repeat(weight), weight.astype(float)
    assert Aurc(u, 1 - iou)(w) == pytest.approx(Aurc(copied_u, 1 - copied_iou)(), abs=1e-9)
    assert Spearman(u, iou)(w) == pytest.approx(Spearman(copied_u, copied_iou)(), abs=1e-9, nan_ok=True)
    assert pearson(u, iou, w) == pytest.approx(pearson(copied_u, copied_iou), abs=1e-9, nan_ok=True)
    assert calibration_error(u / 5, iou, 7, w) == pytest.approx(
        calibration_error(copied_u / 5, copied_iou, 7), abs=1e-9
    )


def test_spearman_by_hand_with_a_tie() -> None:
    assert Spearman([1, 2, 2, 3], [1, 2, 3, 4])() == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 2, 3, 4])[0, 1])
    assert Spearman([1, 2, 3], [1, 8, 27])() == pytest.approx(1)


def test_a_constant_score_says_nothing_and_a_constant_truth_cannot_be_followed() -> None:
    ramp, flat = np.arange(5.0), np.full(5, 0.7)
    assert pearson(flat, ramp) == 0
    assert math.isnan(pearson(ramp, flat))
    assert Spearman(flat, ramp)() == 0


def test_calibration_error_by_hand() -> None:
    predicted, true = np.array([0.1, 0.2, 0.9, 1.0]), np.array([0.3, 0.2, 0.9, 0.6])
    assert calibration_error(predicted, true, bins=2) == pytest.approx(0.5 * 0.1 + 0.5 * 0.2)
    assert calibration_error(true, true) == 0


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_figures_within_videos_equal_a_loop_over_them(videos: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 60
    group = rng.integers(0, videos, n)
    u, iou = rng.integers(0, 6, n) / 5, np.round(rng.random(n), 1)
    u[group == 0] = 0.5
    got = within_groups(u, iou, group, videos, 3)
    for v in range(videos):
        mine = group == v
        if mine.sum() < 3:
            assert all(math.isnan(values[v]) for values in got.values())
            continue
        assert got["pearson"][v] == pytest.approx(pearson(-u[mine], iou[mine]), abs=1e-9, nan_ok=True)
        assert got["spearman"][v] == pytest.approx(Spearman(-u[mine], iou[mine])(), abs=1e-9, nan_ok=True)
        assert got["aurc"][v] == pytest.approx(Aurc(u[mine], 1 - iou[mine])(), abs=1e-9)
