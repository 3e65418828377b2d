"""What flows cost: a second per batch and per video over the plain job, and how much a second worker brings.

`python benchmarks/workers.py [--clips 24] [--frames 48] [--short 50] [--runs 2] [--only overhead|scaling]` prints two
tables. Overhead: a batch of short clips labelled by the `label` flow against a real server, and the same clips by
`label_video`, in one process with the model loaded, alternating. Scaling: the same clips submitted in batches to one
worker and to two, each pinned to one core (flow runs inherit that), alternating; time runs from the first video's
start to the last one's end, the server and everything else on whatever core there is.
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
from flows.machine import Home, base_environment, free_port, server, wait_for, worker
from flows.supervise import Supervisor, ended
from pipeline.demo import make_drop
from pipeline.label import label_video
from pipeline.ledger import Ledger
from pipeline.models import LoadedModel, load_model
from pipeline.settings import Settings, load_settings
from pipeline.storage.objects import ObjectStore
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
    walls: dict[str, list[float]] = {}
    with running_server(root) as (_, _, api), temporary_settings({PREFECT_API_URL: api}):
        for run in range(runs + 1):  # the first round warms all of them up
            for side, work in sides(root, items, settings, model, run).items():
                started = time.perf_counter()
                work()
                drain()
                if run:
                    walls.setdefault(side, []).append(time.perf_counter() - started)
    cores = len(os.sched_getaffinity(0))
    title = f"{count} clips of 8 frames, median of {runs}, the server on the same {cores} cores"
    table = Table("", "s per batch", "s per video", "from", "to", title=title)
    walls["flow over plain job"] = [flow - plain for flow, plain in zip(walls["label flow"], walls["label_video"])]
    for side, found in walls.items():
        seconds = [one / count for one in found]
        table.add_row(
            side, f"{statistics.median(found):.1f}", f"{statistics.median(seconds):.3f}",
            f"{min(seconds):.3f}", f"{max(seconds):.3f}",
        )  # fmt: skip
    return table


def drain() -> None:
    """Wait until the server has what a run told it: events (task runs among them) and logs."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=60, at_exit=False)


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
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("scaling needs two cores")
    walls: dict[int, list[float]] = {1: [], 2: []}
    for run, workers in itertools.product(range(runs), (1, 2)):
        out = root / f"out-{run}-{workers}"
        with running_server(root / f"server-{run}-{workers}") as (supervisor, home, api):
            deploy(api, drop=str(root), out=str(out), overrides=OVERRIDES, schedules=(), reviews=None)
            environment = {**base_environment(home), "OMP_NUM_THREADS": "1"}
            for core in cores[:workers]:
                child = worker(f"core-{core}", GPU_POOL, api, environment, home.log(f"core-{core}"), limit=1)
                child.command = ["taskset", "-c", str(core), *child.command]
                supervisor.start(child)
            submit(api, items, out, batches)
            walls[workers].append(watch(out, count))
    table = Table("workers", "s", "videos/min", "ratio", title=f"{count} clips of {frames} frames, median of {runs}")
    first = statistics.median(walls[1])
    for workers, found in walls.items():
        wall = statistics.median(found)
        table.add_row(str(workers), f"{wall:.1f}", f"{60 * count / wall:.1f}", f"{first / wall:.2f}")
    return table


def submit(api: str, items: list[Item], out: Path, batches: int) -> None:
    """The clips as flow runs of equal size."""
    from prefect.deployments import run_deployment
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}):
        for batch in range(batches):
            part = [dataclasses.asdict(item) for item in items[batch::batches]]
            run_deployment(LABEL, parameters={"items": part, "out": str(out), "overrides": OVERRIDES}, timeout=0)


def watch(out: Path, count: int, patience_seconds: float = 900.0) -> float:
    """Seconds from the start of the first video to the end of the last, by the commits."""
    end = time.monotonic() + patience_seconds
    while len(list(out.glob("work/*/*/done-*.json"))) < count:
        if time.monotonic() > end:
            raise SystemExit(f"not all of {count} clips are done after {patience_seconds:g} s")
        time.sleep(0.5)
    ledger = Ledger(ObjectStore(out))
    commits = [ledger.newest(folder.name) for folder in (out / "commits").iterdir()]
    found = [commit for commit in commits if commit is not None]
    last, first = max(one.finished_at for one in found), min(one.started_at for one in found)
    return (last - first).total_seconds()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24)
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
