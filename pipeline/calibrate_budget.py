"""Fits the review load of certified thresholds to what people can look at; what does not fit is held, not accepted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from pipeline.calibrate_pool import Load, Pool, review_load
from pipeline.calibrate_request import Request
from pipeline.calibrate_rows import CalibrationError
from pipeline.certificate_parts import Match, Process
from pipeline.policy import GroupThreshold, Policy
from pipeline.sweep_input import Labels, days_of

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many videos are done, and of how many."""
HOLDS = 40


def with_thresholds(policy: Policy, groups: list[tuple[Match, float | None]], rest: float | None) -> Policy:
    """The policy with these thresholds; None accepts no prediction of the group."""
    made = [GroupThreshold(**match.model_dump(), max_uncertainty=threshold) for match, threshold in groups]
    if rest is None:
        made.append(GroupThreshold(max_uncertainty=None))
    highest = max([one.max_uncertainty or 0.0 for one in made] + [rest or 0.0])
    hold = policy.hold_above_uncertainty
    return Policy.model_validate({
        **policy.model_dump(), "groups": made, "max_uncertainty": 0.0 if rest is None else rest,
        "hold_above_uncertainty": None if hold is None else max(hold, highest),
    })  # fmt: skip


def videos_per_day_of(labels: Labels, pool: Pool) -> float | None:
    """How many videos were labelled a day so far; None if all were on one."""
    days = days_of(labels)
    return None if days is None else pool.videos / days


def daily(count: int, per_day: float | None, pool: Pool) -> float | None:
    """A count over all videos as one a day."""
    return None if per_day is None or not pool.videos else count / pool.videos * per_day


def within_budget(
    labels: Labels,
    policy: Policy,
    processes: Sequence[Process],
    request: Request | None,
    per_day: float | None,
    pool: Pool,
    progress: Progress,
) -> tuple[Policy, Load, bool]:
    """The policy whose review load fits the budget.

    Args:    request: its budget; None: nothing is certified, so there is nothing to fit.
             per_day: videos that come in a day, None if nobody knows.
    Returns: the policy, with whichever of `hold_above_uncertainty` and `review_stretches_per_video` leaves the budget
             fuller; what people would see of all videos by it; whether it fitted as it came.
    Raises:  CalibrationError if there is a budget and nobody knows how many videos come.
    """

    holds: list[Policy] = []
    if request is not None and request.review_budget is not None:
        if per_day is None:
            got = "all videos labelled on one day"
            raise CalibrationError("to know how many videos come in a day", got, "say it by --videos-per-day")
        holds = list(_holding(policy, request, per_day))
    tried = [policy, *holds]
    loads = review_load(labels.files, tried, processes, partial(progress, "review load"))
    if request is None or request.review_budget is None:
        return policy, loads[0], True
    unit, budget = request.budget_unit, request.review_budget
    daily_loads = [daily(getattr(load, unit), per_day, pool) or 0.0 for load in loads]
    if daily_loads[0] <= budget:
        return policy, loads[0], True
    fitting = [place for place, load in enumerate(daily_loads) if load <= budget]
    best = max(fitting, key=daily_loads.__getitem__) if fitting else daily_loads.index(min(daily_loads))
    return tried[best], loads[best], False


def _holding(policy: Policy, request: Request, per_day: float) -> Iterator[Policy]:
    """Policies that leave people less to look at."""
    least = max([policy.max_uncertainty, *(one.max_uncertainty or 0.0 for one in policy.groups)])
    most = 1.0 if policy.hold_above_uncertainty is None else policy.hold_above_uncertainty
    for hold in sorted({least, *(round(float(one), 4) for one in np.linspace(least, most, HOLDS)[1:])}):
        yield policy.model_copy(update={"hold_above_uncertainty": hold})
    if request.budget_unit == "stretches" and request.review_budget is not None:
        yield policy.model_copy(update={"review_stretches_per_video": math.floor(request.review_budget / per_day)})
