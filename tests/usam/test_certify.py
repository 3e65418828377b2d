"""Certified thresholds: the walk, what it counts, and that promises are kept where single rows break them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from usam.bounds import clopper_pearson
from usam.certify import certify, fewest_videos, oracle, video_sums
from usam.errors import EvaluationError

GRID = np.linspace(0.02, 1, 50)
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def clustered(rng: np.random.Generator, videos: int, spread: float = 1.0) -> Columns:
    """Videos of 20 to 80 rows whose errors come together: some videos are worse than their scores say."""
    rows = rng.choice([20, 40, 80], videos)
    video = np.repeat(np.arange(videos), rows)
    hard, hidden = rng.normal(0, 1, videos), rng.normal(0, spread, videos)
    latent = 1.2 * hard[video] + rng.normal(0, 0.8, len(video))
    loss = rng.random(len(video)) < 1 / (1 + np.exp(2.2 - 1.8 * latent - hidden[video]))
    return video, 1 / (1 + np.exp(0.5 - latent)), loss.astype(float), np.ones(len(video))


def taken(columns: Columns, videos: np.ndarray) -> Columns:
    rows = np.isin(columns[0], videos)
    return columns[0][rows], columns[1][rows], columns[2][rows], columns[3][rows]


def test_sums_are_what_a_loop_would_count() -> None:
    video, score, loss, weight = clustered(np.random.default_rng(0), 7)
    score[3], score[5] = np.nan, -np.inf
    weight[:] = np.random.default_rng(1).random(len(weight)) + 0.5
    sums = video_sums(video, score, loss, weight, GRID)
    for k in (0, 20, 49):
        for one in range(7):
            rows = (video == one) & (score <= GRID[k])
            assert sums.accepted_nk[one, k] == pytest.approx(weight[rows].sum())
            assert sums.lost_nk[one, k] == pytest.approx((weight * loss)[rows].sum())
    assert sums.coverage_k[-1] < 1  # the row without a score


def test_a_cap_makes_no_video_count_for_more_and_videos_may_count_alike() -> None:
    video = np.repeat([0, 1], [10, 90])
    columns = (video, np.zeros(100), (video == 1) * 1.0, np.ones(100))
    assert video_sums(*columns, [0.5]).observed_k[0] == pytest.approx(0.9)
    assert video_sums(*columns, [0.5], cap=30).observed_k[0] == pytest.approx(0.75)
    assert video_sums(*columns, [0.5], estimand="videos").observed_k[0] == pytest.approx(0.5)


def test_the_walk_stops_at_the_first_failure_and_keeps_what_passed() -> None:
    video = np.repeat(np.arange(200), 3)
    score = np.tile([0.1, 0.2, 0.3], 200)
    loss = np.tile([0.0, 1.0, 0.0], 200)  # good at .1, bad at .2; at .3 the risk is a third
    walk = certify(video_sums(video, score, loss, np.ones(600), [0.1, 0.2, 0.3]), at_most=0.4, delta=0.1, start=0.1)
    assert walk.passed_k.tolist() == [0.1]
    assert walk.threshold == 0.1
    assert (walk.observed, walk.videos, walk.needs_videos) == (0.0, 200, None)
    assert walk.coverage == pytest.approx(1 / 3)
    lenient = certify(walk.sums, at_most=0.4, delta=0.1, start=0.3)
    assert lenient.threshold == 0.3  # where the walk begins is part of the method: nothing below is looked at


@pytest.mark.parametrize("method", ["clustered", "betting"])
def test_promises_are_kept_where_rows_taken_for_independent_break_them(method: Any) -> None:
    rng = np.random.default_rng(5)
    population = clustered(rng, 6000)
    truth = video_sums(*population, GRID)
    broken, naive, rows, covered = 0, 0, 0, []
    best = oracle(truth, 0.1)[1]
    for _ in range(100):
        sample = taken(population, rng.choice(6000, 150, replace=False))
        sums = video_sums(*sample, GRID)
        walk = certify(sums, at_most=0.1, delta=0.1, start=0.2, method=method)
        at = -1 if walk.threshold is None else int(np.searchsorted(GRID, walk.threshold))
        broken += at >= 0 and truth.observed_k[at] > 0.1
        covered.append(truth.coverage_k[at] / best if at >= 0 else 0.0)
        alone = clopper_pearson(sums.lost_nk.sum(0), sums.accepted_nk.sum(0), 0.1)
        rows += truth.observed_k[np.flatnonzero(alone <= 0.1)[-1]] > 0.1
        chosen = oracle(sums, 0.1)[0]
        naive += chosen is not None and truth.observed_k[np.searchsorted(GRID, chosen)] > 0.1
    assert broken <= 15  # 10 and Monte-Carlo error
    assert rows > 15
    assert naive > 30
    if method == "clustered":
        assert np.mean(covered) > 0.8


@pytest.mark.parametrize("method", ["clustered", "betting"])
def test_truth_that_lies_sorted_by_how_good_it_is_proves_no_more(method: Any) -> None:
    rng = np.random.default_rng(8)
    share = np.sort(rng.beta(0.3, 4.0, 200))  # 7% on average
    loss = (rng.random((200, 20)) < share[:, None]).astype(float).ravel()
    for order in (np.arange(4000), np.arange(4000)[::-1]):
        columns = np.repeat(np.arange(200), 20), np.full(4000, 0.1), loss[order], np.ones(4000)
        assert certify(video_sums(*columns, [0.1]), at_most=0.05, delta=0.1, start=0.1, method=method).threshold is None


def test_it_says_how_many_videos_it_takes() -> None:
    population = clustered(np.random.default_rng(6), 3000)
    few = certify(video_sums(*taken(population, np.arange(40)), GRID), at_most=0.05, delta=0.1, start=0.3)
    assert few.threshold is None
    assert few.needs_videos is not None
    many = video_sums(*taken(population, np.arange(3 * few.needs_videos)), GRID)
    assert certify(many, at_most=0.05, delta=0.1, start=0.3).threshold is not None
    hopeless = certify(video_sums(*taken(population, np.arange(200)), GRID), at_most=0.05, delta=0.1, start=0.9)
    assert (hopeless.threshold, hopeless.needs_videos) == (None, None)


def test_too_few_videos_certify_nothing_however_good_they_look() -> None:
    least = fewest_videos(0.05, 0.1)
    assert least == 45
    for videos, passes in ((least - 5, False), (least + 5, True)):
        columns = np.arange(videos), np.zeros(videos), np.zeros(videos), np.ones(videos)
        walk = certify(video_sums(*columns, [0.5]), at_most=0.05, delta=0.1, start=0.5)
        assert (walk.threshold is not None) is passes


@given(seed=st.integers(0, 2**32 - 1), at_most=st.floats(0.02, 0.5))
def test_what_is_certified_was_seen_to_be_good(seed: int, at_most: float) -> None:
    columns = clustered(np.random.default_rng(seed), 60)
    walk = certify(video_sums(*columns, GRID), at_most=at_most, delta=0.1, start=0.2)
    if walk.threshold is not None:
        assert walk.observed < walk.bound <= at_most
        assert len(walk.passed_k) >= 1


def test_bad_columns_are_refused() -> None:
    video, score, loss, weight = clustered(np.random.default_rng(0), 3)
    with pytest.raises(EvaluationError, match="equal length"):
        video_sums(video[:-1], score, loss, weight, GRID)
    with pytest.raises(EvaluationError, match=r"losses in \[0, 1\]"):
        video_sums(video, score, loss + 2, weight, GRID)
    with pytest.raises(EvaluationError, match="at_most between"):
        certify(video_sums(video, score, loss, weight, GRID), at_most=0.0, delta=0.1, start=0.2)
    with pytest.raises(EvaluationError, match="start lower"):
        certify(video_sums(video, score, loss, weight, GRID), at_most=0.1, delta=0.1, start=2.0)
