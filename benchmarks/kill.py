"""Kills a running installation again and again, and holds what it made against a run that nothing disturbed.

`python benchmarks/kill.py [--kills 65] [--seed 0] [--workers 2]` starts `masksieve up`, drops small videos, and ends
processes with SIGKILL: the engine of a flow run, a worker and the server at the start of every stage (download,
probe, propagate, write, commit, route), the decoder while it streams frames, and each of them and `masksieve up`
itself (which is started again) at random moments. Every kill is logged with the stage that it hit. Then it waits
until the drop is worked off, removes orphans, labels the same videos once more in peace and compares: SHA-256 of
facts, labels, review lists and pictures, one generation and one done record per video, no row twice, nothing left
over. It prints both tables and exits 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.demo import make_drop
from pipeline.label import label_video
from pipeline.ledger import Ledger
from pipeline.models import load_model
from pipeline.settings import DropSettings, load_settings
from pipeline.storage.objects import ObjectStore
from pipeline.work import WorkLog

HERE = Path(__file__).resolve().parent
STAGES = ("download", "probe", "propagate", "write", "commit", "route")
TARGETS = ("engine", "worker", "server")
RANDOM_TARGETS = ("engine", "decoder", "up", "worker", "decoder", "server", "decoder", "up")
SETTINGS = {
    "drops.settle_seconds": 0.3, "drops.lease_seconds": 4.0, "drops.retry_seconds": 0.5, "drops.batch_videos": 4,
    "drops.max_attempts": 5, "output.checkpoint_seconds": 0.0, "decode.queue_frames": 2,
}  # fmt: skip
PATIENCE_SECONDS = 240.0


class Videos:
    """An endless supply of small videos: three drawn clips, each copy with other bytes and the same frames."""

    def __init__(self, folder: Path, drop: Path, frames: int) -> None:
        make_drop(folder, num_frames=frames)
        self._clips = itertools.cycle(sorted(folder.glob("*.mp4")))
        self._drop, self.names = drop, list[str]()

    def drop(self, count: int) -> None:
        """Put so many more into the drop; a box that players skip tells them apart."""
        for clip in itertools.islice(self._clips, count):
            name = f"v{len(self.names):03d}"
            box = name.encode()
            staged = self._drop / f".{name}.mp4"
            staged.write_bytes(clip.read_bytes() + struct.pack(">I4s", 8 + len(box), b"free") + box)
            prompts = clip.with_name(f"{clip.stem}.prompts.json")
            shutil.copy(prompts, self._drop / f"{name}.prompts.json")
            staged.rename(self._drop / f"{name}.mp4")
            self.names.append(name)


class Installation:
    """`masksieve up` in a folder of its own, whose processes can be found and ended."""

    def __init__(self, root: Path, drop: Path, out: Path, workers: int) -> None:
        self.root, self.kills = root, root / "kills"
        self.kills.mkdir()
        self._log = (root / "up.log").open("wb")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._environment = {
            **os.environ, "MASKSIEVE_KILLS": str(self.kills), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{HERE / 'kill_hook'}{os.pathsep}{HERE.parent}", "TMPDIR": str(root / "tmp"),
            "MASKSIEVE_CACHE": str(root / "cache"),
        }  # fmt: skip
        (root / "tmp").mkdir()
        words = [sys.executable, "-m", "flows.cli", "up", "--drop", drop, "--out", out, "--home", root / "home"]
        words += ["--port", port, "--workers", workers, "--every", "8", "--metrics-port", "0"]
        for key, value in SETTINGS.items():
            words += ["--set", f"{key}={value}"]
        self._command = [str(word) for word in words]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command, env=self._environment, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
            cwd=self.root,
        )  # fmt: skip

    def alive(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        return (self.root / "up.log").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """Ask it to end; what will not is ended with its process group."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def descendants(self) -> dict[int, str]:
        """Command lines of all processes that it started, by pid; those whose parents died too."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                environment = (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"MASKSIEVE_KILLS={self.kills}".encode() in environment.split(b"\0"):
                found[int(folder.name)] = command
        found.pop(self._process.pid, None)
        return found

    def pids(self, target: str) -> list[int]:
        """Of the processes of one kind."""
        words = {
            "engine": "prefect.engine",
            "worker": "worker start",
            "server": "flows.server",
            "decoder": "pipeline.video",
        }
        return [pid for pid, command in self.descendants().items() if words[target] in command]

    def stages(self) -> dict[int, dict[str, Any]]:
        """The last stage that each process told."""
        path = self.kills / "stages.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return {line["pid"]: line for line in map(json.loads, lines)}

    def taken(self) -> list[dict[str, Any]]:
        """The kills so far."""
        path = self.kills / "kills.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def note_server(self) -> None:
        """Where the hook finds the server."""
        if pids := self.pids("server"):
            staged = self.kills / ".server.pid"
            staged.write_text(str(pids[0]))
            staged.rename(self.kills / "server.pid")

    def strike(self, target: str, rng: random.Random) -> bool:
        """End one process of a kind now, whatever it is doing."""
        pids = [self._process.pid] if target == "up" else self.pids(target)
        if not pids:
            return False
        pid = rng.choice(pids)
        running = {key: line for key, line in self.stages().items() if key in self.descendants()}
        line = running.get(pid) or max(running.values(), key=lambda one: one["at"], default={"stage": "idle"})
        os.kill(pid, signal.SIGKILL)
        with (self.kills / "kills.jsonl").open("a") as out:
            kill = {**line, "target": target, "how": "random", "pid": pid, "at": time.time()}
            out.write(json.dumps(kill) + "\n")
        if target == "up":
            self._process.wait()
            self._process = self._start()  # as systemd would
        return True


def plan_kills(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Kills as (target, stage), every target at every stage alike, and some of stage "random", for any moment."""
    boundary = [(target, stage) for stage in STAGES for target in TARGETS] + [("decoder", "propagate")]
    rounds = max(1, (count - len(RANDOM_TARGETS)) // len(boundary))
    kills = boundary * rounds
    random_targets = itertools.cycle(RANDOM_TARGETS)
    kills += [(next(random_targets), "random") for _ in range(max(len(RANDOM_TARGETS), count - len(kills)))]
    rng.shuffle(kills)
    return kills


def waiting(work: WorkLog, videos: Videos) -> int:
    """How many videos are not done."""
    return len(videos.names) - sum(standing.done is not None for standing in work.standings().values())


def run_kills(
    up: Installation, videos: Videos, work: WorkLog, kills: list[tuple[str, str]], rng: random.Random
) -> None:
    """Strike as planned, with work always at hand."""
    console = Console(stderr=True, highlight=False)
    for number, (target, stage) in enumerate(kills):
        while waiting(work, videos) < 6:
            videos.drop(3)
        before, end = len(up.taken()), time.monotonic() + PATIENCE_SECONDS
        if stage != "random":
            (up.kills / f"arm-{number:03d}.json").write_text(json.dumps({"target": target, "stage": stage}))
        else:
            time.sleep(rng.uniform(0.0, 6.0))
        while len(up.taken()) == before:
            up.note_server()
            if stage == "random":
                up.strike(target, rng)
            elif waiting(work, videos) < 3:
                videos.drop(3)
            if time.monotonic() > end or not up.alive():
                raise SystemExit(f"no kill of {target} at {stage} in {PATIENCE_SECONDS:g} s:\n{up.said()}")
            time.sleep(0.05)
        console.print(f"kill {number + 1}/{len(kills)}: {target} at {up.taken()[-1]['stage']}")


def wait_until_done(up: Installation, videos: Videos, work: WorkLog) -> float:
    """Seconds until nothing is left to do."""
    start = time.monotonic()
    while waiting(work, videos):
        if time.monotonic() - start > 900 or not up.alive():
            raise SystemExit(f"{waiting(work, videos)} videos are not done after 900 s:\n{up.said()}")
        time.sleep(0.5)
    return time.monotonic() - start


def facts_of(out: Path) -> dict[str, str]:
    """SHA-256 of everything that a reader sees: facts by their commit, the rest by its key."""
    store = ObjectStore(out)
    found = {}
    for key in store.list():
        layer = key.split("/", 1)[0]
        if key.endswith("/timeline.png"):  # of a run, for its page on the server
            continue
        if layer in ("labels", "review", "review_images"):
            found[key] = hashlib.sha256(store.get(key)).hexdigest()
        elif layer == "commits":
            commit = json.loads(store.get(key))
            for file in commit["files"]:
                named = f"{file['layer']} of {commit['video_id']} generation {commit['generation']}"
                found[named] = hashlib.sha256(store.get(file["key"])).hexdigest()
    return found


def rows_twice(out: Path) -> int:
    """Rows that a reader with a glob sees more than once."""
    import pandas as pd

    rows = pd.read_parquet(out / "labels", columns=["video_id", "frame_index", "object_id"])
    return int(rows.duplicated().sum())


def label_in_peace(drop: Path, out: Path, names: list[str]) -> None:
    """The same videos, nothing in the way."""
    settings = load_settings(None, SETTINGS)
    model = load_model(settings.model.name)
    for name in names:
        prompts = drop / f"{name}.prompts.json"
        label_video(str(drop / f"{name}.mp4"), prompts, str(out), settings, drop=drop.name, model=model)


def orphans(out: Path) -> list[str]:
    """Facts that no commit names, and temporaries."""
    named = {file.key for commit in commits(out) for file in commit.files}
    facts = {key for key in ObjectStore(out).list() if key.split("/", 1)[0] in ("masks", "candidates", "tokens")}
    return sorted(facts - named) + [str(path) for path in out.rglob(".*.tmp")]


def commits(out: Path) -> Iterator[Any]:
    """All of an output."""
    ledger = Ledger(ObjectStore(out))
    for folder in sorted((out / "commits").iterdir()):
        for generation in ledger.generations(folder.name):
            yield ledger.read(folder.name, generation)


@contextmanager
def workshop(keep: str | None) -> Iterator[Path]:
    """A folder for it all."""
    if keep is not None:
        root = Path(keep).resolve()
        root.mkdir(parents=True)
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def main() -> None:
    """Run it all and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=65)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--keep", help="a new folder to keep everything in")
    options = parser.parse_args()
    rng, console = random.Random(options.seed), Console(highlight=False, width=120)
    with workshop(options.keep) as root:
        drop, out = root / "drop", root / "out"
        drop.mkdir()
        videos = Videos(root / "clips", drop, options.frames)
        videos.drop(8)
        work = WorkLog(ObjectStore(out), DropSettings(lease_seconds=SETTINGS["drops.lease_seconds"]))
        started = time.monotonic()
        up = Installation(root, drop, out, options.workers)
        try:
            run_kills(up, videos, work, plan_kills(options.kills, rng), rng)
            recovery = wait_until_done(up, videos, work)
            kills = up.taken()
        finally:
            up.close()
        wall = time.monotonic() - started
        left = up.descendants()
        before = orphans(out)
        clean = [sys.executable, "-m", "pipeline.cli", "gc", str(out), "--apply", "--older-than", "0", "--json"]
        subprocess.run(clean, check=True, stdout=subprocess.DEVNULL)
        killed = root / "killed"
        out.rename(killed)
        label_in_peace(drop, out, videos.names)
        disturbed, peaceful = facts_of(killed), facts_of(out)
        generations = Counter(commit.video_id for commit in commits(killed))
        standings = WorkLog(ObjectStore(killed), DropSettings()).standings().values()
        checks = {
            "objects that differ from the undisturbed run": sum(
                disturbed.get(key) != peaceful.get(key) for key in disturbed.keys() | peaceful.keys()
            ),
            "objects compared": len(peaceful),
            "videos with more than one generation": sum(count > 1 for count in generations.values()),
            "videos without a done record": len(videos.names) - sum(one.done is not None for one in standings),
            "quarantined": sum(one.quarantined for one in standings),
            "attempts left on record": sum(len(one.states) + len(one.live) + len(one.lapsed) for one in standings),
            "rows seen twice": rows_twice(killed),
            "orphans before gc": len(before),
            "orphans after gc": len(orphans(killed)),
            "processes left": len(left),
            "scratch folders left": len([one for one in (root / "tmp").glob("masksieve-*") if "slots" not in one.name]),
        }
    tell(console, kills, checks, len(videos.names), wall, recovery)
    harmless = ("objects compared", "orphans before gc")
    sys.exit(any(value for name, value in checks.items() if name not in harmless) or not checks["objects compared"])


def tell(
    console: Console, kills: list[dict[str, Any]], checks: dict[str, int], videos: int, wall: float, recovery: float
) -> None:
    """Both tables."""
    hit = Counter((kill["target"], kill["stage"]) for kill in kills)
    seen = [*STAGES, *sorted({kill["stage"] for kill in kills} - set(STAGES))]
    table = Table("killed", *seen, "random moments", title=f"{len(kills)} kills, {videos} videos, {wall:.0f} s")
    for target in (*TARGETS, "decoder", "up"):
        random_moments = sum(kill["target"] == target and kill["how"] == "random" for kill in kills)
        table.add_row(target, *[str(hit[target, stage]) for stage in seen], str(random_moments))
    console.print(table)
    table = Table("afterwards", "", title=f"worked off {recovery:.0f} s after the last kill")
    for name, value in checks.items():
        table.add_row(name, str(value))
    console.print(table)


if __name__ == "__main__":
    main()
