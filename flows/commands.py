"""`masksieve up`, `worker` and `deploy`: what a person types to have drops worked off without further ado."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.live import Live
from rich.text import Text

from pipeline.cli.console import FAILED, INTERRUPTED, CallError, notices, results
from pipeline.cli.label import Config, Set, overrides_of
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from flows.deployments import Schedule
    from flows.up import Standing

Drop = Annotated[str, typer.Option("--drop", help="Folder or s3:// prefix where videos arrive.")]
Out = Annotated[str, typer.Option("--out", "-o", help="Folder or s3:// prefix for the labels.")]
Cron = Annotated[
    str | None,
    typer.Option("--cron", help="When the drop is looked at, five fields, UTC.", show_default="*/10 * * * *"),
]
Every = Annotated[float | None, typer.Option("--every", help="Instead of --cron: every so many seconds.", min=1)]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Folder of the server, its logs and metrics.", show_default="~/.local/share/masksieve/prefect"
    ),
]
MetricsPort = Annotated[int, typer.Option("--metrics-port", help="Of /metrics; 0: any, -1: none.", min=-1, max=65535)]
Api = Annotated[
    str, typer.Option("--api", help="Address of a Prefect server, ending in /api.", envvar="PREFECT_API_URL")
]
EVERY_TEN_MINUTES = "*/10 * * * *"


def up(
    drop: Drop,
    out: Out,
    config: Config = None,
    set_: Set = None,
    workers: Annotated[int, typer.Option("--workers", "-n", help="Labelling runs at a time.", min=1, max=64)] = 1,
    port: Annotated[int, typer.Option(help="Of the server and its UI; 0: any.", min=0, max=65535)] = 4200,
    host: Annotated[str, typer.Option(help="Where server and metrics listen.")] = "127.0.0.1",
    cron: Cron = None,
    every: Every = None,
    metrics_port: MetricsPort = 9464,
    home: Home = None,
    database: Annotated[
        str | None,
        typer.Option(help="postgresql://USER:PASSWORD@HOST/NAME instead of SQLite.", envvar="MASKSIEVE_DATABASE"),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End when all is worked off; code 1 if not all is done.")
    ] = False,
) -> None:
    """Work off a drop on this machine, unattended: server, workers, schedule and metrics in one command.

    Runs until Ctrl-C or SIGTERM, and leaves nothing running then. What is done stays done: the next
    [bold]up[/] goes on where this one ended.
    """
    from flows.machine import Home as HomeFolder
    from flows.up import Machine, absolute
    from flows.up import up as run

    _one_schedule(cron, every)
    machine = Machine(
        drop=absolute(_word("--drop", drop)), out=absolute(_word("--out", out)),
        config=_config(config), set_=set_ or [], overrides=overrides_of(set_), workers=workers, host=host, port=port,
        cron=cron if every is not None else cron or EVERY_TEN_MINUTES, every_seconds=every,
        metrics_port=None if metrics_port < 0 else metrics_port, home=HomeFolder.of(home), database=database, once=once,
    )  # fmt: skip
    line = _Line()
    try:
        with line:
            standing = run(machine, line.tell, line.show)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 128 + signal.SIGTERM:
            raise
        notices().print("ended; nothing is left running, and the next `masksieve up` goes on from here", soft_wrap=True)
        raise typer.Exit(INTERRUPTED if once else 0) from None
    results().print(_sentence(standing))
    if standing.aside:
        results().print(f"what waits for people, and why: masksieve status {out}", soft_wrap=True)
        raise typer.Exit(FAILED)


def worker(
    api: Api,
    pool: Annotated[str, typer.Option(help="Work pool whose runs to take.")] = "masksieve-gpu",
    workers: Annotated[int, typer.Option("--workers", "-n", help="Runs at a time.", min=1, max=64)] = 1,
    metrics_port: MetricsPort = 9464,
    metrics_host: Annotated[str, typer.Option(help="Where /metrics listens.")] = "127.0.0.1",
    home: Home = None,
) -> None:
    """Work for a server on another machine: take its runs, start a worker that died again, serve metrics."""
    from flows.machine import Home as HomeFolder
    from flows.worker import work

    console = notices()
    work(
        api.rstrip("/"), pool, workers=workers, metrics_port=None if metrics_port < 0 else metrics_port,
        metrics_host=metrics_host, home=HomeFolder.of(home).path,
        tell=lambda line: console.print(line, markup=False, soft_wrap=True),
    )  # fmt: skip


def deploy(
    api: Api,
    drop: Drop,
    out: Out,
    config: Config = None,
    set_: Set = None,
    cron: Annotated[
        list[str] | None,
        typer.Option("--cron", help="When the drop is looked at; repeatable.", show_default="*/10 * * * *"),
    ] = None,
    every: Every = None,
    timezone: Annotated[str, typer.Option(help="Of --cron.")] = "UTC",
    no_schedule: Annotated[bool, typer.Option("--no-schedule", help="Only on events and by hand.")] = False,
    pool: Annotated[str, typer.Option(help="Of planning and deciding.")] = "masksieve",
    gpu_pool: Annotated[str, typer.Option(help="Of labelling and training.")] = "masksieve-gpu",
    replace_: Annotated[
        bool, typer.Option("--replace", help="Let the drop and the output go that the server has now.")
    ] = False,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for a server that starts.", min=0)] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Put masksieve's deployments, schedules and automations on a Prefect server; a second call changes nothing.

    Drop, labels and a settings file are named as the workers see them. Store keys stay with the workers
    (AWS_* variables, or a settings file there).
    """
    from flows.api import Api as Server
    from flows.deployments import Schedule, deploy, load_flows
    from flows.machine import wait_for

    _one_schedule(cron, every)
    schedules: list[Schedule] = []
    if every is not None:
        schedules = [Schedule(every_seconds=every)]
    elif not no_schedule:
        schedules = [Schedule(cron=one, timezone=timezone) for one in cron or [EVERY_TEN_MINUTES]]
    with _server_errors(api):
        load_flows()
        wait_for(Server(api.rstrip("/")), wait)
        found = deploy(
            api.rstrip("/"), drop=_word("--drop", drop), out=_word("--out", out), config=config,
            overrides=overrides_of(set_), schedules=schedules, pool=pool, gpu_pool=gpu_pool, replace=replace_,
        )  # fmt: skip
    if not quiet:
        for name in found:
            results().print(name)


class _Line:
    """One live line at the bottom of a terminal; elsewhere a line whenever something changed."""

    def __init__(self) -> None:
        self._console = notices()
        self._live = Live(Text("starting"), console=self._console, auto_refresh=False, transient=True)
        self._last = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def tell(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, markup=False, soft_wrap=True)

    def show(self, standing: Standing) -> None:
        """Where it stands now."""
        if self._console.is_terminal:
            self._live.update(Text(_sentence(standing), no_wrap=True, overflow="ellipsis"), refresh=True)
            return
        line = _sentence(replace(standing, runs={}))  # of a log, every plan would be two lines
        if line != self._last:
            self.tell(line)
        self._last = line


def _sentence(standing: Standing) -> str:
    """Where it stands, in one line: everything that there is, and nothing that there is not."""
    parts = [
        f"{count} {name.replace('_', ' ')}" for name, count in standing.counts.items() if count and name != "batches"
    ]
    runs = [f"{count} {state.lower()}" for state, count in standing.runs.items() if count]
    parts += [f"runs: {', '.join(runs)}"] if runs else []
    parts += [f"{standing.restarts} restarts"] if standing.restarts else []
    parts += [f"no news: {standing.trouble}"] if standing.trouble else []
    return " · ".join(parts) or "no videos yet"


def _one_schedule(cron: str | list[str] | None, every: float | None) -> None:
    if cron and every is not None:
        raise CallError("--cron or --every", "both", "leave one out")
    for one in [cron] if isinstance(cron, str) else cron or []:
        if len(one.split()) != 5:  # a server says what else is wrong with it
            raise CallError("five fields as --cron", repr(one), "write for example --cron '*/10 * * * *'")


def _word(option: str, value: str) -> str:
    """A value that is not empty."""
    if not value.strip():  # an unset shell variable, most likely
        raise SettingsError(f"a value for {option}", "an empty word", "check the variable that it comes from")
    return value


def _config(config: str | None) -> str | None:
    """A settings file by its whole path, a shipped one by its name."""
    if config is None or not Path(config).expanduser().is_file():
        return config
    return str(Path(config).expanduser().resolve())


@contextmanager
def _server_errors(api: str) -> Iterator[None]:
    """A server that does not answer is a sentence, not a traceback."""
    from httpx import HTTPError

    from flows.machine import ServerError

    try:
        yield
    except HTTPError as error:
        step = "check the address (it ends in /api), and that the server runs"
        raise ServerError(
            f"a Prefect server at {api}", " ".join(str(error).split()) or type(error).__name__, step
        ) from error
