"""Labels to sweep: videos with random rows of every kind, written as `masksieve label` writes them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.policy import Policy
from pipeline.records import LABELS, MASKS
from pipeline.rle import encode_mask
from pipeline.route import decide
from pipeline.storage.manifest import ParquetFile, derived_key
from pipeline.storage.objects import ObjectStore

FRAMES, SIDE = 30, 24
MAKER = {"model": {"name": "sam2_nano", "sha256": "0" * 64}, "heads_sha256": None, "config": {"reverse": True}}


def video_id(number: int) -> str:
    """Of a video."""
    return hashlib.sha256(f"swept {number}".encode()).hexdigest()


def facts(number: int, *, frames: int = FRAMES, objects: int = 3, **always: Any) -> pa.Table:
    """Rows of one video: most visible, some absent, untracked, given, automatic, unscored, odd or across a cut.

    Args:    always: columns that have one value in every row.
    """
    rng = np.random.default_rng(number)
    yy, xx = np.mgrid[:SIDE, :SIDE]
    rows = []
    for frame in range(frames):
        for i in range(1, objects + 1):
            mask = (yy - 8 - i) ** 2 + (xx - 4 - frame % 16) ** 2 < 20 - 4 * (frame % 3)
            absent, untracked = rng.random() < 0.1, rng.random() < 0.05
            given = frame == 0 and i == 2
            prompted = "mask" if given else "click" if frame == 0 else None
            score = float(np.clip(1 - abs(rng.normal(0.1 * i, 0.12)), 0, 1))
            rows.append({
                "video_id": video_id(number), "video_uri": f"/nowhere/{number}.mp4", "frame_index": 2 * frame,
                "pts_seconds": frame / 10, "object_id": i, "label": (None, "cup", "car")[(number + i) % 3],
                "height": SIDE, "width": SIDE, "rle": encode_mask(mask).counts, "area_px": int(mask.sum()),
                "visibility": "untracked" if untracked else "absent" if absent else "visible",
                "prompted": None if untracked else prompted, "auto": i == 3, "direction": "forward",
                "object_score": rng.normal(), "sam_score": score, "iou_tracked": score,
                "iou_stacked": None if rng.random() < 0.05 else score, "temporal_iou": rng.uniform(0.2, 1),
                "area_change": rng.normal(0, 0.3), "model_gap": rng.normal(0, 0.1), "shot_index": 0,
                "across_cut": rng.random() < 0.05,
                "score_source": None if given or untracked else "object_score" if absent else "iou_stacked",
            } | always)  # fmt: skip
    return pa.Table.from_pylist(rows, schema=MASKS)


def write_labels(
    out: Path, table: pa.Table, drop: str = "day", policy: Policy | None = None, maker: dict[str, Any] = MAKER
) -> Path:
    """The labels of one video, as decided by a policy."""
    policy = policy or Policy()
    metadata = {**maker, "policy": policy.model_dump(mode="json"), "policy_id": policy.policy_id}
    batch = table.combine_chunks().to_batches()[0]
    columns = [*batch.columns, *decide(batch, policy, source=drop, model="sam2_nano").columns]
    name = table["video_id"][0].as_py()
    key = derived_key("labels", drop, name)
    with ParquetFile(LABELS, metadata) as file:
        file.write(pa.RecordBatch.from_arrays(columns, schema=LABELS))
        file.publish(ObjectStore(out), "labels", key)
    return out / key


def write_truth(path: Path, tables: list[pa.Table]) -> dict[tuple[str, int, int], float]:
    """IoU with a truth that the score knows something of; for all rows but every seventh."""
    rows = []
    for table in tables:
        rng = np.random.default_rng(table.num_rows)
        for i, row in enumerate(table.select(["video_id", "frame_index", "object_id", "sam_score"]).to_pylist()):
            if i % 7:
                iou = float(np.clip(row.pop("sam_score") + rng.normal(0, 0.2), 0, 1))
                rows.append({**row, "iou": iou})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return {(row["video_id"], row["frame_index"], row["object_id"]): row["iou"] for row in rows}
