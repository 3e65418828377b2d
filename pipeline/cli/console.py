"""Two consoles (results on stdout, everything else on stderr), exit codes, and one line for every mistake."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import MasksieveError

if TYPE_CHECKING:
    from pipeline.drops import Wanted

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class CallError(MasksieveError):
    """The call itself is wrong: a word of it names nothing, or cannot be read."""


@contextmanager
def reading_the_call(kind: type[MasksieveError] = MasksieveError) -> Iterator[None]:
    """Errors of this kind inside the block are mistakes of the call, not failures of the work."""
    try:
        yield
    except kind as error:
        raise CallError(error.expected, error.got, error.next_step) from error


def exit_code(wanted: Sequence[Wanted], *, failed: bool) -> int:
    """0 when all is done, 1 when something failed, 2 when nothing that was named could even be tried."""
    if wanted and all(one.error is not None for one in wanted):
        return USAGE
    return FAILED if failed else OK


def results() -> Console:
    """Where a command's result goes: stdout; wide enough for its tables when it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(120, console.width))


def notices() -> Console:
    """Where progress, hints and errors go: stderr, never wrapped when it is no terminal."""
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, highlight=False, width=10_000)


def plain_table() -> Table:
    """A table without lines, as every command prints them."""
    return Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))


def start_logging(*, debug: bool) -> None:
    """Send the library's warnings (everything with --debug) to stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s" if debug else "warning: %(message)s"))
    for name in ("pipeline", "usam"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG if debug else logging.WARNING)
        logger.propagate = False


def one_line(error: BaseException) -> str:
    """What went wrong in one line; the class is named only where the message is not ours."""
    text = " ".join(str(error).split())
    if isinstance(error, MasksieveError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def complain(message: str, *, hint: str | None = None) -> None:
    """One line on stderr, and one more with a hint where there is one."""
    console = notices()
    console.print(f"[bold red]masksieve:[/] {escape(message)}", soft_wrap=True)
    if hint:
        console.print(f"[dim]{escape(hint)}[/]", soft_wrap=True)


def debug_asked() -> bool:
    """Whether this process was called with --debug."""
    return "--debug" in sys.argv or logging.getLogger("pipeline").level == logging.DEBUG
