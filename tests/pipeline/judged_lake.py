"""Outputs of many small videos whose truth is known, never tracked but committed as usual; and certificates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import rle
from pipeline.certificate import Certificate, process_of
from pipeline.derive import derive
from pipeline.ledger import Ledger
from pipeline.policy import Policy
from pipeline.records import MASKS
from pipeline.storage.manifest import facts_key, write_facts
from pipeline.storage.objects import ObjectStore

MASK = rle.encode_mask(np.eye(8, dtype=bool))
NOW = datetime(2026, 11, 28, tzinfo=UTC)
PASSED = (0.1, 0.2, 0.3)
FACTS: dict[str, Any] = {
    "model": {"name": "sam2_nano", "sha256": "a" * 64}, "heads_sha256": "b" * 64, "fps": 12.0,
    "config": {"precision": "float32", "reverse": True, "decoder": "decord", "tokens": False},
}  # fmt: skip


def issued(**changes: Any) -> Certificate:
    """A certificate of the thresholds `PASSED` for what made `FACTS`."""
    group = {
        "match": {}, "threshold": 0.3, "passed": PASSED, "videos": 400, "rows": 9000, "observed": 0.03, "bound": 0.049,
        "coverage": 0.6, "level": 0.1,
    }  # fmt: skip
    values: dict[str, Any] = {
        "status": "certified", "promise": {"kind": "error_rate", "bad_iou": 0.5, "at_most": 0.05}, "confidence": 0.9,
        "estimand": "rows", "max_rows_per_video": 48, "start_coverage": 0.2, "policy": Policy().model_dump(mode="json"),
        "groups": [group], "processes": [process_of(FACTS)],
        "truth": {"kind": "davis", "sha256": "c" * 64, "videos": 500, "rows": 12000, "attempts": 0},
        "review": {"rows_per_day": 12.5, "stretches_per_day": 3.0}, "issued_at": NOW,
        "valid_until": NOW + timedelta(days=90), "software": {"masksieve": "0.1.0"},
    }  # fmt: skip
    return Certificate.issue(**values | changes)


def video_id(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def add_video(
    out: Path | ObjectStore,
    name: str,
    score: Sequence[float | None],
    *,
    drop: str = "day",
    label: str | None = "cup",
    metadata: dict[str, Any] | None = None,
    **columns: Sequence[Any],
) -> str:
    """Commit a video with one object and a row for each score, and derive its labels.

    Args: columns: other values of facts, one per row.
    Returns: its video_id.
    """
    store = out if isinstance(out, ObjectStore) else ObjectStore(out)
    ledger, one = Ledger(store), video_id(name)
    rows = [
        {
            "video_id": one, "video_uri": f"/in/{drop}/{name}.mp4", "frame_index": frame, "pts_seconds": frame / 12,
            "object_id": 1, "label": label, "height": 8, "width": 8, "rle": MASK.counts, "area_px": MASK.area_px,
            "bbox_xyxy": MASK.bbox_xyxy, "visibility": "visible", "direction": "forward", "auto": False,
            "shot_index": 0, "across_cut": False, "iou_tracked": value,
            "score_source": None if value is None else "iou_tracked",
            **{column: values[frame] for column, values in columns.items()},
        }
        for frame, value in enumerate(score)
    ]  # fmt: skip
    batch = pa.RecordBatch.from_pylist(rows, schema=MASKS)
    record = write_facts(store, "masks", facts_key("masks", drop, one, "1"), [batch], MASKS, metadata or FACTS)
    ledger.commit(
        one, parent=0, work_key=name, video_uri=rows[0]["video_uri"], drop=drop, files=[record], run_id="r", attempt=1,
        started_at=datetime.now(UTC),
    )  # fmt: skip
    derive(store, ledger, one, Policy())
    return one


def add_videos(
    out: Path | ObjectStore, count: int, *, seed: int = 0, rows: int = 8, **more: Any
) -> list[dict[str, Any]]:
    """Many videos whose scores tell most of the truth: rows of truth, video_id, frame_index, object_id, iou.

    A mask of predicted IoU s is bad with probability (1 - s)^2; all masks of a video are worse or better together.
    """
    rng, truth = np.random.default_rng(seed), []
    for number in range(count):
        score = np.clip(rng.beta(4, 1.2) + rng.normal(0, 0.1, rows), 0.01, 0.99).round(4)
        one = add_video(out, f"{more.get('drop', 'day')}{seed}-{number}", score.tolist(), **more)
        bad = rng.random(rows) < (1 - score) ** 2
        iou = np.where(bad, rng.uniform(0, 0.49, rows), rng.uniform(0.5, 1, rows))
        truth += [{"video_id": one, "frame_index": f, "object_id": 1, "iou": float(v)} for f, v in enumerate(iou)]
    return truth


def write_truth(rows: list[dict[str, Any]], path: Path) -> Path:
    """Rows of truth as Parquet."""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
