"""What a person sees while videos are labelled: a bar with frames/s and ETA, plain lines without a terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

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
    """Frames per second of the running stage."""

    def render(self, task: Task) -> Text:
        """Nothing until there is a rate."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:5.1f} frames/s" if speed else "", style="cyan")


class Board:
    """Shows the progress of several videos, one after another; a context manager.

    Args:
        console: where to draw; bars when it is a terminal, plain lines otherwise.
        num_videos: how many there will be.
    """

    def __init__(self, console: Console, num_videos: int) -> None:
        self._console, self._num_videos, self._position, self._name = console, num_videos, 0, ""
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._stage, self._stage_start, self._last_line = "", 0.0, 0.0
        if console.is_terminal:
            self._bars = Bars(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Board:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

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
        rate = progress.done / seconds if seconds > 0 else 0.0
        left = (progress.total - progress.done) / rate if rate and progress.total else None
        eta = f", {left:.0f} s left" if left is not None else ""
        of = f"{progress.done}/{progress.total}" if progress.total else f"{progress.done}"
        return f"{self._count()}{self._name} {progress.stage} {of}, {rate:.1f} frames/s{eta}"
