"""How long it takes to decide anew about a million masks by another policy, and how much memory.

    python benchmarks/retune.py                     # 250,000 and 1,000,000 rows, in videos of 2,500
    python benchmarks/retune.py --rows 1000000 --rows-per-video 100000 --threads 2


The facts are synthetic and go through the real writer and the real commits: four objects a video, run lengths of
wobbling blobs, scores that wander as tracks do. Each size is retuned in a process of its own, whose anonymous memory is
read while it works. A second run over the same output must change nothing.
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
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from memory import watched_memory

from pipeline import rle
from pipeline.derive import Derived
from pipeline.ledger import Ledger
from pipeline.records import MASKS
from pipeline.retune import THREADS, begin_retune, carry_out
from pipeline.retune_preview import Move, preview
from pipeline.settings import load_settings
from pipeline.storage.manifest import facts_key, write_facts
from pipeline.storage.objects import ObjectStore

HEIGHT, WIDTH, OBJECTS, BLOBS = 720, 1280, 4, 8000
STEPS = (
    ("first labels", 0.25, False), ("dry run", 0.1, True), ("another policy", 0.1, False), ("again", 0.1, False),
)  # fmt: skip
LABELS = ("cup", "dog", "person", "car")
METADATA = {
    "drop": "night", "config": {"propagate": {"reverse": True}}, "heads_sha256": "0" * 64, "fps": 25.0,
    "model": {"name": "synthetic", "sha256": "1" * 64}, "prompts_sha256": "2" * 64,
}  # fmt: skip


def blobs(count: int, rng: np.random.Generator) -> list[rle.EncodedMask]:
    """Masks of low-resolution logits as SAM2 gives them: discs with a wobbling edge."""
    y, x = np.mgrid[:128, :128].astype(np.float32)
    found = []
    for _ in range(count):
        cy, cx, radius = *rng.uniform(20, 108, 2), rng.uniform(6, 22)
        angle = np.arctan2(y - cy, x - cx)
        waves = sum(rng.normal(0, 1.2) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 7))
        found.append(rle.encode_logits((radius + waves - np.hypot(y - cy, x - cx)).astype(np.float32), HEIGHT, WIDTH))
    return found


def facts(video_id: str, rows: int, pool: list[rle.EncodedMask], rng: np.random.Generator) -> pa.RecordBatch:
    """The rows of one video, all columns of the schema filled as a run with heads and a stacker fills them."""
    frames = rows // OBJECTS
    frame_n, object_n = np.repeat(np.arange(frames), OBJECTS), np.tile(np.arange(1, OBJECTS + 1), frames)
    steps = rng.normal(0, 0.008, (frames, OBJECTS)).cumsum(0) + rng.uniform(0.85, 0.98, OBJECTS)
    iou_n = np.clip(1 - np.abs(1 - steps), 0, 1).reshape(-1) - rng.uniform(0, 0.02, rows)
    absent_n = (np.sin(frame_n / 40 + object_n * 2.0) > 0.95) & (frame_n > 0)
    prompted_n = frame_n == 0
    pick_n = rng.permutation(max(len(pool), rows))[:rows] % len(pool)
    area = np.array([one.area_px for one in pool])[pick_n]
    empty = rle.empty_mask(HEIGHT, WIDTH).counts

    def score(shift: float = 0.0, spread: float = 0.05) -> pa.Array:
        return pa.array(
            (iou_n * (shift == 0) + shift + rng.normal(0, spread, rows)).astype(np.float32), mask=prompted_n
        )

    columns: dict[str, pa.Array] = {
        "video_id": pa.repeat(video_id, rows),
        "video_uri": pa.repeat(f"s3://drops/night/{video_id[:12]}.mp4", rows),
        "frame_index": pa.array(frame_n, pa.int32()),
        "pts_seconds": pa.array(frame_n / 25),
        "object_id": pa.array(object_n, pa.int32()),
        "label": pa.array([LABELS[one - 1] for one in object_n]),
        "height": pa.repeat(pa.scalar(HEIGHT, pa.int32()), rows),
        "width": pa.repeat(pa.scalar(WIDTH, pa.int32()), rows),
        "rle": pa.array([empty if gone else pool[one].counts for one, gone in zip(pick_n, absent_n, strict=True)]),
        "area_px": pa.array(np.where(absent_n, 0, area), pa.int64()),
        "bbox_xyxy": pa.array(
            [None if gone else pool[one].bbox_xyxy for one, gone in zip(pick_n, absent_n, strict=True)],
            MASKS.field("bbox_xyxy").type,
        ),
        "visibility": pa.array(np.where(absent_n, "absent", "visible")),
        "prompted": pa.array(np.where(prompted_n, "box", None), pa.string()),
        "auto": pa.repeat(False, rows),
        "direction": pa.array(np.where(prompted_n, "none", "forward")),
        "object_score": pa.array((np.where(absent_n, -6, 8) + rng.normal(0, 1, rows)).astype(np.float32)),
        "iou_stacked": score(spread=0.0),
        "model_gap": score(0.05), "prompt_gap": score(0.05), "task_gap": score(0.05),
        "temporal_iou": pa.array(np.clip(rng.normal(0.85, 0.12, rows), 0, 1).astype(np.float32), mask=prompted_n),
        "area_change": pa.array(np.clip(rng.normal(0, 0.2, rows), -1, 1).astype(np.float32), mask=prompted_n),
        "shot_index": pa.array(frame_n // 400, pa.int32()),
        "across_cut": pa.repeat(False, rows),
        "score_source": pa.array(np.where(absent_n, "object_score", "iou_stacked")),
    }  # fmt: skip
    for field in MASKS:
        if field.name not in columns:
            columns[field.name] = score() if field.type == pa.float32() else pa.nulls(rows, field.type)
    return pa.RecordBatch.from_arrays([columns[name] for name in MASKS.names], schema=MASKS)


def make(out: Path, rows: int, rows_per_video: int) -> int:
    """Facts and commits of as many videos as it takes. Returns how many."""
    rng, store, started = np.random.default_rng(7), ObjectStore(out), datetime.now(UTC)
    ledger, pool = Ledger(store), blobs(BLOBS, rng)
    for number in range(rows // rows_per_video):
        video_id = hashlib.sha256(str(number).encode()).hexdigest()
        key = facts_key("masks", "night", video_id, "000001-1-bench")
        batch = facts(video_id, rows_per_video, pool, rng)
        record = write_facts(store, "masks", key, [batch], MASKS, METADATA)
        ledger.commit(
            video_id, parent=0, work_key=f"bench {number}", video_uri="bench.mp4", drop="night", files=[record],
            run_id="bench", attempt=1, started_at=started,
        )  # fmt: skip
    return rows // rows_per_video


def measure(out: Path, threshold: float, threads: int, dry_run: bool) -> None:
    """Retune a whole output once, or look what that would change, and print the figures as JSON."""
    settings, store = load_settings(None, {"policy.max_uncertainty": threshold}), ObjectStore(out)
    with watched_memory() as memory:
        started, processor = time.perf_counter(), time.process_time()
        if dry_run:
            moves = [one for *_, one in preview(store, settings.policy, settings)]
        else:
            done = [one for _, one in carry_out(store, begin_retune(store, settings.policy), settings, threads=threads)]
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
    if dry_run:
        assert all(isinstance(one, Counter) for one in moves)
        total = sum((one for one in moves if isinstance(one, Counter)), Counter[Move]())
        videos, written, rows = len(moves), 0, total.total()
        review = sum(masks for move, masks in total.items() if move.after == "review")
    else:
        assert all(isinstance(one, Derived) for one in done)
        derived = [one for one in done if isinstance(one, Derived)]
        videos, written = len(derived), sum(one.status == "written" for one in derived)
        rows, review = (sum(one.counts[name] for one in derived) for name in ("rows", "review"))
    load = os.getloadavg()[0]
    print(
        json.dumps(
            {
                "rows": rows, "videos": videos, "written": written, "in review": review,
                "seconds": round(seconds, 1), "CPU seconds": round(processor, 1), "rows/s": round(rows / seconds),
                "MB before": round(memory.before), "peak MB": round(memory.peak), "load": round(load, 1),
            }
        )
    )  # fmt: skip


def main() -> None:
    """Every size in a process of its own, as one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[250_000, 1_000_000])
    parser.add_argument("--rows-per-video", type=int, default=2_500)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--keep", type=Path, help="make outputs here and leave them; those that are there are used")
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        measure(Path(arguments.one[0]), float(arguments.one[1]), arguments.threads, arguments.dry_run)
        return
    table = []
    with tempfile.TemporaryDirectory(prefix="masksieve-retune-") as temporary:
        for rows in arguments.rows:
            out = (arguments.keep or Path(temporary)) / f"{rows}-{arguments.rows_per_video}"
            if not out.exists():
                make(out, rows, arguments.rows_per_video)
            for what, threshold, dry_run in STEPS:
                command = [sys.executable, __file__, "--one", str(out), str(threshold)]
                command += ["--threads", str(arguments.threads), *(["--dry-run"] if dry_run else [])]
                done = subprocess.run(command, env=os.environ, stdout=subprocess.PIPE, text=True, check=True)
                table.append({"what": what, **json.loads(done.stdout)})
    print(f"| {' | '.join(table[0])} |")
    print("|" + "---|" * len(table[0]))
    for row in table:
        cells = (f"{value:,}" if isinstance(value, int) else str(value) for value in row.values())
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
