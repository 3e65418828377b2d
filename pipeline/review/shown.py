"""What is shown of an item: the masks of its stretch and a little around it, from the facts that it was made of."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.ledger import Ledger
from pipeline.review.items import Item
from pipeline.storage.objects import ObjectStore

AROUND = 4
"""Labelled frames before and after the stretch that are shown too."""
REACH = 64
"""Frames that they are looked for in where the stretch does not tell how far labelled frames lie apart."""
KEPT_ROWS = 50_000
"""Of all items together, about a kilobyte each; a stretch may be a whole long video."""
_COLUMNS = ["frame_index", "pts_seconds", "rle", "area_px", "visibility"]


@dataclass(frozen=True)
class ShownRow:
    """One frame of the object. `counts` are COCO's, of the video's size; None where the object is untracked."""

    frame_index: int
    pts_seconds: float
    counts: bytes | None
    area_px: int | None
    visibility: str


@dataclass(frozen=True)
class Shown:
    """Rows of an item's object by frame: all of its stretch, and some around it."""

    rows: dict[int, ShownRow]
    first_frame: int
    last_frame: int

    def loop(self, representative: int, most: int) -> list[ShownRow]:
        """At most so many rows of the stretch, evenly, the representative among them, and those around it."""
        inside = [index for index in sorted(self.rows) if self.first_frame <= index <= self.last_frame]
        if len(inside) > most:
            picked = {inside[round(i)] for i in np.linspace(0, len(inside) - 1, most)}
            if representative in self.rows and representative not in picked:
                picked.remove(min(picked, key=lambda index: abs(index - representative)))
                picked.add(representative)
            inside = sorted(picked)
        before = [index for index in sorted(self.rows) if index < self.first_frame][-AROUND:]
        after = [index for index in sorted(self.rows) if index > self.last_frame][:AROUND]
        return [self.rows[index] for index in (*before, *inside, *after)]


class ShownMasks:
    """Reads and keeps what is shown of items; threads share one."""

    def __init__(self, store: ObjectStore) -> None:
        self._store, self._ledger = store, Ledger(store)
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Shown] = OrderedDict()

    def of(self, item: Item) -> Shown:
        """The rows of an item. Raises StorageError if its facts are gone or cannot be reached."""
        with self._lock:
            if item.item_id in self._kept:
                self._kept.move_to_end(item.item_id)
                return self._kept[item.item_id]
        shown = self._read(item)
        with self._lock:
            self._kept[item.item_id] = shown
            rows = sum(len(one.rows) for one in self._kept.values())
            while rows > KEPT_ROWS and len(self._kept) > 1:
                rows -= len(self._kept.popitem(last=False)[1].rows)
        return shown

    def _read(self, item: Item) -> Shown:
        step = -(-(item.last_frame - item.first_frame) // (item.rows - 1)) if item.rows > 1 else 0
        reach = (AROUND + 1) * step or REACH
        filters = [
            ("object_id", "=", item.object_id),
            ("frame_index", ">=", item.first_frame - reach),
            ("frame_index", "<=", item.last_frame + reach),
        ]
        commit = self._ledger.read(item.video_id, item.generation)
        with self._store.open(commit.file("masks").key) as file:
            found = pq.read_table(file, columns=_COLUMNS, filters=filters).to_pylist()
        rows = {
            row["frame_index"]: ShownRow(
                row["frame_index"], row["pts_seconds"], row["rle"], row["area_px"], row["visibility"]
            )
            for row in found
        }
        if item.frame_index not in rows:
            got = f"none of object {item.object_id} in generation {item.generation}"
            raise StorageError(
                f"facts on frame {item.frame_index} of {item.video_id[:12]}", got, "sync the queue again"
            )
        return Shown(rows, item.first_frame, item.last_frame)
