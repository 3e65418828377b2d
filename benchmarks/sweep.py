"""How long `masksieve sweep` takes over many rows, and how much memory: labels out of thin air, in their schema.

    python benchmarks/sweep.py runs/sweep                 # 10 million rows: 1,000 videos of 500 frames and 20 objects
    python benchmarks/sweep.py runs/sweep --videos 100    # a tenth; the peak of memory should not follow
    python benchmarks/sweep.py runs/sweep --truth 400     # with the IoU of 400 videos

Each video is a file as `masksieve label` writes it, without masks, boxes and addresses, which sweep does not read.
Scores differ by object and wander over time. Files that are there are kept. The command runs in a process of its own,
whose wall and CPU time and peak of memory
(VmHWM) are printed with the load of the machine before and after.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import LABELS
from pipeline.storage.manifest import ParquetFile, derived_key
from pipeline.storage.objects import ObjectStore

FRAMES, OBJECTS = 500, 20
NAMES = ("car", "person", "dog", "cup", "bird")


def video_id(number: int) -> str:
    return hashlib.sha256(f"sweep benchmark {number}".encode()).hexdigest()


def scores(number: int) -> np.ndarray:
    """Predicted IoU of every row, (frames, objects) float32: most objects are easy, some are lost on the way."""
    rng = np.random.default_rng(number)
    start = rng.beta(1.2, 6, OBJECTS)
    walk = np.cumsum(rng.normal(0, 0.006, (FRAMES, OBJECTS)), axis=0)
    return np.clip(1 - np.abs(start + walk + rng.normal(0, 0.01, walk.shape)), 0, 1).astype(np.float32)


def write_video(number: int, out: str) -> int:
    """The labels of one video, by the default policy as far as sweep reads them. Returns the rows."""
    store = ObjectStore(out)
    drop = f"day-{number % 4}"
    key = derived_key("labels", drop, video_id(number))
    rows = FRAMES * OBJECTS
    if store.exists(key):
        return rows
    rng = np.random.default_rng(number)
    score = scores(number).ravel()
    absent = rng.random(rows) < 0.03
    frame_n = np.repeat(np.arange(FRAMES, dtype=np.int32), OBJECTS)
    numbers = {
        "frame_index": frame_n, "object_id": np.tile(np.arange(1, OBJECTS + 1, dtype=np.int32), FRAMES),
        "pts_seconds": frame_n / 25.0, "height": np.full(rows, 720, np.int32), "width": np.full(rows, 1280, np.int32),
        "area_px": rng.integers(200, 90_000, rows), "auto": np.zeros(rows, bool), "across_cut": np.zeros(rows, bool),
        "shot_index": np.zeros(rows, np.int32), "sam_score": score, "object_score": np.where(absent, -4, 6 * score),
        "stability": score, "entropy_bits": 1 - score, "iou_tracked": score, "iou_stacked": score,
        "model_gap": rng.normal(0.02, 0.05, rows), "prompt_gap": rng.normal(0.02, 0.05, rows),
        "task_gap": rng.normal(0.02, 0.05, rows), "temporal_iou": np.clip(score + rng.normal(0, 0.1, rows), 0, 1),
        "area_change": rng.normal(0, 0.2, rows), "uncertainty": 1 - score, "review_probability": np.zeros(rows),
        "weight": score, "audit": np.zeros(rows, bool),
    }  # fmt: skip
    accept = (1 - score <= 0.25) & ~absent
    words = {
        "video_id": [video_id(number)] * rows, "video_uri": [f"/nowhere/{number}.mp4"] * rows,
        "label": [NAMES[(number + o) % len(NAMES)] for o in range(OBJECTS)] * FRAMES,
        "visibility": np.where(absent, "absent", "visible"), "direction": ["forward"] * rows,
        "prompted": ["click"] * OBJECTS + [None] * (rows - OBJECTS),
        "score_source": np.where(absent, "object_score", "iou_stacked"),
        "decision": np.where(accept, "accept", "review"), "policy_id": ["a3747f6e2bef7269"] * rows,
        "reasons": [[]] * rows,
    }  # fmt: skip
    columns = [pa.array((numbers | words).get(field.name, [None] * rows)).cast(field.type) for field in LABELS]
    metadata = {"model": {"name": f"model-{number % 2}", "sha256": "0" * 64}, "config": {}, "heads_sha256": None}
    with ParquetFile(LABELS, metadata) as file:
        file.write(pa.RecordBatch.from_arrays(columns, schema=LABELS))
        file.publish(store, "labels", key)
    return rows


def write_truth(videos: int, path: Path) -> None:
    """IoU with a truth that the score knows of, for the first so many videos."""
    tables = []
    for number in range(videos):
        score = scores(number).ravel()
        iou = np.clip(score + np.random.default_rng(number + 10**6).normal(0, 0.12, score.size), 0, 1)
        tables.append(
            pa.table(
                {
                    "video_id": pa.array([video_id(number)] * score.size).dictionary_encode(),
                    "frame_index": np.repeat(np.arange(FRAMES, dtype=np.int32), OBJECTS),
                    "object_id": np.tile(np.arange(1, OBJECTS + 1, dtype=np.int32), FRAMES),
                    "iou": iou,
                }
            )
        )
    pq.write_table(pa.concat_tables(tables).unify_dictionaries(), path)


def load() -> str:
    return "/".join(f"{one:.2f}" for one in os.getloadavg())


MEASURED = """
import resource, sys, time
started = time.perf_counter()
from pipeline.cli.entry import main
code = 0
try:
    main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
seconds = time.perf_counter() - started
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"MEASURED {code} {seconds:.2f} {int(peak) / 2**20:.2f} {used.ru_utime + used.ru_stime:.2f}", file=sys.stderr)
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--truth", type=int, default=0, help="videos with truth")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    out = args.folder / f"labels-{args.videos}"
    with ProcessPoolExecutor() as pool:
        rows = sum(pool.map(partial(write_video, out=str(out)), range(args.videos), chunksize=8))
    words = ["sweep", str(out), "--out", str(args.folder / "pages")]
    if args.truth:
        truth = args.folder / f"truth-{args.truth}.parquet"
        if not truth.exists():
            write_truth(args.truth, truth)
        words += ["--truth", str(truth)]
    for _ in range(args.repeats):
        before, started = load(), time.perf_counter()
        done = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True)
        wall = time.perf_counter() - started
        found = [line.split() for line in done.stderr.splitlines() if line.startswith("MEASURED")]
        if not found or found[0][1] != "0":
            sys.exit(done.stdout + done.stderr)
        figures = {
            "rows": rows, "videos": args.videos, "videos_with_truth": args.truth, "seconds": float(found[0][2]),
            "seconds_with_start": round(wall, 2), "cpu_seconds": float(found[0][4]),
            "peak_gb": float(found[0][3]), "load_before": before,
            "load_after": load(), "cores": len(os.sched_getaffinity(0)),
        }  # fmt: skip
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
