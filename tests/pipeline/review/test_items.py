"""Items: one for each stretch and audit that the review lists of a labelled drop hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.review.items import Item, about, read_items
from pipeline.review.queue_tables import item_json, item_of
from pipeline.storage.objects import ObjectStore


def test_items_are_the_stretches_of_the_review_lists(review_drop: Any) -> None:
    store = ObjectStore(review_drop.out)
    found = {one.video_id: one for one in read_items(store)}
    assert len(found) == 3
    kinds = set()
    for one in found.values():
        with store.open(one.key) as file:
            table = pq.read_table(file)
        rows = table.to_pylist()
        assert sum(item.rows for item in one.items) == len(rows)
        assert json.loads(table.schema.metadata[b"masksieve.counts"])["stretches"] == len(one.items)
        for item in one.items:
            kinds.add(item.kind)
            mine = [row for row in rows if row["review_id"] == item.review_id]
            [first] = [row for row in mine if row["representative"]]
            assert (item.frame_index, item.uncertainty) == (first["frame_index"], first["uncertainty"])
            assert (item.first_frame, item.last_frame) == (mine[0]["frame_index"], mine[-1]["frame_index"])
            uncertain = [row["uncertainty"] for row in mine]
            assert item.gain == pytest.approx(sum(1.0 if one is None else one for one in uncertain))
            assert (item.kind == "audit") == first["audit"]
            assert item.sources["sam_score"] == first["sam_score"]
            assert (item.generation, item.drop, item.fps, item.height) == (1, "day", 12.0, 160)
            assert item_of(item_json(item)) == item
    assert kinds == {"review", "audit"}


def test_only_lists_that_changed_are_read_and_damaged_ones_are_left_out(labelled_copy: Callable[[], Any]) -> None:
    store = ObjectStore(labelled_copy().out)
    known = {one.key: one.tag for one in read_items(store)}
    assert list(read_items(store, known=known)) == []
    assert list(read_items(store, "another drop")) == []
    first, second, _ = sorted(known)
    store.put_atomic(first, b"PAR1 but no more")
    store.put_atomic(second, store.get(second))
    assert [one.key for one in read_items(store, known=known)] == [second]


def test_another_mask_is_another_item_and_the_same_one_is_not() -> None:
    fields: dict[str, Any] = {
        "review_id": "r", "video_id": "ab" * 32, "video_uri": "v.mp4", "generation": 1, "drop": "d", "object_id": 1,
        "label": None, "kind": "audit", "frame_index": 3, "first_frame": 2, "last_frame": 5, "rows": 4, "height": 8,
        "width": 8, "fps": None, "area_px": 4, "uncertainty": 0.5, "reasons": ("audit",), "suggested_action": None,
        "review_probability": 0.2,
    }  # fmt: skip
    item = Item(**fields)
    assert Item(**{**fields, "reasons": ("other",)}).item_id == item.item_id
    assert Item(**{**fields, "generation": 2}).item_id == item.item_id
    for name in ("review_id", "frame_index", "last_frame", "rows", "masks"):
        assert Item(**{**fields, name: 6}).item_id != item.item_id
    assert about(item)["audit"] is True
