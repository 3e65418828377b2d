"""Keeps processes alive: one that dies is started again, later each time; at the end nothing of them is left.

The supervisor adopts what its children leave behind (a worker that was killed leaves flow runs), so that the end
reaches those too, in whatever session they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

PR_SET_CHILD_SUBREAPER = 36
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
STEADY_SECONDS = 60.0
"""A process that lived so long begins with the shortest wait again."""


@dataclass
class Child:
    """One process that is kept alive.

    Args:
        name: for people, and of its log file.
        command: executable and arguments.
        environment: all of it.
        log: where its output goes, appended.
        runs_others: it starts runs, and would end them hard if it was asked to end before they have.
        restarts: how often it was started again.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    runs_others: bool = False
    restarts: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _started: float = 0.0
    _wait: float = FIRST_WAIT_SECONDS
    _not_before: float = 0.0

    @property
    def pid(self) -> int | None:
        """Of the running process; None while there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it, in a session of its own and ended with this process."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        leash = [sys.executable, "-P", "-m", "flows.leash", str(os.getpid())]
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                [*leash, *self.command], env=dict(self.environment), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self._started = time.monotonic()

    def keep(self) -> None:
        """Start it again if it ended and its wait is over."""
        if self.pid is not None:
            if time.monotonic() - self._started > STEADY_SECONDS:
                self._wait = FIRST_WAIT_SECONDS
            return
        now = time.monotonic()
        if self._process is not None:
            log.warning("%s ended with code %s; starting it again in %.0f s (its log: %s)",
                        self.name, self._process.returncode, self._wait, self.log)  # fmt: skip
            self._process, self._not_before = None, now + self._wait
            self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)
        if now >= self._not_before:
            self.restarts += 1
            self.start()


class Supervisor:
    """Starts, watches and ends children, and whatever they start.

    Attributes:
        children: in the order of their start.
        last: those that the others need to end well, such as the server that flow runs report to.
    """

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.last: Sequence[Child] = ()
        self._others = frozenset(_children(os.getpid()))  # somebody else's, who shares this process
        _adopt_orphans(True)

    def start(self, child: Child) -> Child:
        """Start one more."""
        self.children.append(child)
        child.start()
        return child

    def keep(self) -> None:
        """Start again what died, and bury adopted orphans; call it every second or so."""
        for child in self.children:
            child.keep()
        for pid in self._adopted():
            _bury(pid)

    def stop(self, grace_seconds: float = 30.0) -> None:
        """End everything: runs get SIGTERM, then their workers, then those in `last`; SIGKILL after the grace.

        A worker stands still meanwhile: it would begin another run, and end the one that puts its work down.

        Args: grace_seconds: for each of the three groups.
        """
        last = self.last
        workers = [child.pid for child in self.children if child.runs_others and child.pid is not None]
        _signal(workers, signal.SIGSTOP)
        runs = [pid for parent in workers for pid in _children(parent)] + self._adopted()
        _signal(runs, signal.SIGTERM)  # a run's own helpers are left to the run
        self._wait_for(
            lambda: [pid for pid in runs if _runs(pid)], grace_seconds,
            kill=lambda: [one for pid in runs for one in (pid, *_descendants(pid))],
        )  # fmt: skip
        _signal([child.pid for child in self.children if child not in last and child.pid is not None], signal.SIGTERM)
        _signal(workers, signal.SIGCONT)
        self._wait_for(lambda: self._alive(last), grace_seconds, kill=lambda: self._tree(last))
        _signal([child.pid for child in last if child.pid is not None], signal.SIGTERM)
        self._wait_for(lambda: self._alive(()), grace_seconds, kill=lambda: self._tree(()))
        self.children.clear()
        _adopt_orphans(False)

    def _alive(self, except_: Sequence[Child]) -> list[int]:
        for child in self.children:
            _ = child.pid  # polls, so that an ended one is no zombie below
        for pid in self._adopted():
            _bury(pid)
        spared = {child.pid for child in except_}
        return [pid for pid in self._own() if pid not in spared]

    def _tree(self, except_: Sequence[Child]) -> list[int]:
        spared = {child.pid for child in except_}
        return [pid for top in self._own() if top not in spared for pid in (top, *_descendants(top))]

    def _adopted(self) -> list[int]:
        own = {child._process.pid for child in self.children if child._process is not None}
        return [pid for pid in self._own() if pid not in own]

    def _own(self) -> list[int]:
        return [pid for pid in _children(os.getpid()) if pid not in self._others]

    def _wait_for(self, alive: Callable[[], list[int]], seconds: float, kill: Callable[[], list[int]]) -> None:
        end = time.monotonic() + seconds
        while alive() and time.monotonic() < end:
            time.sleep(0.05)
        if alive():
            log.warning("%d processes did not end within %.0f s and are killed", len(kill()), seconds)
        end = time.monotonic() + 10
        while alive() and time.monotonic() < end:  # repeatedly: what is killed leaves orphans
            _signal(kill(), signal.SIGKILL)
            time.sleep(0.05)


@contextlib.contextmanager
def ended() -> Iterator[Supervisor]:
    """A supervisor whose processes are gone after the block, however it is left; signals meanwhile change nothing."""
    supervisor = Supervisor()
    try:
        yield supervisor
    finally:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            supervisor.stop()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _adopt_orphans(yes: bool) -> None:
    """Whether orphans of this process's tree become its children, rather than init's."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0) != 0:
        log.warning("cannot adopt orphans on this system")


def _children(pid: int) -> list[int]:
    """PIDs of a process's children, of all its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(word) for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found


def _descendants(pid: int) -> list[int]:
    return [one for child in _children(pid) for one in (child, *_descendants(child))]


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _bury(pid: int) -> None:
    """Collect an adopted process that ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
