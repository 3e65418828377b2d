"""What flows cost: seconds per video over the plain job, and how much a second worker brings.

`python benchmarks/workers.py [--clips 16] [--frames 48] [--short 50] [--runs 2] [--only overhead|scaling]` prints two
tables. Overhead: a batch of short clips labelled by the `label` flow against a real server, the same clips by
`label_video`, and as many tasks that do nothing; in one process with the model loaded, alternating. The server runs on
the same cores, as on a machine of one's own, and what it computes meanwhile is told. Scaling: the same clips submitted
in four flow runs to one worker and to two, each pinned to one core (its runs and decoders inherit that), alternating;
time runs from the submission to the end of the last video, so the start of each run counts. The server takes its time
from whatever core there is: with two workers, from theirs.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.api import Api
from flows.deployments import GPU_POOL, LABEL, deploy
from flows.machine import START_SECONDS, Home, base_environment, free_port, server, wait_for, worker
from flows.supervise import Supervisor, ended
from pipeline.demo import make_drop
from pipeline.label import label_video
from pipeline.models import LoadedModel, load_model
from pipeline.settings import Settings, load_settings
from pipeline.work import Item

OVERRIDES = {"drops.settle_seconds": 0.0, "output.checkpoint_seconds": None}


def make_clips(folder: Path, count: int, frames: int) -> list[Item]:
    """Drawn clips, each of other bytes; a box that players skip tells the copies apart."""
    source = folder.with_name(f"{folder.name}-clips")
    make_drop(source, num_frames=frames)
    folder.mkdir()
    items = []
    for number, clip in enumerate(itertools.islice(itertools.cycle(sorted(source.glob("*.mp4"))), count)):
        name, box = folder / f"v{number:03d}.mp4", f"{number:08d}".encode()
        name.write_bytes(clip.read_bytes() + struct.pack(">I4s", 8 + len(box), b"free") + box)
        prompts = name.with_name(f"{name.stem}.prompts.json")
        shutil.copy(clip.with_name(f"{clip.stem}.prompts.json"), prompts)
        items.append(Item(str(name), str(prompts), folder.name, f"{number:064x}"))
    return items


@contextmanager
def running_server(root: Path) -> Iterator[tuple[Supervisor, Home, str]]:
    """A Prefect server of its own, with the deployments."""
    home, port = Home(root / "home"), free_port()
    home.path.mkdir(parents=True)
    with ended() as supervisor:
        served = supervisor.start(server(home, "127.0.0.1", port, None))
        supervisor.last = (served,)
        api = f"http://127.0.0.1:{port}/api"
        wait_for(Api(api), child=served)
        yield supervisor, home, api


def overhead(root: Path, count: int, runs: int) -> Table:
    """The flow against the plain job and against tasks that do nothing, alternating."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    import flows.label

    items = make_clips(root / "short", count, 8)
    settings = load_settings(None, OVERRIDES)
    model = load_model(settings.model.name)
    flows.label._model = lambda *key: model  # type: ignore[assignment]  # loaded on both sides
    found: dict[str, list[tuple[float, float, float]]] = {}
    with running_server(root) as (supervisor, _, api), temporary_settings({PREFECT_API_URL: api}):
        pids = (os.getpid(), supervisor.last[0].pid or 0)
        for run in range(runs + 1):  # the first round warms all of them up
            for side, work in sides(root, items, settings, model, run).items():
                started, before = time.perf_counter(), [cpu_seconds(pid) for pid in pids]
                work()
                drain()
                wall = time.perf_counter() - started
                own, server_ = (cpu_seconds(pid) - then for pid, then in zip(pids, before, strict=True))
                if run:
                    found.setdefault(side, []).append((wall / count, own / count, server_ / count))
    found["flow over plain job"] = [
        (flow[0] - plain[0], flow[1] - plain[1], flow[2] - plain[2])
        for flow, plain in zip(found["label flow"], found["label_video"], strict=True)
    ]
    cores = len(os.sched_getaffinity(0))
    title = f"s per video: {count} clips of 8 frames, median of {runs}, the server on the same {cores} cores"
    table = Table("", "wall", "from", "to", "CPU", "CPU of the server", title=title)
    for side, figures in found.items():
        walls, own_cpu, server_cpu = zip(*figures, strict=True)
        cells = (statistics.median(walls), min(walls), max(walls), statistics.median(own_cpu))
        table.add_row(side, *(f"{cell:.3f}" for cell in (*cells, statistics.median(server_cpu))))
    return table


def drain() -> None:
    """Wait until the server has what a run told it: events (task runs among them) and logs."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for service in (EventsWorker, APILogWorker):
        service.drain_all(timeout=60, at_exit=False)


def sides(
    root: Path, items: list[Item], settings: Settings, model: LoadedModel, run: int
) -> dict[str, Callable[[], object]]:
    """The same clips labelled by the job alone and by the flow, into outputs of their own; and as many empty tasks."""
    from prefect import flow, task

    from flows.label import label_batch

    def plain() -> None:
        for item in items:
            label_video(
                item.video, item.prompts, str(root / f"plain-{run}"), settings, drop=item.drop,
                model=model, keep_first=True,
            )  # fmt: skip

    def flow_run() -> None:
        label_batch([dataclasses.asdict(item) for item in items], str(root / f"flow-{run}"), overrides=OVERRIDES)

    @task(persist_result=False)
    def nothing() -> None:
        pass

    @flow(name="empty", persist_result=False)
    def empty() -> None:
        for _ in items:
            nothing()

    return {"label_video": plain, "label flow": flow_run, "empty tasks": empty}


def scaling(root: Path, count: int, frames: int, runs: int, batches: int = 4) -> Table:
    """Videos a minute of one pinned worker and of two."""
    items = make_clips(root / "clips", count, frames)
    cores, taskset = sorted(os.sched_getaffinity(0))[:2], shutil.which("taskset")
    if len(cores) < 2 or taskset is None:
        raise SystemExit("scaling needs two cores and taskset")
    walls: dict[int, list[float]] = {1: [], 2: []}
    for run, workers in itertools.product(range(runs), (1, 2)):
        out = root / f"out-{run}-{workers}"
        with running_server(root / f"server-{run}-{workers}") as (supervisor, home, api):
            deploy(api, drop=str(root), out=str(out), overrides=OVERRIDES, schedules=(), reviews=None)
            environment = {**base_environment(home), "OMP_NUM_THREADS": "1"}
            for core in cores[:workers]:
                child = worker(f"core-{core}", GPU_POOL, api, environment, home.log(f"core-{core}"), limit=1)
                child.command = [taskset, "-c", str(core), *child.command]
                supervisor.start(child)
            ready(api, workers)
            started = time.time()
            submit(api, items, out, batches)
            walls[workers].append(finished(out, count) - started)
    title = f"{count} clips of {frames} frames in {batches} runs, a core for each worker, median of {runs}"
    table = Table("workers", "s", "videos/min", "ratio", title=title)
    first = statistics.median(walls[1])
    for workers, found in walls.items():
        wall = statistics.median(found)
        table.add_row(str(workers), f"{wall:.1f}", f"{60 * count / wall:.1f}", f"{first / wall:.2f}")
    return table


def ready(api: str, workers: int) -> None:
    """Wait until so many workers ask for runs."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        end = time.monotonic() + START_SECONDS
        while len(client.read_workers_for_work_pool(GPU_POOL)) < workers:
            if time.monotonic() > end:
                raise SystemExit(f"not all of {workers} workers came within {START_SECONDS:g} s")
            time.sleep(0.5)


def submit(api: str, items: list[Item], out: Path, batches: int) -> None:
    """The clips as flow runs of equal size."""
    from prefect.deployments import run_deployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}):
        for batch in range(batches):
            part = [dataclasses.asdict(item) for item in items[batch::batches]]
            run_deployment(LABEL, parameters={"items": part, "out": str(out), "overrides": OVERRIDES}, timeout=0)


def finished(out: Path, count: int, patience_seconds: float = 900.0) -> float:
    """When the last video was on record as done, Unix time in s."""
    end = time.monotonic() + patience_seconds
    while len(found := list(out.glob("work/*/*/done-*.json"))) < count:
        if time.monotonic() > end:
            raise SystemExit(f"not all of {count} clips are done after {patience_seconds:g} s")
        time.sleep(0.5)
    return max(file.stat().st_mtime for file in found)


def cpu_seconds(pid: int) -> float:
    """What a process and its ended children have computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--short", type=int, default=50)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--only", choices=("overhead", "scaling"))
    options = parser.parse_args()
    console = Console(highlight=False, width=100)
    with tempfile.TemporaryDirectory(prefix="workers-", ignore_cleanup_errors=True) as folder:
        os.environ["MASKSIEVE_CACHE"] = f"{folder}/cache"
        if options.only != "scaling":
            console.print(overhead(Path(folder), options.short, options.runs))
        if options.only != "overhead":
            console.print(scaling(Path(folder), options.clips, options.frames, options.runs))


if __name__ == "__main__":
    sys.exit(main())
