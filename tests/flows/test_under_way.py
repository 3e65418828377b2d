"""Which runs still work: the living are not taken for dead in their pauses, nor the killed for living."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Running

from flows import drops, label
from flows.drops import is_under_way
from pipeline.settings import DropSettings
from pipeline.work import Standing

KEY = "1" * 64
SETTINGS = DropSettings(lease_seconds=10, retry_seconds=100, max_attempts=3)


def run(seconds: float, *, repairs: int = 0, items: int = 1) -> FlowRun:
    """One that has been `Running` for so long."""
    state = Running(timestamp=datetime.now(UTC) - timedelta(seconds=seconds))
    parameters = {"items": [{"plan_key": KEY}] * items, "repairs": ["ab" * 32] * repairs}
    return FlowRun(flow_id=uuid4(), state=state, parameters=parameters)


def attempt(seconds: float) -> str:
    """The name of an attempt that began so long ago."""
    return f"{int((time.time() - seconds) * 1000):013x}-12345678"


def record(seconds: float, **standing: object) -> dict[str, Standing]:
    return {KEY: Standing("night", since=time.time() - seconds, **standing)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "standings", "works"),
    [
        (5, dict, True),  # loads its model
        (20, dict, False),  # it never came to anything
        (999, lambda: record(0, live={attempt(900): time.time()}), True),
        (999, lambda: record(11, lapsed=[attempt(900)]), False),  # killed at it
        (5, lambda: record(500, lapsed=[attempt(900)]), True),  # that was another run
        (999, lambda: record(150, states={attempt(900): "failed"}), True),  # waits before the next try
        (999, lambda: record(450, states={attempt(900): "failed"}), False),
        (999, lambda: record(9, done="ab" * 32), True),  # between two videos
        (999, lambda: record(50, done="ab" * 32), False),
        (20, lambda: record(500, states={attempt(900): "failed"}), False),  # that was another run
    ],
)
def test_a_run_is_judged_by_what_its_videos_have_on_record(
    seconds: float, standings: Callable[[], dict[str, Standing]], works: bool
) -> None:
    assert is_under_way(run(seconds), standings(), SETTINGS) == works


def test_a_run_of_repairs_alone_has_time_for_each() -> None:
    assert is_under_way(run(500, repairs=10, items=0), {}, SETTINGS)
    assert not is_under_way(run(700, repairs=10, items=0), {}, SETTINGS)


def test_a_run_that_ended_is_over_and_one_that_waits_for_a_worker_is_not() -> None:
    ended, waiting = run(1), run(1)
    ended.state, waiting.state = Completed(), None
    assert not is_under_way(ended, {}, SETTINGS)
    assert is_under_way(waiting, {}, SETTINGS)


def test_no_pause_is_longer_than_planning_takes_it_to_be() -> None:
    assert label.LONGEST_WAIT_SECONDS * (1 + label.JITTER) <= drops.LONGEST_PAUSE_SECONDS
