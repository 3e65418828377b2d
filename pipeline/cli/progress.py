"""What a person sees during long work: a bar with a rate and the time left, plain lines without a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from pipeline.cli.summary import counted, percent

if TYPE_CHECKING:
    from pipeline.label import Progress
    from pipeline.report import VideoReport

_PLAIN_EVERY_SECONDS = 20.0


class _RateColumn(ProgressColumn):
    """Frames per second of the running stage, or whatever is counted."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Nothing until there is a rate."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:5.1f} {self._unit}/s" if speed else "", style="cyan")


def _bars(console: Console, unit: str) -> Bars | None:
    """Bars for a terminal; None where plain lines take their place."""
    if not console.is_terminal:
        return None
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Bars(*columns, _RateColumn(unit), TimeRemainingColumn(), console=console, transient=True)


def _so_far(done: int, total: int, work: int, seconds: float, unit: str) -> str:
    """How far, how fast and how long still; `work` is what was done in these seconds."""
    rate = work / seconds if seconds > 0 else 0.0
    eta = f", {(total - done) / rate:.0f} s left" if rate and total else ""
    return f"{f'{done}/{total}' if total else done}, {rate:.1f} {unit}/s{eta}"


class _Drawn:
    """Bars that are there while a context is open."""

    _bars: Bars | None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


class Counter(_Drawn):
    """Shows how many of a known number of things are done; a context manager, called with each step.

    >>> with Counter(console, "harvesting", "videos") as count:
    ...     harvest_frames(dataset, models, path, deployed="tiny", progress=count)

    What was there at the first call, from an earlier run, is in the count and not in the rate.

    Args:
        console: where to draw; a bar when it is a terminal, a plain line every 20 seconds otherwise.
        what: the work. unit: what is counted, in the plural.
    """

    def __init__(self, console: Console, what: str, unit: str) -> None:
        self._console, self._what, self._unit = console, what, unit
        self._bars = _bars(console, unit)
        self._task: TaskID | None = None
        self._first: int | None = None
        self._start = self._last_line = 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        """`done` of `total` are done, and now it is about `name`."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._start, self._last_line = done, now, now
            if self._bars is not None:
                self._task = self._bars.add_task("", total=total, completed=done)
        if self._bars is not None and self._task is not None:
            text = f"{self._what} [dim]{escape(name)}[/]"
            self._bars.update(self._task, description=text, completed=done, total=total)
        elif now - self._last_line >= _PLAIN_EVERY_SECONDS:
            self._last_line = now
            far = _so_far(done, total, done - self._first, now - self._start, self._unit)
            self._console.print(escape(f"{self._what} {name}, {far}"))


class Board(_Drawn):
    """Shows the progress of several videos, one after another; a context manager.

    Args:
        console: where to draw; bars when it is a terminal, plain lines otherwise.
        num_videos: how many there will be.
    """

    def __init__(self, console: Console, num_videos: int) -> None:
        self._console, self._num_videos, self._position, self._name = console, num_videos, 0, ""
        self._bars = _bars(console, "frames")
        self._task: TaskID | None = None
        self._stage, self._stage_start, self._last_line = "", 0.0, 0.0

    def start(self, name: str) -> None:
        """A next video begins."""
        self._position += 1
        self._name, self._stage, self._last_line = name, "", time.monotonic()

    def update(self, progress: Progress) -> None:
        """A stage of the running video has come this far."""
        now = time.monotonic()
        if progress.stage != self._stage:
            self._stage, self._stage_start = progress.stage, now
            if self._bars is not None:
                if self._task is not None:
                    self._bars.remove_task(self._task)
                text = f"{self._count()}{escape(self._name)} [dim]{escape(progress.stage)}[/]"
                self._task = self._bars.add_task(text, total=progress.total or None)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=progress.done, total=progress.total or None)
        elif now - self._last_line >= _PLAIN_EVERY_SECONDS:
            self._last_line = now
            self._console.print(escape(self._plain(progress, now - self._stage_start)))

    def finish(self, report: VideoReport) -> None:
        """The running video is done, one way or the other."""
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
        self._task = None
        if report.status == "failed":
            self._console.print(f"{self._count()}{escape(self._name)} [bold red]failed[/]")
        elif report.status == "unchanged":
            self._console.print(f"{self._count()}{escape(self._name)} unchanged, already labelled this way")
        else:
            share = percent(report.accepted / report.rows if report.rows else None)
            told = [counted(report.frames, "frame"), counted(report.objects, "object"), f"{share} accepted"]
            told += ["re-decided, masks as before"] if report.status == "re-decided" else []
            line = ", ".join([*told, f"{report.wall_seconds:.1f} s"])
            self._console.print(f"{self._count()}{escape(self._name)} {line}")

    def _count(self) -> str:
        return f"({self._position}/{self._num_videos}) " if self._num_videos > 1 else ""

    def _plain(self, progress: Progress, seconds: float) -> str:
        far = _so_far(progress.done, progress.total, progress.done, seconds, "frames")
        return f"{self._count()}{self._name} {progress.stage} {far}"
