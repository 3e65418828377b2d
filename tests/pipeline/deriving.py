"""Facts of one small video, committed by hand, and what was derived from them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import rle
from pipeline.ledger import Commit, Ledger
from pipeline.policy import Policy
from pipeline.records import MASKS
from pipeline.storage.manifest import facts_key, write_facts

VIDEO = "ab" * 32
SCORES = {1: [0.9, 0.5, 0.3, 0.4, 0.9, 0.2], 2: [0.9, 0.9, 0.9, 0.9, 0.9, 0.9]}
POLICY = Policy(max_uncertainty=0.25)


def facts(scores: dict[int, list[float]], **changes: dict[tuple[int, int], Any]) -> pa.RecordBatch:
    """Rows by frame and object; `changes` of a column are by (frame, object)."""
    mask = rle.encode_mask(np.eye(8, dtype=bool))
    rows = [
        {
            "video_id": VIDEO, "video_uri": "v.mp4", "frame_index": frame, "pts_seconds": frame / 25,
            "object_id": object_id, "height": 8, "width": 8, "rle": mask.counts, "area_px": mask.area_px,
            "bbox_xyxy": mask.bbox_xyxy, "visibility": "visible", "direction": "forward",
            "auto": False, "shot_index": 0, "across_cut": False,
            "iou_tracked": scores[object_id][frame], "score_source": "iou_tracked",
            **{name: values[frame, object_id] for name, values in changes.items() if (frame, object_id) in values},
        }
        for frame in range(len(scores[1]))
        for object_id in sorted(scores)
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=MASKS)


def commit(
    ledger: Ledger, batch: pa.RecordBatch, key: str, drop: str = "first", metadata: dict[str, Any] | None = None
) -> Commit:
    """Commit facts as the next generation."""
    parent = ledger.newest_generation(VIDEO)
    record = write_facts(
        ledger.store,
        "masks",
        facts_key("masks", drop, VIDEO, f"{parent + 1:06d}-{key}"),
        [batch],
        MASKS,
        {"drop": drop, **(metadata or {})},
    )
    return ledger.commit(
        VIDEO, parent=parent, work_key=key, video_uri="v.mp4", drop=drop, files=[record], run_id="r", attempt=1,
        started_at=datetime.now(UTC),
    )  # fmt: skip


def read(ledger: Ledger, layer: str) -> pa.Table:
    """The one file of a derived layer."""
    (key,) = [key for key in ledger.store.list() if key.startswith(f"{layer}/")]
    with ledger.store.open(key) as file:
        return pq.read_table(file)
