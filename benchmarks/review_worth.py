"""What an answer is worth: mean IoU of a drop over answers and reviewer seconds, by our order and by a random one.

    python benchmarks/promise_drop.py runs/worth --exam benchmarks/review_worth.yaml
    python benchmarks/review_worth.py runs/worth               # every arm of the exam; those that are done are kept
    python benchmarks/review_worth.py runs/worth --table       # the figures, and the curves as pictures

Nothing is imitated but the person: the queue hands out and is synced after each round, answers go through its database
into the output, corrections are propagated, scored, routed and committed as in `masksieve review apply`. Videos are
probed and decoded once and kept, as the small ones take longer to open than to correct; the pixels are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from numpy.typing import NDArray

from benchmarks.review_reviewer import Reviewer, Said, Videos, iou
from pipeline import rle
from pipeline.ledger import Commit, Ledger
from pipeline.models import load_model
from pipeline.records import read_metadata
from pipeline.review import carried, corrections, sync
from pipeline.review.answers import Answer
from pipeline.review.corrections import apply_answers, unfinished
from pipeline.review.editor import Editor
from pipeline.review.items import Item, about, read_items
from pipeline.review.queue import Leased, Queue
from pipeline.settings import DecodeSettings, load_settings
from pipeline.storage.manifest import derived_key
from pipeline.storage.objects import ObjectStore
from pipeline.video.probe import VideoInfo, probe_video
from pipeline.video.sample import Sample

EXAM = Path(__file__).with_name("review_worth.yaml")
Key = tuple[int, int]


@dataclass
class World:
    """One arm: its own copy of the labels and its own queue."""

    exam: dict[str, Any]
    arm: dict[str, Any]
    folder: Path
    seed: int
    videos: Videos = field(default_factory=Videos)
    masks: dict[str, tuple[int, dict[Key, NDArray[np.bool_]]]] = field(default_factory=dict)
    ious: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.settings = load_settings(None, self.exam["settings"])
        self.store = ObjectStore(str(self.folder / "out"))
        self.ledger = Ledger(self.store)
        self.queue = Queue(self.folder / "queue.sqlite", self.store.identity, self.settings.review)
        self.loaded = load_model(self.exam["model"])
        self.reviewer = Reviewer(self.exam, self.arm, self.videos, Editor(self.loaded), self.seed)
        keep_frames(self.videos)
        self.random = np.random.default_rng([7, self.seed])

    def shown(self, commit: Commit) -> dict[Key, NDArray[np.bool_]]:
        """The masks of a video now, by object and frame; a row without one has an empty mask."""
        known = self.masks.get(commit.video_id)
        if known is None or known[0] != commit.generation:
            path = self.store.path(commit.file("masks").key)
            columns = ["object_id", "frame_index", "height", "width", "rle"]
            rows = pq.read_table(path, columns=columns, partitioning=None).to_pylist()
            found = {
                (row["object_id"], row["frame_index"]): np.zeros((row["height"], row["width"]), bool)
                if row["rle"] is None
                else rle.decode(row["rle"], row["height"], row["width"])
                for row in rows
            }
            self.masks[commit.video_id] = known = (commit.generation, found)
        return known[1]

    def measure(self, video_id: str) -> None:
        """IoU of all rows of a video with the truth."""
        commit = self.ledger.newest(video_id)
        assert commit is not None
        truth = self.videos.truth(commit.video_uri)
        found = self.shown(commit)
        self.ious[video_id] = sum(iou(mask, truth[frame] == number) for (number, frame), mask in found.items())
        self.rows[video_id] = len(found)

    def accepted(self) -> int:
        """Rows that are accepted now."""
        count = 0
        for video_id in self.rows:
            commit = self.ledger.newest(video_id)
            assert commit is not None
            with self.store.open(derived_key("labels", commit.first_seen, video_id)) as raw:
                count += read_metadata(pq.read_schema(raw))["counts"]["accept"]
        return count

    def next(self) -> Leased | None:
        """The next item by the order of the arm; None once there is none that was not skipped."""
        if self.arm["order"] == "ours":
            leased = self.queue.claim("simulated")
            if leased and leased[0].item.item_id not in self.done:
                return leased[0]
            return None
        waiting = [one.item_id for found in read_items(self.store) for one in found.items]
        left = sorted(set(waiting) - self.done)
        if not left:
            return None
        return self.queue.claim("simulated", item_id=str(self.random.choice(left)))[0]

    def say(self, leased: Leased, number: int) -> Said:
        """Answer an item."""
        item = leased.item
        commit = self.ledger.newest(item.video_id)
        assert commit is not None
        assert commit.generation == item.generation
        masks = self.shown(commit)
        span = range(item.first_frame, item.last_frame + 1)
        there = {frame: masks[item.object_id, frame] for frame in span if (item.object_id, frame) in masks}
        said = self.reviewer.answer(item, there)
        self.done.add(item.item_id)
        if said.verdict == "skip":
            self.queue.skip(item.item_id, leased.lease_id, "one click does not mend it")
        else:
            self.queue.answer(leased.lease_id, self._as_answer(item, said, number, there[item.frame_index]))
        return said

    def _as_answer(self, item: Item, said: Said, number: int, shown_hw: NDArray[np.bool_]) -> Answer:
        changed = None if said.mask is None else rle.decode(said.mask.counts.encode(), item.height, item.width)
        values: dict[str, Any] = {
            **about(item), "answer_id": hashlib.sha256(f"{item.item_id}{number}".encode()).hexdigest()[:16],
            "frame_index": item.frame_index, "verdict": said.verdict, "scope": said.scope, "mask": said.mask,
            "candidate": said.candidate, "area_px": int(shown_hw.sum()),
            "iou": None if changed is None else iou(shown_hw, changed), "reviewer": "simulated",
            "answered_at": datetime.now(UTC), "seconds": said.seconds,
        }  # fmt: skip
        return Answer(**values)

    def apply(self) -> None:
        """Let the answers become facts, and the queue see it."""
        self.queue.export(self.store, force=True)
        for video_id in unfinished(self.store, self.ledger):
            apply_answers(video_id, self.store, self.ledger, self.settings, model=self.loaded)
            self.measure(video_id)
        self.queue.sync(self.store)


def keep_frames(videos: Videos) -> None:
    """Let corrections take what was probed and decoded before."""
    probed: dict[str, VideoInfo] = {}

    def probe_once(path: Path, settings: DecodeSettings) -> VideoInfo:
        if str(path) not in probed:
            probed[str(path)] = probe_video(path, settings)
        return probed[str(path)]

    def frames_again(info: VideoInfo, settings: object, sample: Sample, size: int) -> Callable[[int], Any]:
        assert (info.height, info.width) == (size, size), "of another size frames would be resized"
        return lambda position: videos.frame(str(info.path), sample.frame_index(position))

    corrections.probe_video = probe_once  # type: ignore[attr-defined]
    carried.FramesAgain = frames_again  # type: ignore[attr-defined]


def prepare(root: Path, folder: Path, count: int) -> list[str]:
    """A copy of the labels of the first videos. Returns: their ids."""
    shutil.rmtree(folder, ignore_errors=True)
    uris: dict[str, int] = {}
    for commit in Ledger(ObjectStore(str(root / "labels"))).read_all():
        uris[commit.video_id] = int(Path(commit.video_uri).stem)
    kept = sorted(uris, key=lambda video_id: uris[video_id])[:count]
    others = set(uris) - set(kept)

    def unwanted(where: str, names: list[str]) -> list[str]:
        return [name for name in names if any(video_id in name for video_id in others)]

    shutil.copytree(root / "labels", folder / "out", ignore=unwanted)
    return kept


def run_arm(root: Path, exam: dict[str, Any], arm: dict[str, Any], seed: int) -> dict[str, Any]:
    """One arm to its end; what it found is in a file, so that it is done once."""
    name = arm["name"] if arm["order"] == "ours" else f"{arm['name']} {seed}"
    path = root / "arms" / f"{name.replace(' ', '-').replace(',', '').replace('%', '')}.json"
    if path.exists() and (found := json.loads(path.read_text())).get("finished"):
        return dict(found)
    torch.set_num_threads(1)
    folder = root / "arms" / path.stem
    kept = prepare(root, folder, exam["answered"]["videos"])
    if not arm.get("novelty", True):
        sync.priorities = lambda candidates: np.array([one.gain for one in candidates])  # type: ignore[assignment]
    world, started = World(exam, arm, folder, seed), time.monotonic()
    for video_id in kept:
        world.measure(video_id)
    world.queue.sync(world.store)
    answers, seconds, verdicts = 0, 0.0, Counter[str]()
    by_verdict: Counter[str] = Counter()
    curve: list[list[float]] = []
    said_all: list[list[Any]] = []

    def note(*, finished: bool) -> dict[str, Any]:
        mean = sum(world.ious.values()) / sum(world.rows.values())
        if not curve or curve[-1][0] != answers:
            curve.append([answers, round(seconds, 2), mean, world.accepted()])
        found = {
            "name": name, "arm": arm, "seed": seed, "finished": finished, "rows": sum(world.rows.values()),
            "curve": curve, "verdicts": dict(verdicts), "seconds_by_verdict": dict(by_verdict), "said": said_all,
            "wall_seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        path.write_text(json.dumps(found))
        return found

    note(finished=False)
    empty = False
    while answers < exam["answered"]["most_answers"] and not empty:
        for _ in range(exam["reviewer"]["apply_every"]):
            leased = world.next()
            if leased is None:
                empty = True
                break
            said = world.say(leased, answers)
            answers, seconds = answers + 1, seconds + said.seconds
            verdicts[said.verdict] += 1
            by_verdict[said.verdict] += said.seconds
            said_all.append([said.verdict, said.scope, leased.item.rows, said.shown_iou, said.given_iou, said.seconds])
        world.apply()
        if empty and any(one.item_id not in world.done for found in read_items(world.store) for one in found.items):
            empty = False  # corrections brought new ones
        note(finished=False)
    world.queue.close()
    return note(finished=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--exam", type=Path, default=EXAM)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append", help="arms by name")
    parser.add_argument("--table", action="store_true", help="figures of what is there; run nothing")
    parser.add_argument("--seconds", type=Path, help="stats of real people (`masksieve review stats --json`)")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="gets the picture and the numbers")
    args = parser.parse_args()
    exam = yaml.safe_load(args.exam.read_text())
    (args.root / "arms").mkdir(parents=True, exist_ok=True)
    if not args.table:
        arms = [
            (arm, seed)
            for arm in [*exam["arms"], *exam["secondary"]]
            for seed in arm.get("seeds", [0])
            if not args.only or arm["name"] in args.only
        ]
        with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            futures = [pool.submit(run_arm, args.root, exam, *one) for one in arms]
            for future in as_completed(futures):
                one = future.result()
                start, end = one["curve"][0], one["curve"][-1]
                told = f"{one['name']}: {end[0]:.0f} answers, IoU {start[2]:.4f} -> {end[2]:.4f}, {one['verdicts']}"
                print(f"{told}, {one['wall_seconds']:.0f} s", flush=True)
    from benchmarks.review_figures import tell

    tell(args.root / "arms", exam, args.docs, args.seconds)


if __name__ == "__main__":
    main()
