"""Tests by betting: wealth that grows if a mean is above 0, and by Ville's inequality hardly ever if it is not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from usam.curves import FloatArray
from usam.errors import EvaluationError

_PRIOR_COUNT = 10.0
_PRIOR_VARIANCE = 0.1  # of the largest variance that payoffs between the floor and floor + 1 can have
_LARGEST_STAKE = 0.9  # of what a worst payoff would take all of


def positive_mean(payoff_nk: FloatArray, floor: float | FloatArray, delta: float) -> NDArray[np.bool_]:
    """Whether means are above 0, from so many independent payoffs as there are; proven for every distribution.

    Each bet is sized as the hedge of an option that pays 1 / delta if the sum comes out high enough: it depends on the
    wealth, the variance so far and how many payoffs are left, and never on the payoff itself, so that wealth is a
    martingale whatever the distribution is if the mean is 0. Whoever reaches 1 / delta stops.

    Args:
        payoff_nk: (n, k) independent along n, in an order that has nothing to do with their values.
        floor: no payoff is below; negative, one for all or (k,).
        delta: probability that a mean of 0 or less is called positive, (0, 1).
    Returns: (k,).
    Raises:  EvaluationError for a payoff below the floor.
    Source:  Waudby-Smith and Ramdas, Estimating Means of Bounded Random Variables by Betting, JRSS B 2024; stakes
        for a fixed number of payoffs as in Voracek and Orabona, STaR-Bets, 2025, here by a normal approximation.
    """
    floor_k = np.broadcast_to(np.asarray(floor, np.float64), payoff_nk.shape[1:])
    if (floor_k >= 0).any() or (payoff_nk < floor_k - 1e-9).any():
        got = f"{payoff_nk.min():g}"
        raise EvaluationError(f"payoffs of at least {floor_k.max():g}, below 0", got, "give the true floor")
    count, goal = len(payoff_nk), float(np.log(1 / delta))
    log_wealth = np.zeros(payoff_nk.shape[1])
    won = np.zeros(payoff_nk.shape[1], bool)
    squares = _PRIOR_COUNT * _PRIOR_VARIANCE * -floor_k * (1 + floor_k) + 1e-12
    for t, payoff in enumerate(payoff_nk):
        variance = squares / (_PRIOR_COUNT + t)
        chance = np.minimum(np.exp(log_wealth - goal), 1 - 1e-7)
        z = ndtri(chance)
        density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
        stake = density / np.maximum(chance, 1e-300) / np.sqrt((count - t) * variance)
        stake = np.clip(np.nan_to_num(stake, nan=0.0), 0.0, _LARGEST_STAKE / -floor_k)
        log_wealth = np.where(won, log_wealth, log_wealth + np.log1p(stake * payoff))
        won |= log_wealth >= goal
        squares = squares + payoff * payoff
    return won


class Wealth:
    """Evidence that a mean is above 0, that may be looked at after every payoff; 1 / alpha may be called a finding.

    The wealths of a grid of fixed stakes, averaged: no order of the payoffs is better than another.

    Args: floor: no payoff is below; negative. stakes: how many on the grid.
    """

    def __init__(self, floor: float, stakes: int = 40) -> None:
        if floor >= 0:
            raise EvaluationError("a floor below 0", f"{floor:g}", "give the least payoff that can be")
        self._floor = floor
        self._stake_g = np.geomspace(0.01, 0.95, stakes) / -floor
        self._log_g = np.zeros(stakes)
        self.payoffs = 0

    def bet(self, payoff: float) -> float:
        """Take one payoff in. Returns: the wealth; under a mean of 0 or less it ever reaches w with chance 1 / w."""
        if payoff < self._floor - 1e-9:
            raise EvaluationError(f"a payoff of at least {self._floor:g}", f"{payoff:g}", "give the true floor")
        self._log_g = self._log_g + np.log1p(self._stake_g * payoff)
        self.payoffs += 1
        return self.value

    @property
    def value(self) -> float:
        """The wealth, 1 at first."""
        most = float(self._log_g.max())
        return float(np.exp(min(most, 700.0)) * np.exp(self._log_g - most).mean())
