"""A time limit ends work wherever it is, once, and leaves nothing armed behind."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import pytest

from pipeline.deadline import TimeIsUp, within

Pause = Callable[[], AbstractContextManager[object]]


def _spin(pause: Pause) -> None:
    while True:
        sum(range(100))


def _swallow(pause: Pause) -> None:
    while True:
        with suppress(Exception):
            time.sleep(30)


def _join(pause: Pause) -> None:
    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
    thread = threading.Thread(target=time.sleep, args=(5,), daemon=True)
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "work",
    [
        _spin,
        _swallow,
        _join,
        lambda pause: queue.Queue[int]().get(),
        lambda pause: threading.Event().wait(),
        lambda pause: subprocess.run([sys.executable, "-c", "import time; time.sleep(20)"], check=True),
    ],
    ids=["computing", "swallowing", "joining", "queue", "event", "process"],
)
def test_work_ends_wherever_it_is(work: Callable[[Pause], object]) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="late"):
        within(0.2, work, lambda: ValueError("late"))
    assert time.monotonic() - started < 2
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert not [thread for thread in threading.enumerate() if thread.name == "masksieve-deadline" and _stays(thread)]


def _stays(thread: threading.Thread) -> bool:
    thread.join(1)
    return thread.is_alive()


def test_work_in_time_is_left_alone() -> None:
    assert within(0.3, lambda pause: "done", lambda: ValueError("late")) == "done"
    assert within(None, lambda pause: "done", lambda: ValueError("late")) == "done"
    time.sleep(0.4)


def test_an_error_of_the_work_stays_what_it_was() -> None:
    def work(pause: Pause) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        within(0.3, work, lambda: ValueError("late"))


def test_the_clock_stands_still_while_it_is_paused() -> None:
    def work(pause: Pause) -> str:
        with pause():
            time.sleep(0.5)
        return "done"

    assert within(0.3, work, lambda: ValueError("late")) == "done"


def test_a_pause_does_not_set_the_clock_back() -> None:
    def work(pause: Pause) -> None:
        for _ in range(20):
            time.sleep(0.05)
            with pause():
                pass

    with pytest.raises(ValueError, match="late"):
        within(0.3, work, lambda: ValueError("late"))


def test_a_cancellation_cleans_up_in_peace() -> None:
    cleaned = []

    def work(pause: Pause) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            time.sleep(0.5)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        within(0.2, work, lambda: ValueError("late"))
    assert cleaned == [True]


def test_it_works_in_another_thread_too() -> None:
    seen: list[object] = []

    def run() -> None:
        try:
            within(0.2, _spin, lambda: ValueError("late"))
        except BaseException as error:  # noqa: BLE001 - whatever came is looked at
            seen.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5)
    assert [type(error) for error in seen] == [ValueError]


def test_it_never_escapes_however_close_the_race() -> None:
    """Work that ends at the very moment is done or late, and never anything else."""
    ends = set()
    for step in range(60):
        limit = 0.003
        until = time.perf_counter() + limit - 0.0006 + step * 2e-5

        def work(pause: Pause, until: float = until) -> str:
            while time.perf_counter() < until:
                pass
            return "done"

        try:
            ends.add(within(limit, work, lambda: ValueError("late")))
        except ValueError:
            ends.add("late")
        except TimeIsUp:
            ends.add("escaped")
    assert "escaped" not in ends
