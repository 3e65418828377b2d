"""A time limit that strikes wherever the work is, in a computation, a wait or a store's answer; its clock can stop."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
AGAIN_SECONDS = 30.0
"""If nothing came of a strike (code that swallows every exception), the next one comes so much later."""


class TimeIsUp(BaseException):
    """Ends work whose time is up, past every `except Exception` on the way; `within` turns it into an error."""


class Deadline:
    """Raises TimeIsUp in the thread that started it. Work in the main thread is also woken from a wait.

    Work in another thread is ended once it runs Python code again.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._until: float | None = None
        self._stopped = False
        self._changed = threading.Condition()
        self._thread_id = threading.get_ident()
        self._main = threading.current_thread() is threading.main_thread()
        self._before: Any = None
        self._watch = threading.Thread(target=self._run, name="masksieve-deadline", daemon=True)

    def start(self) -> None:
        """Let the clock run."""
        if self._main:
            self._before = signal.signal(signal.SIGALRM, self._ring)
        self._until = time.monotonic() + self._left
        self._watch.start()

    def stop(self) -> None:
        """End it; no strike comes after this. Safe to call twice."""
        self._stopped = True
        with self._changed:
            self._changed.notify()
        if not self._main:
            _raise_in(self._thread_id, None)  # a strike that was not felt yet
        elif self._before is not None:
            signal.signal(signal.SIGALRM, self._before)
            self._before = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for the length of the block."""
        with self._changed:
            if self._until is not None:
                self._left = max(0.0, self._until - time.monotonic())
            self._until = None
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._until = time.monotonic() + self._left
                self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._stopped:
                left = None if self._until is None else self._until - time.monotonic()
                if left is None or left > 0:
                    self._changed.wait(left)
                else:
                    self._until = time.monotonic() + AGAIN_SECONDS
                    self._strike()

    def _strike(self) -> None:
        if self._main:
            signal.pthread_kill(self._thread_id, signal.SIGALRM)
        else:
            _raise_in(self._thread_id, TimeIsUp)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        unwinding = sys.exc_info()[0]
        if self._stopped or (unwinding is not None and not issubclass(unwinding, Exception)):
            return  # what ends the work already, a cancellation for one, cleans up in peace
        raise TimeIsUp


def _raise_in(thread_id: int, error: type[BaseException] | None) -> None:
    target = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), target)


def within(seconds: float | None, work: Callable[[Callable[[], Any]], T], late: Callable[[], Exception]) -> T:
    """Do some work within a time limit.

    Args:
        seconds: None for no limit.
        work: called with what makes context managers that stop the clock.
        late: the error to raise once time is up.
    Returns: what the work returns.
    """
    if seconds is None:
        return work(nullcontext)
    deadline = Deadline(min(seconds, threading.TIMEOUT_MAX))
    try:
        try:
            deadline.start()
            return work(deadline.paused)
        finally:
            deadline.stop()
    except TimeIsUp:
        deadline.stop()
        raise late() from None
