"""Bounds on the risk: what they are on data where the answer is known, and how they treat clusters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from usam.bounds import clopper_pearson, clustered_bound, hoeffding_bentkus
from usam.errors import EvaluationError


@given(total=st.integers(1, 500), share=st.floats(0, 1), delta=st.floats(0.01, 0.5))
def test_clopper_pearson_is_the_exact_bound(total: int, share: float, delta: float) -> None:
    bad = int(total * share)
    exact = binomtest(bad, total, alternative="less").proportion_ci(1 - delta, "exact").high
    assert clopper_pearson([bad], [total], delta)[0] == pytest.approx(exact, abs=1e-9)


def test_nothing_seen_bounds_nothing() -> None:
    assert clopper_pearson([0], [0], 0.1).tolist() == [1.0]
    assert clustered_bound(np.zeros((3, 1)), np.zeros((3, 1)), 0.1).tolist() == [1.0]


@given(mean=st.floats(0, 1), count=st.integers(1, 1000), at_most=st.floats(0.01, 0.99))
def test_a_p_value_is_small_only_if_the_mean_is_below(mean: float, count: int, at_most: float) -> None:
    p = hoeffding_bentkus([mean], count, at_most)[0]
    assert 0 <= p <= 1
    assert p == 1 or mean < at_most


def test_hoeffding_bentkus_on_a_known_case() -> None:
    # 0 of 100: Hoeffding gives (1 - .05)^100 = .00592, Bentkus e times as much
    assert hoeffding_bentkus([0.0], 100, 0.05)[0] == pytest.approx(0.95**100)


@pytest.mark.parametrize(("bad", "videos"), [(0, 60), (3, 100), (10, 200), (40, 400)])
def test_single_rows_get_the_exact_bound(bad: int, videos: int) -> None:
    lost = (np.arange(videos) < bad).astype(float)[:, None]
    bound = clustered_bound(np.ones((videos, 1)), lost, 0.1)[0]
    assert bound == pytest.approx(clopper_pearson([bad], [videos], 0.1)[0], rel=0.03)


def test_rows_of_one_video_are_no_more_evidence_than_one_row() -> None:
    few = clustered_bound(np.ones((80, 1)), np.zeros((80, 1)), 0.1)
    many = clustered_bound(np.full((80, 1), 500.0), np.zeros((80, 1)), 0.1)
    assert many[0] == pytest.approx(few[0])


@given(st.integers(0, 2**32 - 1))
def test_more_loss_never_lowers_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    accepted = rng.integers(0, 20, (30, 4)).astype(float)
    lost = np.floor(accepted * rng.random((30, 4)))
    more = np.minimum(accepted, lost + rng.integers(0, 3, (30, 4)))
    low, high = (clustered_bound(accepted, one, 0.1, draws=200) for one in (lost, more))
    assert (low <= high + 1e-12).all()
    assert ((high >= 0) & (high <= 1)).all()


def test_copies_tell_what_more_videos_would() -> None:
    rng = np.random.default_rng(3)
    accepted = rng.integers(1, 20, (100, 1)).astype(float)
    lost = accepted * (rng.random((100, 1)) < 0.1)
    fourfold = clustered_bound(np.tile(accepted, (4, 1)), np.tile(lost, (4, 1)), 0.1)[0]
    assert clustered_bound(accepted, lost, 0.1, copies=4)[0] == pytest.approx(fourfold, rel=0.03)


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(EvaluationError, match="one shape"):
        clustered_bound(np.ones((3, 2)), np.ones((3, 1)), 0.1)
