"""What a worker has done and is doing, as Prometheus metrics; one server sums up all of its processes.

Every flow run is a process of its own. With PROMETHEUS_MULTIPROC_DIR set when they start, their counts go into files
of that folder, which `start_metrics_server` adds up; without it they stay in the process.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from pipeline.errors import StorageError

if TYPE_CHECKING:
    from pipeline.label import Progress
    from pipeline.report import VideoReport

T = TypeVar("T")
log = logging.getLogger(__name__)

REGISTRY = CollectorRegistry()
"""Of this process, for when there is no folder."""
_SECONDS = (0.05, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400)

FRAMES = Counter("masksieve_frames_total", "Frames propagated.", registry=REGISTRY)
RATE = Gauge(
    "masksieve_frames_per_second", "Frames that the running videos propagate in a second.",
    registry=REGISTRY, multiprocess_mode="livesum",
)  # fmt: skip
VIDEOS = Counter("masksieve_videos_total", "Videos by what became of them.", ["outcome"], registry=REGISTRY)
ROWS = Counter("masksieve_rows_total", "Rows of labelled videos by decision.", ["decision"], registry=REGISTRY)
FAILURES = Counter("masksieve_failures_total", "Attempts that failed, by kind of error.", ["error"], registry=REGISTRY)
QUARANTINED = Counter("masksieve_quarantined_total", "Videos put into quarantine.", registry=REGISTRY)
STAGE_SECONDS = Histogram(
    "masksieve_stage_seconds", "How long a stage of a video took.", ["stage"], registry=REGISTRY, buckets=_SECONDS
)
WAITING = Gauge(
    "masksieve_videos_waiting", "Videos of the running batches that nobody has begun.",
    registry=REGISTRY, multiprocess_mode="livesum",
)  # fmt: skip
PREFETCH_WAIT = Histogram(
    "masksieve_prefetch_wait_seconds", "How long a video's turn waited for its bytes.",
    registry=REGISTRY, buckets=_SECONDS,
)  # fmt: skip
SLOT_WAIT = Histogram(
    "masksieve_slot_wait_seconds", "How long a video waited for the device.", registry=REGISTRY, buckets=_SECONDS
)


class VideoClock:
    """Times the stages of one video from what it tells of its progress; a context manager around the video."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._since = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._turn(None)
        RATE.set(0)

    def see(self, step: Progress) -> None:
        """Take note of a step."""
        if step.stage != self._stage:
            self._turn(step.stage)
        if step.stage == "propagate":
            FRAMES.inc()
            RATE.set(step.done / max(time.monotonic() - self._since, 1e-3))

    def _turn(self, stage: str | None) -> None:
        now = time.monotonic()
        if self._stage is not None:
            STAGE_SECONDS.labels(self._stage).observe(now - self._since)
        self._stage, self._since = stage, now


@contextmanager
def waited(source: AbstractContextManager[T], seconds: Histogram) -> Iterator[T]:
    """The same context manager, telling how long it took to enter it."""
    with ExitStack() as stack:
        with seconds.time():
            entered = stack.enter_context(source)
        yield entered


def count_rows(report: VideoReport) -> None:
    """Count the rows of a video, if they are new."""
    if report.status == "labelled":
        for decision, rows in (("accept", report.accepted), ("review", report.review), ("hold", report.hold)):
            ROWS.labels(decision).inc(rows)


def count_failure(error: BaseException) -> None:
    """Count an attempt that failed."""
    FAILURES.labels(type(error).__name__).inc()


class MetricsServer:
    """Answers `/metrics` until it is closed. Made by `start_metrics_server`.

    Attributes:
        port: where it listens.
    """

    def __init__(self, port: int, folder: Path, host: str) -> None:
        registry = CollectorRegistry()
        registry.register(_Folder(folder))
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics_server(port: int, folder: Path, host: str = "127.0.0.1") -> MetricsServer:
    """Serve what all processes that wrote into a folder have counted.

    Args:
        port: 0 for any that is free.
        folder: their PROMETHEUS_MULTIPROC_DIR; made if it is missing. One server per folder.
        host: address to listen at.
    Raises: StorageError if the folder cannot be made or the port is taken.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return MetricsServer(port, folder, host)
    except OSError as error:
        got = error.strerror or str(error)
        raise StorageError(f"metrics of {folder} at {host}:{port}", got, "choose another port or folder") from error


class _Folder(Collector):
    """The sum over a folder's files. Gauges of dead processes go, their counts stay: folded into one file per type."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            self._bury()
            # Killed while it made its file, a process leaves one without a header.
            files = [str(path) for path in sorted(self._folder.glob("*.db")) if path.stat().st_size >= 8]
            yield from MultiProcessCollector.merge(files, accumulate=True)

    def describe(self) -> list[Metric]:
        return []

    def _bury(self) -> None:
        dead: dict[str, list[Path]] = defaultdict(list)
        for path in self._folder.glob("*_*.db"):
            kind, _, pid = path.stem.rpartition("_")
            if pid.isdigit() and not _alive(int(pid)):
                dead[kind].append(path)
        for kind, paths in dead.items():
            if kind in ("counter", "histogram"):
                self._fold(kind, paths)
            else:
                for path in paths:
                    path.unlink(missing_ok=True)

    def _fold(self, kind: str, paths: Iterable[Path]) -> None:
        """Add files up into one, so that their number does not grow with the number of runs."""
        folded, new = self._folder / f"{kind}_folded.db", self._folder / f"{kind}_folded.new"
        totals: dict[str, float] = defaultdict(float)
        for path in (folded, *paths):
            try:
                for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                    totals[key] += value
            except FileNotFoundError:
                continue
            except Exception as error:  # noqa: BLE001 - a file cut short by a kill must not end the telling
                log.warning("left out the metrics in %s: %s", path, error)
        new.unlink(missing_ok=True)
        file = MmapedDict(str(new))
        for key, value in totals.items():
            file.write_value(key, value, 0.0)
        file.close()
        new.rename(folded)
        for path in paths:
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
