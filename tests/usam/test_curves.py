"""Replacement curves: worked out by hand, the oracle 1, random 0, and nothing depends on order or on the scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usam.curves import Ranking, RelativeArea, Replacement, ReplacementCurve, area
from usam.errors import EvaluationError

TWO = Replacement(np.array([0.2, 0.6]), np.array([1.0, 0.8]))  # gains .8 and .2


def rows(n: int, seed: int, levels: int = 1000) -> tuple[Replacement, np.ndarray]:
    """IoU and an uncertainty of few levels, so that ties are many."""
    rng = np.random.default_rng(seed)
    base, better = rng.random(n), rng.random(n)
    return Replacement(base, better), rng.integers(0, levels, n).astype(float)


def test_a_curve_of_two_rows_by_hand() -> None:
    share, iou = ReplacementCurve(TWO, [2, 1]).points()
    assert share.tolist() == [0, 0.5, 1]
    assert iou.tolist() == pytest.approx([0.4, 0.8, 0.9])
    assert ReplacementCurve(TWO, [2, 1]).gain_area() == pytest.approx((0.4 / 2 + (0.4 + 0.5) / 2) / 2)
    assert ReplacementCurve(TWO, [2, 1]).gain_area(0.5) == pytest.approx(0.1)
    assert ReplacementCurve(TWO, [2, 1]).gain_area(0.25) == pytest.approx(0.025)


def test_the_two_numbers_of_two_rows_by_hand() -> None:
    assert RelativeArea(TWO, [2, 1])() == pytest.approx(1)
    assert RelativeArea(TWO, [1, 2])() == pytest.approx(-1)
    assert RelativeArea(TWO, [1, 1])() == pytest.approx(0)
    assert RelativeArea(TWO, [1, 2]).published() == pytest.approx(0.025 / 0.1)
    assert RelativeArea(TWO, [1, 2]).published_random() == pytest.approx(0.5 / 8 / 0.1)
    assert RelativeArea(TWO, [1, 1]).published() == pytest.approx(RelativeArea(TWO, [2, 1]).published_random())


def test_a_tie_is_the_mean_over_its_orders() -> None:
    pair = Replacement(np.zeros(3), np.array([0.9, 0.1, 0.5]))
    orders = [RelativeArea(pair, u)() for u in ([3.1, 3, 1], [3, 3.1, 1])]
    assert RelativeArea(pair, [3, 3, 1])() == pytest.approx(np.mean(orders))


@given(st.integers(2, 60), st.integers(0, 10**6), st.integers(1, 8))
def test_properties_of_the_relative_area(n: int, seed: int, levels: int) -> None:
    pair, uncertainty = rows(n, seed, levels)
    value = RelativeArea(pair, uncertainty)()
    assert -1 - 1e-9 <= value <= 1 + 1e-9
    assert RelativeArea(pair, np.arctan(uncertainty) ** 3)() == pytest.approx(value, abs=1e-9)
    assert RelativeArea(pair, -uncertainty)() == pytest.approx(-value, abs=1e-9)
    order = np.random.default_rng(seed).permutation(n)
    shuffled = Replacement(pair.base_n[order], pair.better_n[order])
    assert RelativeArea(shuffled, uncertainty[order])() == pytest.approx(value, abs=1e-9)
    assert RelativeArea(pair, pair.gain_n)() == pytest.approx(1)
    assert RelativeArea(pair, pair.gain_n).published() == pytest.approx(1) or math.isnan(
        RelativeArea(pair, pair.gain_n).published()
    )


@given(st.integers(1, 25), st.integers(0, 10**6), st.integers(1, 5))
def test_a_weight_counts_like_copies_of_the_row(n: int, seed: int, levels: int) -> None:
    pair, uncertainty = rows(n, seed, levels)
    weight = np.random.default_rng(seed).integers(0, 4, n)
    weight[0] = 1
    copies = RelativeArea(
        Replacement(pair.base_n.repeat(weight), pair.better_n.repeat(weight)), uncertainty.repeat(weight)
    )
    weighted = RelativeArea(pair, uncertainty)
    assert weighted(weight.astype(float)) == pytest.approx(copies(), abs=1e-9, nan_ok=True)
    assert weighted.published(weight.astype(float)) == pytest.approx(copies.published(), abs=1e-9, nan_ok=True)


def test_random_order_scores_about_nothing_and_the_published_ratio_flatters_it() -> None:
    pair, uncertainty = rows(200_000, 3, levels=10**9)
    assert RelativeArea(pair, uncertainty)() == pytest.approx(0, abs=0.01)
    gains = Replacement(np.zeros(200_000), pair.better_n)
    assert RelativeArea(gains, uncertainty).published() == pytest.approx(0.6, abs=0.01)
    assert RelativeArea(gains, uncertainty).published_random() == pytest.approx(0.6, abs=0.01)


def test_equal_gains_have_no_best_order() -> None:
    assert math.isnan(RelativeArea(Replacement(np.zeros(3), np.full(3, 0.4)), [1, 2, 3])())


def test_an_area_up_to_a_share_between_corners() -> None:
    share, height = np.array([0, 1 / 3, 2 / 3, 1]), np.array([0, 3, 3, 0.0])
    assert area(share, height, 0.5) == pytest.approx(0.5 + 0.5)
    assert area(share, height) == pytest.approx(2)


def test_ranks_are_averages_over_ties() -> None:
    assert Ranking([5, 1, 5, 0]).ranks().tolist() == [3.5, 2, 3.5, 1]
    assert Ranking([5, 1]).ranks(np.array([1.0, 3.0])).tolist() == [4, 2]


@pytest.mark.parametrize("bad", [[1.0], [1.0, float("nan")], [[1.0], [2.0]]])
def test_columns_that_do_not_fit_are_refused(bad: list[float]) -> None:
    with pytest.raises(EvaluationError):
        ReplacementCurve(TWO, bad)
