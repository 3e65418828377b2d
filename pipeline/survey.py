"""A first look at the facts of a video by a policy: how many rows go where, and the stretches that people would see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import equals, given
from pipeline.ledger import Commit
from pipeline.policy import Policy
from pipeline.records import MASKS, read_metadata, upgraded
from pipeline.route import CHOICES, Sides
from pipeline.stretches import Places, StretchFinder

BATCH_ROWS = 16_384
COUNTS = (
    "rows", "accept", "review", "hold", "visible", "absent", "untracked", "given", "audit", "stretches", "objects",
)  # fmt: skip
HEAVY_COLUMNS = ("rle", "bbox_xyxy", "video_uri")


@dataclass(frozen=True)
class Survey:
    """What was found.

    Args:
        model: name of the model that made the facts; None if they do not say.
        places: the stretches, and which of them the review budget has room for.
        counts: by `COUNTS`: rows by decision and by visibility, given and audited ones, stretches, objects.
        batches: reads all columns of the facts, in the columns of today's schema.
    """

    model: str | None
    places: Places
    counts: dict[str, int]
    batches: Callable[[], Iterable[pa.RecordBatch]]


def survey(facts: pq.ParquetFile, policy: Policy, commit: Commit, *, columns: Sequence[str] = MASKS.names) -> Survey:
    """Go over the light columns of the facts once.

    Args:
        facts: of the commit.
        columns: of MASKS, that are read afterwards; a small file is read once and kept.
    """
    metadata = read_metadata(facts.schema_arrow)
    version, model = str(metadata.get("schema_version")), (metadata.get("model") or {}).get("name")

    def read(names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        there = set(facts.schema_arrow.names)
        for batch in facts.iter_batches(BATCH_ROWS, columns=[name for name in names if name in there]):
            yield upgraded(batch, version)

    small = list(read(columns)) if facts.metadata.num_rows <= BATCH_ROWS else None
    light = [name for name in columns if name not in HEAVY_COLUMNS]
    counts, finder = dict.fromkeys(COUNTS, 0), StretchFinder(commit.video_id)
    for batch in read(light) if small is None else small:
        sides = Sides(batch, policy, commit.first_seen, model)
        counts["rows"] += batch.num_rows
        counts["audit"] += int(sides.audit_n.sum())
        for name, count in zip(CHOICES, np.bincount(sides.choice_n, minlength=len(CHOICES)).tolist(), strict=True):
            counts[name] += count
        for name in ("visible", "absent", "untracked"):
            counts[name] += int(equals(batch, "visibility", name).sum())
        counts["given"] += int(given(batch).sum())
        finder.add(*numbers(batch), sides)
    places = Places(finder.stretches(), policy.review_stretches_per_video)
    counts["review"] -= places.unseen_rows
    counts["hold"] += places.unseen_rows
    counts["stretches"], counts["objects"] = len(places.seen), finder.objects
    return Survey(model, places, counts, lambda: read(columns) if small is None else small)


def numbers(rows: pa.RecordBatch) -> tuple[Any, Any]:
    """object_id and frame_index of rows."""
    return rows.column("object_id").to_numpy(), rows.column("frame_index").to_numpy()
