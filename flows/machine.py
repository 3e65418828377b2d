"""The processes of one machine: a Prefect server with a home of its own, and workers; command and environment."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from flows.api import Api
from flows.supervise import Child
from pipeline.errors import MasksieveError, SettingsError

log = logging.getLogger(__name__)

START_SECONDS = 180.0
"""A server that migrates a new database on a busy machine takes half a minute."""
POLL_SECONDS = 2.0
"""How often a worker asks for runs."""
LOG_BYTES = 20 << 20
"""A log file that has grown larger is put aside, and the one before it goes."""
AUTH = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")
"""USER:PASSWORD that the server asks for, and that its clients give."""


class ServerError(MasksieveError):
    """A Prefect server that does not start or does not answer."""


@dataclass(frozen=True)
class Home:
    """The folder of one machine's server: its database, its logs, and a lock that says whether it runs.

    Args:
        path: the folder.
    """

    path: Path

    @classmethod
    def of(cls, path: str | Path | None) -> Home:
        """At a path; None for ~/.local/share/masksieve/prefect."""
        share = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
        return cls(Path(path).expanduser().resolve() if path is not None else share / "masksieve" / "prefect")

    def log(self, name: str) -> Path:
        """The log file of a process; one that has grown large is put aside first."""
        file = self.path / "logs" / f"{name}.log"
        rotate(file)
        return file

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Callable[[str], None]]:
        """Hold the home for this process; the kernel lets go of it however the process ends.

        Yields: call it with the server's address, which a second caller is told.
        Raises: SettingsError if another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "up.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                told = _told(lock.read())
                step = "stop it first (Ctrl-C or SIGTERM), or give another --home"
                raise SettingsError(f"nothing that runs in {self.path}", told, step) from None

            def say(url: str) -> None:
                lock.truncate(0)
                lock.write(json.dumps({"pid": os.getpid(), "url": url}))
                lock.flush()

            say("a port of its own")
            yield say


def _told(text: str) -> str:
    """Who holds a home, for people."""
    try:
        body = json.loads(text)
        return f"masksieve up with PID {body['pid']} at {body['url']}"
    except (ValueError, KeyError, TypeError):
        return "another masksieve up"


def rotate(*logs: Path) -> None:
    """Put aside what a log file holds that has grown large; its process writes on, into the file that is empty now.

    Lines that come between the copy and the emptying are lost.
    """
    for file in logs:
        with contextlib.suppress(OSError):
            if file.stat().st_size > LOG_BYTES:
                shutil.copyfile(file, file.with_suffix(".log.1"))
                os.truncate(file, 0)


def in_url(host: str) -> str:
    """The host part of a URL by which this machine reaches what listens at an address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def open_to_others(host: str) -> bool:
    """Whether other machines may reach what listens there; a name that is not localhost counts as one of theirs."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def require_port(host: str, port: int, option: str) -> None:
    """Raises: SettingsError if nothing can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            step = f"give another {option}, or 0 for any that is free"
            raise SettingsError(f"a free port for {option}", f"{host}:{port} ({error})", step) from error


def database_url(given: str) -> str:
    """A PostgreSQL address as the server's driver wants it.

    Raises: SettingsError that never shows the password.
    """
    scheme, _, rest = given.partition("://")
    if scheme in ("postgresql", "postgres", "postgresql+asyncpg") and rest:
        return f"postgresql+asyncpg://{rest}"
    step = "write postgresql://USER:PASSWORD@HOST/NAME, or leave it out for SQLite"
    raise SettingsError("a PostgreSQL address as --database", f"one that begins with {scheme[:20]!r}", step)


def shown_database(url: str | None, home: Home) -> str:
    """Where the database is, without user and password."""
    if url is None:
        return str(home.path / "prefect.db")
    parts = urlsplit(url)
    return f"postgresql://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def base_environment(home: Home) -> dict[str, str]:
    """This process's environment without the Prefect settings of other servers, but with this one's password if any."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_") or key in AUTH}
    if AUTH[0] in kept:
        kept.setdefault(AUTH[1], kept[AUTH[0]])
    return {
        **kept,
        "PREFECT_HOME": str(home.path),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_COLORS": "false",
        "DO_NOT_TRACK": "1",
    }


def server(home: Home, host: str, port: int, database: str | None) -> Child:
    """The Prefect server with its API, UI and services.

    Args:
        home: where its SQLite file and log are.
        host, port: where it listens.
        database: a PostgreSQL address; None for SQLite.
    """
    environment = base_environment(home) | {
        # SQLite lets in one writer at a time: let the others wait.
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_UI_API_URL": "/api",  # by whatever name a browser reaches the server
    }
    if database is not None:
        environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
    command = [sys.executable, "-P", "-m", "flows.server", "start", "--host", host, "--port", str(port)]
    return Child("server", command, environment, home.log("server"))


def worker(
    name: str,
    pool: str,
    api: str,
    environment: Mapping[str, str],
    log_file: Path,
    *,
    limit: int,
    threads: int | None = None,
) -> Child:
    """A Prefect process worker.

    Args:
        name: shown in the UI.
        pool: whose runs it takes.
        api: of the server.
        environment: for it and its runs.
        log_file: of it and its runs.
        limit: runs at a time.
        threads: for each of its runs, where the environment does not say.
    """
    mine = {**environment, "PREFECT_API_URL": api}
    mine.setdefault("PREFECT_WORKER_QUERY_SECONDS", str(POLL_SECONDS))
    if threads is not None:
        mine.setdefault("OMP_NUM_THREADS", str(threads))
    command = [
        sys.executable, "-P", "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool, "--name", name,
        "--limit", str(limit), "--install-policy", "never",
    ]  # fmt: skip
    return Child(name, command, mine, log_file, runs_others=True)


def threads_each(workers: int) -> int:
    """A fair share of this machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def wait_for(api: Api, seconds: float = START_SECONDS, child: Child | None = None) -> None:
    """Wait until a server answers.

    Args:   seconds: at most so long; child: the server's process, if it was started here.
    Raises: ServerError, with the end of its log if it was started here, if it ended or took too long.
    """
    end = time.monotonic() + seconds
    ended = False
    while not api.healthy():
        ended = child is not None and child.pid is None
        if ended or time.monotonic() >= end:
            break
        time.sleep(0.1)
    else:
        return
    got, step = "no answer", "check the address (it ends in /api), and that the server runs"
    if child is not None:
        lines = child.log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        got = f"its end: {lines[0]}" if ended else f"none within {seconds:.0f} s: {lines[0]}"
        step = f"read {child.log}"
    raise ServerError(f"an answer from the Prefect server at {api.url}", got, step)
