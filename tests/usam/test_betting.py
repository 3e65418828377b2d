"""Betting: no false findings, whatever the distribution; findings where there is something to find."""

from __future__ import annotations

import numpy as np
import pytest

from usam.betting import Wealth, positive_mean
from usam.errors import EvaluationError

Draw = tuple[np.ndarray, float]


def mean_zero(kind: str, rng: np.random.Generator, videos: int, trials: int) -> Draw:
    """(videos, trials) payoffs of mean exactly 0, and their floor."""
    if kind == "rare catastrophe":  # seen in every fiftieth video
        return np.where(rng.random((videos, trials)) < 0.02, -0.98, 0.02), -0.98
    if kind == "coin":
        return np.where(rng.random((videos, trials)) < 0.1, -0.9, 0.1), -0.9
    return (rng.beta(0.3, 2.7, (videos, trials)) - 0.1) * -1.0, -0.9


@pytest.mark.parametrize("kind", ["rare catastrophe", "coin", "beta"])
@pytest.mark.parametrize("videos", [40, 300])
def test_a_mean_of_zero_is_called_positive_no_more_often_than_said(kind: str, videos: int) -> None:
    payoff, floor = mean_zero(kind, np.random.default_rng(1), videos, 4000)
    share = positive_mean(payoff, floor, 0.1).mean()
    assert share <= 0.1 + 3 * np.sqrt(0.09 / 4000)


def test_it_is_nearly_as_sharp_as_knowing_the_distribution() -> None:
    payoff, floor = mean_zero("coin", np.random.default_rng(2), 400, 500)
    found = positive_mean(payoff + 0.05, floor, 0.1).mean()  # 3.3 standard errors; the best test finds 98%
    assert found > 0.9


def test_a_payoff_below_the_floor_is_refused() -> None:
    with pytest.raises(EvaluationError, match="payoffs of at least"):
        positive_mean(np.array([[-0.5]]), -0.4, 0.1)
    with pytest.raises(EvaluationError, match="payoff of at least"):
        Wealth(-0.4).bet(-0.5)


def test_wealth_may_be_looked_at_all_the_time() -> None:
    payoff, floor = mean_zero("coin", np.random.default_rng(4), 500, 400)
    ever = 0
    for column in payoff.T:
        wealth = Wealth(floor)
        ever += max(wealth.bet(x) for x in column.tolist()) >= 10
    assert ever / 400 <= 0.1 + 3 * np.sqrt(0.09 / 400)


def test_wealth_grows_on_evidence() -> None:
    wealth = Wealth(-0.9)
    assert wealth.value == pytest.approx(1)
    for _ in range(90):
        wealth.bet(0.1)
    assert wealth.value > 100
    assert wealth.payoffs == 90
