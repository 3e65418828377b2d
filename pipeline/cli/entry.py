"""Puts the commands together and turns every error into one line and an exit code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

from pipeline.cli import (
    calibrate,
    demo,
    doctor,
    forget,
    gc,
    label,
    models,
    rescore,
    retry,
    retune,
    review,
    show,
    snapshot,
    status,
    sweep,
    usam,
    watch,
)
from pipeline.cli.console import FAILED, USAGE, CallError, complain, one_line, results, start_logging
from pipeline.errors import MasksieveError, SettingsError

app = typer.Typer(
    name="masksieve",
    help="Video pseudo-labels that can be trusted: SAM2 propagates masks, USAM says how wrong each probably is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("label")(label.label)
app.command("show")(show.show)
app.command("snapshot")(snapshot.snapshot)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
app.command("rescore")(rescore.rescore)
app.command("retune")(retune.retune)
app.command("sweep")(sweep.sweep)
app.command("calibrate")(calibrate.calibrate)
app.command("watch")(watch.watch)
app.command("status")(status.status)
app.command("retry")(retry.retry)
app.command("gc")(gc.gc)
app.command("forget")(forget.forget)
app.add_typer(models.app, name="models")
app.add_typer(review.app, name="review")
app.add_typer(usam.app, name="usam")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Log everything, and show tracebacks.")] = False,
) -> None:
    """Options of every command; `main` takes --debug out wherever it stands."""
    del debug


@app.command()
def version() -> None:
    """Print the version of masksieve and of the packages that decide what it computes."""
    from importlib import metadata

    console = results()
    for name in ("masksieve", "torch", "sam2", "decord", "av", "pyarrow", "numpy"):
        try:
            console.print(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            console.print(f"{name} (not installed as a distribution)")


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """A scheduler's SIGTERM ends the run like an error does, so that scratch and downloads are cleaned up."""
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line.

    Args:    argv: arguments without the program's name; None reads the process's own.
    Raises:  SystemExit: 0 all done, 1 something failed, 2 the call itself was wrong, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    start_logging(debug=debug)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)
    try:
        app([argument for argument in arguments if argument != "--debug"])
    except MasksieveError as error:
        if debug:
            raise
        complain(one_line(error))
        sys.exit(USAGE if isinstance(error, CallError | SettingsError) else FAILED)
    except Exception as error:
        if debug:
            raise
        complain(one_line(error), hint="this was not foreseen; the same call with --debug shows where it happened")
        sys.exit(FAILED)
    sys.exit(0)
