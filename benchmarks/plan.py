"""How long planning takes, and how much memory: drops of 1,000 to 100,000 videos, nine in ten of them done.

    python benchmarks/plan.py                       # a simulated store: names, sizes and times out of thin air
    python benchmarks/plan.py --local 10000 --videos 10000

Each size runs in a process of its own, whose anonymous memory is read at the end of the run and at its peak.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from memory import watched_memory

from pipeline.fact_settings import settings_digest
from pipeline.plan import plan_drop, write_plan
from pipeline.settings import Settings
from pipeline.storage.download import Entry
from pipeline.storage.objects import ObjectStore
from pipeline.work import Item, WorkLog, plan_key


class Thin:
    """A backend of listings alone: what the planner asks for, and nothing else."""

    identity, no_conditions = "thin", False

    def __init__(self, url: str, folders: dict[str, list[Entry]]) -> None:
        self.url, self.folders, self.written = url, folders, 0

    def uri(self, key: str) -> str:
        return f"{self.url}/{key}"

    def path(self, key: str) -> None:
        return None

    def entries(self, prefix: str) -> Iterator[Entry]:
        yield from self.folders.get(prefix.partition("/")[0], [])

    def put(self, key: str, source: Path | bytes) -> None:
        assert isinstance(source, bytes)
        self.written += len(source)

    def delete(self, key: str) -> None:
        """Nothing is kept."""


def store(backend: Thin) -> ObjectStore:
    """An object store over it."""
    made = ObjectStore.__new__(ObjectStore)
    made.__dict__.update(ObjectStore("/nowhere").__dict__)
    made.__dict__.update(_backend=backend, url=backend.url, identity=backend.identity)
    return made


def name_of(number: int) -> str:
    return f"camera-{number % 40:02d}/2026-11-24/clip_{number:07d}.mp4"


def listing(number: int, now: float) -> tuple[Entry, Entry]:
    """A video and its prompts, uploaded hours ago; one in five hundred has a twin."""
    twin = number - number % 500 if number % 500 == 1 else number
    size = 1_000_000 + twin * 7919 % 900_000_000
    tag = f'"{hashlib.md5(str(twin).encode()).hexdigest()}"'
    video = Entry(name_of(number), size, tag, now - 7200 - number % 3600)
    return video, Entry(video.key.replace(".mp4", ".prompts.json"), 400, f'"{number:032x}"', video.modified)


def simulated(videos: int, settings: Settings) -> tuple[ObjectStore, ObjectStore]:
    """A drop and an output where 90% are done, some failed, some are live, and one label is missing."""

    now, digest = time.time(), settings_digest(settings)
    drop: list[Entry] = []
    out: dict[str, list[Entry]] = {"work": [], "commits": [], "labels": [], "review": []}
    for number in range(videos):
        video, prompts = listing(number, now)
        drop += [video, prompts]
        url = "s3://drops/night"
        key = plan_key(f"{url}/{video.key}", video, f"{url}/{prompts.key}", prompts, digest)
        video_id, folder = hashlib.sha256(str(number).encode()).hexdigest(), f"work/drop=night/{key}/"
        if number % 10:
            out["work"].append(Entry(f"{folder}done-{video_id}.json", 900, None, now - 60))
            out["commits"].append(Entry(f"commits/{video_id}/000001.json", 1200, None, now - 60))
            for layer in ("labels", "review"):
                if number != 7:
                    out[layer].append(Entry(f"{layer}/drop=night/{video_id}.parquet", 40_000, None, now - 60))
        elif number % 100 == 0:
            out["work"].append(Entry(f"{folder}attempt-{number:013x}-0.failed.json", 900, None, now - 60))
    return store(Thin("s3://drops/night", {"": drop})), store(Thin("s3://labels", out))


def local(videos: int, settings: Settings, folder: Path) -> tuple[ObjectStore, ObjectStore]:
    """The same as real files."""
    drop, out = ObjectStore(folder / "night"), ObjectStore(folder / "out")
    digest, records = settings_digest(settings), WorkLog(out, settings.drops)
    for number in range(videos):
        video = folder / "night" / name_of(number)
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(b"x" * (number % 4000 + 1))
        video.with_name(f"{video.stem}.prompts.json").write_text("{}")
    entries = {entry.key: entry for entry in drop.entries()}
    for number in range(videos):
        if number % 10:
            key = name_of(number)
            beside = key.replace(".mp4", ".prompts.json")
            uri, at = drop.uri(key), drop.uri(beside)
            item = Item(uri, at, "night", plan_key(uri, entries[key], at, entries[beside], digest))
            video_id = hashlib.sha256(str(number).encode()).hexdigest()
            for path in (
                records.done_key(item, video_id), f"commits/{video_id}/000001.json",
                f"labels/drop=night/{video_id}.parquet", f"review/drop=night/{video_id}.parquet",
            ):  # fmt: skip
                file = folder / "out" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"{}")
    return drop, out


def measure(videos: int, real: bool) -> None:
    """Plan once and print the figures as JSON."""
    settings = Settings.model_validate({"drops": {"settle_seconds": 0 if real else 60}})
    with tempfile.TemporaryDirectory(prefix="masksieve-plan-") as folder:
        drop, out = local(videos, settings, Path(folder)) if real else simulated(videos, settings)
        with watched_memory() as memory:
            started = time.perf_counter()
            plan = plan_drop(drop, out, settings)
            write_plan(out, plan)
            seconds = time.perf_counter() - started
    counts = plan.counts
    assert counts["done"] + counts["wanted"] == videos
    print(
        json.dumps(
            {
                "store": "local files" if real else "simulated", "videos": videos, "seconds": round(seconds, 2),
                "planning MB": round(memory.peak - memory.before), "process MB": round(memory.peak),
                "wanted": counts["wanted"], "batches": counts["batches"], "repairs": counts["repairs"],
            }
        )
    )  # fmt: skip


def main() -> None:
    """Every size in a process of its own, as one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="simulated drops")
    parser.add_argument("--local", type=int, nargs="*", default=[], help="drops of real files")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--real", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        measure(arguments.one, arguments.real)
        return
    rows = []
    for real, sizes in ((False, arguments.videos), (True, arguments.local)):
        for videos in sizes:
            command = [sys.executable, __file__, "--one", str(videos), *(["--real"] if real else [])]
            done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
    print(f"| {' | '.join(rows[0])} |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print(
            "| " + " | ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()) + " |"
        )


if __name__ == "__main__":
    main()
