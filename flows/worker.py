"""`masksieve worker`: one more machine for a server elsewhere; a watched Prefect worker, and its metrics."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from flows.api import Api
from flows.machine import in_url, rotate, threads_each, wait_for, worker
from flows.supervise import ended
from pipeline.metrics import start_metrics_server


def work(
    api: str,
    pool: str,
    *,
    workers: int,
    metrics_port: int | None,
    metrics_host: str,
    home: Path,
    tell: Callable[[str], None],
) -> None:
    """Work for a server until interrupted.

    Args:
        api: the server's address, ending in /api; a password as usual in PREFECT_API_AUTH_STRING.
        pool: whose runs to take.
        workers: runs at a time; more than one shares the device by turns (`model.slots`).
        metrics_port, metrics_host: of /metrics; port 0 for any, None for none.
        home: folder of logs and metrics.
        tell: called with a line for people.
    Raises: ServerError if nothing answers there; StorageError if the metrics' port is taken.
    """
    wait_for(Api(api), 0)
    metrics = home / "metrics"
    metrics.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    with ended() as supervisor:
        for number in range(workers):
            name = f"{socket.gethostname()}-{number + 1}"
            log_file = home / "logs" / f"{name}.log"
            supervisor.start(worker(name, pool, api, environment, log_file, limit=1, threads=threads_each(workers)))
            tell(f"worker {name} takes runs of {pool}; log {log_file}")
        if metrics_port is not None:
            server = start_metrics_server(metrics_port, metrics, metrics_host)
            tell(f"metrics   http://{in_url(metrics_host)}:{server.port}/metrics")
        while True:
            supervisor.keep()
            rotate(*(child.log for child in supervisor.children))
            time.sleep(1)
