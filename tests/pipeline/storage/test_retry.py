"""Budgets: passing errors are waited out with jitter, lasting ones are not, and time is bounded."""

from __future__ import annotations

import ssl
import threading
import time
from typing import Any

import pytest
from aiohttp import ClientPayloadError
from aiohttp.http_exceptions import ContentLengthError

from pipeline.errors import StorageError
from pipeline.storage import retry
from pipeline.storage.retry import BrokenConnection, Misread, Patience, passing, within


class Clock:
    """Time that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(retry, "time", found)
    return found


def failing(times: int) -> Any:
    left = iter([BrokenConnection("no")] * times)

    def work() -> str:
        for error in left:
            raise error
        return "done"

    return work


def test_pauses_grow_are_jittered_and_end_with_the_budget(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    longest: list[float] = []
    monkeypatch.setattr(retry.random, "uniform", lambda least, most: longest.append(most) or most * 0.9)
    patience = Patience(120.0, 60.0)
    with pytest.raises(BrokenConnection):
        patience.insist(failing(10**6))
    assert longest[:7] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]
    assert set(longest[7:]) == {10.0}
    assert sum(clock.slept) == pytest.approx(120.0)
    assert clock.slept[0] == pytest.approx(0.18)


def test_what_gets_better_in_time_is_done(clock: Clock) -> None:
    assert Patience(120.0, 60.0).insist(failing(8)) == "done"
    assert clock.slept


def test_no_budget_means_one_try(clock: Clock) -> None:
    with pytest.raises(BrokenConnection):
        Patience(0.0, 60.0).insist(failing(1))
    assert clock.slept == []


def test_a_late_try_may_not_stall_past_the_budget(clock: Clock) -> None:
    patience = Patience(10.0, 60.0)
    assert patience.stall_seconds() == 60.0
    clock.now += 7
    patience.pause(BrokenConnection("no"))
    assert 0 < patience.stall_seconds() <= 3.0
    patience.renew()
    assert patience.stall_seconds() == 60.0


def test_a_stop_ends_the_wait() -> None:
    stop = threading.Event()
    stop.set()
    patience = Patience(120.0, 60.0)
    patience.breaks = 12
    began = time.monotonic()
    patience.pause(BrokenConnection("no"), stop)
    assert time.monotonic() - began < 1


def test_a_long_wait_is_told_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BrokenConnection):
        Patience(120.0, 60.0).insist(failing(10**6))
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def answered(status: int, code: str = "") -> Exception:
    error: Any = OSError(5, "from the store")
    error.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}
    return error


def half_a_body() -> Exception:
    """What aiohttp makes of it: a cause with the status 400, which no server gave."""
    error = ClientPayloadError("Response payload is not completed")
    error.__cause__ = ContentLengthError("received 120 of 567 bytes")
    return error


@pytest.mark.parametrize("error", [
    *(answered(status) for status in (500, 502, 503, 504, 408, 429)), answered(400, "RequestTimeout"),
    answered(503, "SlowDown"), answered(400, "BadDigest"), answered(409, "ConditionalRequestConflict"),
    ConnectionResetError(104, "reset"), ConnectionRefusedError(111, "no"), TimeoutError(), EOFError(), OSError("cut"),
    BrokenConnection("cut"), half_a_body(),
])  # fmt: skip
def test_passing_errors(error: Exception) -> None:
    assert passing(error)


@pytest.mark.parametrize("error", [
    *(answered(status) for status in (400, 401, 403, 404, 412, 416, 501)), FileNotFoundError(2, "no"),
    PermissionError(13, "no"), OSError(28, "full"), OSError(30, "read-only"), ValueError("bug"), KeyError("bug"),
    StorageError("a", "b", "c"), Misread("a", "b"), NotImplementedError(), ssl.SSLCertVerificationError("no"),
])  # fmt: skip
def test_lasting_errors(error: Exception) -> None:
    assert not passing(error)


def test_a_call_that_hangs_is_left() -> None:
    with pytest.raises(BrokenConnection, match=r"nothing for 0\.05 s"):
        within(0.05, lambda: time.sleep(2))
    assert within(5, lambda: 7) == 7
    with pytest.raises(KeyError):
        within(5, lambda: {}["x"])  # type: ignore[var-annotated]
