"""`masksieve up`: one machine works off a drop by itself; server, workers and metrics, watched and ended together."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.api import Api
from flows.deployments import DROPS, GPU_POOL, POOL
from flows.machine import (
    AUTH,
    START_SECONDS,
    Home,
    ServerError,
    base_environment,
    database_url,
    free_port,
    in_url,
    open_to_others,
    require_port,
    rotate,
    server,
    shown_database,
    threads_each,
    wait_for,
    worker,
)
from flows.supervise import Supervisor, ended
from pipeline.errors import MasksieveError, SettingsError
from pipeline.settings import Settings, load_settings, refuse_secrets
from pipeline.storage.objects import ObjectStore

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
LOOK_SECONDS = 5.0
"""How often the drop is looked at; less often where a look takes long."""
LONGEST_LOOK_SECONDS = 300.0
IDLE_PLANS = 5
"""So many plans in a row that changed nothing while nothing ran: it will not get better."""


@dataclass(frozen=True)
class Machine:
    """What `up` is asked for.

    Args:
        drop, out: folder or s3:// prefix.
        config, set_: as of every command.
        overrides: what `set_` says.
        workers: labelling runs at a time.
        host, port: of the server; port 0 for any.
        cron, every_seconds: when the drop is planned; neither: only on events.
        metrics_port: of /metrics; 0 for any, None for none.
        home: of the server.
        database: a PostgreSQL address; None for SQLite.
        once: end when the drop is worked off.
    """

    drop: str
    out: str
    config: str | None
    set_: Sequence[str]
    overrides: Mapping[str, object]
    home: Home
    workers: int = 1
    host: str = "127.0.0.1"
    port: int = 4200
    cron: str | None = None
    every_seconds: float | None = None
    metrics_port: int | None = 9464
    database: str | None = None
    once: bool = False


@dataclass(frozen=True)
class Standing:
    """What `up` tells while it runs.

    Args:
        counts: of the drop's videos by bucket, see `pipeline.plan.Plan`; empty until it was looked at.
        runs: of the server's unfinished runs by state.
        restarts: of server and workers together.
        trouble: why there is no news, None where there is.
    """

    counts: Mapping[str, int]
    runs: Mapping[str, int]
    restarts: int
    trouble: str | None

    @property
    def open(self) -> int:
        """Videos that something will still happen to by itself, and labels to be derived again."""
        return sum(self.counts.get(name, 0) for name in ("wanted", "live", "settling", "repairs"))

    @property
    def aside(self) -> int:
        """Videos that wait for a person."""
        return sum(self.counts.get(name, 0) for name in ("quarantined", "refused", "needs_prompts"))


def up(machine: Machine, tell: Callable[[str], None], show: Callable[[Standing], None]) -> Standing:
    """Run one machine until it is interrupted or, with `once`, until nothing is left to do.

    Args:
        machine: what to run.
        tell: called with a line for people.
        show: called every second or so with where it stands.
    Returns: where it stood at the end.
    Raises:  SettingsError before anything starts if something cannot work; ServerError if the server does not start.
    """
    refuse_secrets(machine.overrides)
    settings = load_settings(machine.config, machine.overrides)
    drop, out = ObjectStore(machine.drop, settings.storage), ObjectStore(machine.out, settings.storage)
    if "://" not in drop.url and not Path(drop.url).is_dir():
        raise SettingsError("a folder or s3:// prefix as --drop", f"no folder {drop.url}", "make it, or check the path")
    database = None if machine.database is None else database_url(machine.database)
    with machine.home.claimed() as say, ended() as supervisor:
        for wanted, option in ((machine.port, "--port"), (machine.metrics_port, "--metrics-port")):
            if wanted:
                require_port(machine.host, wanted, option)
        port = machine.port or free_port(machine.host)
        reach = in_url(machine.host)
        url = f"http://{reach}:{port}"
        say(url)
        if open_to_others(machine.host) and AUTH[0] not in os.environ:
            tell(f"warning: whoever reaches {machine.host} can run and read everything here; set {AUTH[0]}")
        served = supervisor.start(server(machine.home, machine.host, port, database))
        supervisor.last = (served,)
        api, environment = Api(f"{url}/api"), base_environment(machine.home)
        tell(f"starting: server at {url}, {machine.workers} workers; logs in {machine.home.path / 'logs'}")
        deploying = _deploy(machine, api, environment)
        wait_for(api, child=served)
        _require_deployed(deploying, machine.home)
        metrics = machine.home.path / "metrics"
        metrics.mkdir(exist_ok=True)
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
        for name, pool, limit in [("plan", POOL, 4), *((f"gpu-{n + 1}", GPU_POOL, 1) for n in range(machine.workers))]:
            supervisor.start(
                worker(name, pool, api.url, environment, machine.home.log(name), limit=limit,
                       threads=threads_each(machine.workers))
            )  # fmt: skip
        served_at = "not served"
        if machine.metrics_port is not None:
            from pipeline.metrics import start_metrics_server

            served_at = (
                f"http://{reach}:{start_metrics_server(machine.metrics_port, metrics, machine.host).port}/metrics"
            )
        for line in (
            f"UI        {url}",
            f"metrics   {served_at}",
            f"outputs   {machine.out}",
            f"database  {shown_database(database, machine.home)}",
        ):
            tell(line)
        return _watch(machine, settings, api, supervisor, drop, out, show)


def _watch(
    machine: Machine,
    settings: Settings,
    api: Api,
    supervisor: Supervisor,
    drop: ObjectStore,
    out: ObjectStore,
    show: Callable[[Standing], None],
) -> Standing:
    """Keep everything alive and tell how it stands, until there is nothing to do."""
    from pipeline.plan import plan_drop

    _try_run(api)
    look_at, idle, before = 0.0, 0, None
    standing = Standing({}, {}, 0, "starting")
    while True:
        supervisor.keep()
        rotate(*(child.log for child in supervisor.children))
        if time.monotonic() >= look_at:
            began = time.monotonic()
            trouble, counts, runs = None, standing.counts, standing.runs
            try:
                runs = api.counts()
                counts = plan_drop(drop, out, settings).counts
            except (MasksieveError, OSError) as error:  # a folder that is away for a moment, for one
                trouble = " ".join(str(error).split())
            took = 0.0 if trouble else time.monotonic() - began  # an answer that never came says nothing of the drop
            pause = max(1.0 if machine.once else LOOK_SECONDS, 20 * took)
            look_at = time.monotonic() + min(pause, LONGEST_LOOK_SECONDS)
            standing = Standing(counts, runs, sum(child.restarts for child in supervisor.children), trouble)
            show(standing)
            if machine.once and trouble is None:
                if not standing.open:
                    return standing
                if not any(runs.values()) and not counts["live"] and counts["wanted"] + counts["repairs"]:
                    idle = idle + 1 if counts == before else 0
                    before = counts
                    if idle >= IDLE_PLANS:
                        step = f"read the logs in {machine.home.path / 'logs'} and the runs in the UI"
                        raise ServerError("progress", f"{standing.open} videos that no run takes up", step)
                    _try_run(api)
        time.sleep(TICK_SECONDS)


def _try_run(api: Api) -> None:
    """Plan now; a server that is just being started again is asked later."""
    try:
        api.run(DROPS)
    except OSError as error:
        log.warning("could not start a plan: %s", error)


def _deploy(machine: Machine, api: Api, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Begin to put the deployments on the server, in a process of its own: it loads every flow, which this one need not
    keep, while the server starts."""
    schedule = ["--no-schedule"]
    if not machine.once and machine.every_seconds is not None:
        schedule = ["--every", str(machine.every_seconds)]
    elif not machine.once and machine.cron is not None:
        schedule = ["--cron", machine.cron]
    config = [] if machine.config is None else ["--config", machine.config]
    words = [part for word in machine.set_ for part in ("--set", word)]
    command = [sys.executable, "-P", "-m", "flows.cli", "deploy", "--quiet", "--api", api.url]
    command += ["--wait", str(START_SECONDS), "--replace"]  # the server is this machine's own
    command += ["--drop", machine.drop, "--out", machine.out, *config, *words, *schedule]
    log_file = machine.home.log("deploy")
    with log_file.open("wb") as out:
        return subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True,
            start_new_session=True,
        )  # fmt: skip


def _require_deployed(deploying: subprocess.Popen[str], home: Home) -> None:
    """Raises: ServerError if the deployments could not be made; their process has said why."""
    if code := deploying.wait():
        log_file = home.log("deploy")
        lines = log_file.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
        raise ServerError("deployments on the server", lines[-1].removeprefix("masksieve: "), f"read {log_file}")


def absolute(address: str) -> str:
    """A local path as a flow run in any folder finds it; URLs as they are."""
    return address if "://" in address else os.path.abspath(os.path.expanduser(address))
