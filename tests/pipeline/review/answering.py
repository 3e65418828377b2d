"""Answers as a reviewer who knows the truth gives them, and what an output then says."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import rle
from pipeline.ledger import Ledger
from pipeline.review.answers import Answer, GivenMask, write_answer
from pipeline.storage.objects import ObjectStore

BEGAN = datetime(2026, 1, 2, 9, tzinfo=UTC)
Row = dict[str, Any]
Truth = NDArray[np.uint8]


def answer(row: Row, verdict: str, mask_hw: NDArray[np.bool_] | None = None, **more: Any) -> Answer:
    """What somebody says of a row of labels. Args: minutes: after the first hour of the day; more: fields."""
    given = None
    if mask_hw is not None:
        counts = rle.encode_mask(mask_hw).counts.decode()
        given = GivenMask(height=mask_hw.shape[0], width=mask_hw.shape[1], counts=counts)
    minutes = more.pop("minutes", 0)
    about: dict[str, Any] = {
        "answer_id": uuid.uuid4().hex, "item_id": "item", "review_id": "review", "generation": 1, "rows": 1,
        "first_frame": row["frame_index"], "last_frame": row["frame_index"], "area_px": row["area_px"],
        "scope": "frame", "reviewer": "ann", "answered_at": BEGAN + timedelta(minutes=minutes),
        "reasons": tuple(row.get("reasons") or ()), **more,
    }  # fmt: skip
    where = {name: row[name] for name in ("video_id", "object_id", "frame_index")}
    return Answer(**where, verdict=verdict, mask=given, **about)


def give(store: ObjectStore, *answers: Answer) -> None:
    for one in answers:
        assert write_answer(store, one)


def facts(ledger: Ledger, video_id: str, layer: str = "masks") -> pa.Table:
    """Rows of the newest generation."""
    commit = ledger.newest(video_id)
    assert commit is not None
    with ledger.store.open(commit.file(layer).key) as file:
        return pq.read_table(file)


def labels(out: Path, video_id: str, layer: str = "labels") -> dict[tuple[int, int], Row]:
    """Rows by frame and object."""
    (path,) = out.glob(f"{layer}/*/{video_id}.parquet")
    return {(row["frame_index"], row["object_id"]): row for row in pq.ParquetFile(path).read().to_pylist()}


def iou(row: Row, truth: Truth) -> float:
    """With the true mask of its object."""
    true = rle.encode_mask(truth[row["frame_index"]] == row["object_id"]).counts
    height, width = truth.shape[1:]
    return rle.iou(row["rle"] or rle.empty_mask(height, width).counts, true, height, width)


def true_mask(row: Row, truth: Truth) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = truth[row["frame_index"]] == row["object_id"]
    return mask
