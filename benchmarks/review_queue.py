"""Fifty reviewers at one review queue: how long claim and answer take, and whether any item is given twice or lost.

`python benchmarks/review_queue.py [--items 100000] [--reviewers 50] [--seconds 30] [--think 1.0] [--http]
[--database postgresql://...] [--seed 0]` writes review lists of so many items (100 a video, a tenth of them audits),
brings them into a queue, and lets reviewers claim and answer for a while, each in a thread of its own that thinks for
`think` seconds on average between two answers. Some let a lease run out or send an answer twice. With `--http` they
talk to `masksieve review serve` in a process of its own. It prints times, and exits 1 if an item was in two hands at
once, an answer that was confirmed is not in the output, or one is there twice.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pipeline.records import REVIEW, file_metadata
from pipeline.review.answers import Answer, read_answers
from pipeline.review.items import Item, about
from pipeline.review.queue import Queue
from pipeline.review.refusals import Conflict, LeaseLost
from pipeline.settings import ReviewSettings
from pipeline.storage.manifest import derived_key
from pipeline.storage.objects import ObjectStore

PER_VIDEO = 100


class Flagged(NamedTuple):
    """Some flagged rows of one object."""

    object_id: int
    first_frame: int
    rows: int
    uncertainty: float | None
    audit: bool = False
    label: str | None = "cup"
    frame_uri: str | None = None
    box_xyxy: tuple[float, ...] | None = (2.0, 1.0, 5.0, 3.0)
    rle: bytes = b"a mask"


def write_list(
    store: ObjectStore,
    video_id: str,
    flagged: Sequence[Flagged],
    *,
    generation: int = 1,
    drop: str = "day",
    height: int = 8,
    width: int = 12,
) -> str:
    """Write the review list of a video as `derive` does. Returns: its key."""
    rows = []
    for one in flagged:
        kind = "audit" if one.audit else "review"
        text = f"{video_id}:{one.object_id}:{kind}:{one.first_frame}"
        review_id = hashlib.sha256(text.encode()).hexdigest()[:20]
        rows += [
            {
                "video_id": video_id, "video_uri": f"{video_id[:8]}.mp4", "frame_index": one.first_frame + number,
                "pts_seconds": 0.0, "object_id": one.object_id, "label": one.label, "height": height, "width": width, "rle": one.rle,
                "area_px": 6, "bbox_xyxy": one.box_xyxy, "visibility": "visible", "auto": False, "shot_index": 0,
                "direction": "forward", "across_cut": False, "uncertainty": one.uncertainty,
                "decision": "accept" if one.audit else "review",
                "reasons": ["audit"] if one.audit else ["uncertainty 0.31 > 0.24"], "suggested_action": "check_mask",
                "audit": one.audit, "review_probability": 0.1 if one.audit else 1.0, "weight": 1.0, "policy_id": "p",
                "review_id": review_id, "representative": number == 0, "frame_uri": None if number else one.frame_uri,
            }
            for number in range(one.rows)
        ]  # fmt: skip
    counts = {"stretches": len(flagged), "review": len(rows), "audit": sum(one.audit for one in flagged)}
    table = pa.Table.from_pylist(rows, REVIEW.with_metadata(file_metadata({"generation": generation, "fps": 25.0, "counts": counts})))
    file = io.BytesIO()
    pq.write_table(table, file)
    key = derived_key("review", drop, video_id)
    store.put_atomic(key, file.getvalue())
    return key
