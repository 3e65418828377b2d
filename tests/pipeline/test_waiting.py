"""What waits for people is what the review lists hold: by drop, with the reasons, and read from them alone."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import StorageError
from pipeline.storage.objects import ObjectStore
from pipeline.waiting import Waiting, reason_kind, waiting_for_people


@pytest.fixture
def two_drops(lake: Path) -> Path:
    """The reviews of `night`, and one of them in a drop of an odd name too."""
    odd = lake / "review/drop=day%2F1"
    odd.mkdir()
    shutil.copy(next(lake.glob("review/drop=night/*.parquet")), odd)
    return lake


def test_each_drop_is_counted_from_its_lists(two_drops: Path) -> None:
    day, night = waiting_for_people(ObjectStore(two_drops))
    assert (day.drop, night.drop) == ("day/1", "night")
    tables = [pq.read_table(path) for path in two_drops.glob("review/drop=night/*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    assert (night.labelled, night.videos) == (3, sum(bool(table.num_rows) for table in tables))
    assert night.rows == sum(row["decision"] == "review" for row in rows) > 0
    assert night.stretches == len({row["review_id"] for row in rows}) > 0
    looks = [{reason_kind(reason) for reason in row["reasons"]} for row in rows if row["representative"]]
    assert night.reasons == Counter(kind for kinds in looks for kind in kinds)
    assert waiting_for_people(ObjectStore(two_drops), "day/1") == [day]
    assert waiting_for_people(ObjectStore(two_drops), "noon") == []


def test_it_needs_nothing_but_the_lists(two_drops: Path) -> None:
    expected = waiting_for_people(ObjectStore(two_drops))
    for layer in ("masks", "labels", "commits", "work"):
        shutil.rmtree(two_drops / layer)
    assert waiting_for_people(ObjectStore(two_drops)) == expected


def test_a_list_that_cannot_be_read_is_an_error_and_one_that_goes_is_none(
    two_drops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, listed = ObjectStore(two_drops), ObjectStore.entries
    (going,) = two_drops.glob("review/drop=day%2F1/*")

    def late(self: ObjectStore, prefix: str = "") -> object:
        found = list(listed(self, prefix))
        going.unlink()
        return iter(found)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "entries", late)
        assert waiting_for_people(store, "day/1") == [Waiting("day/1")]
    next(two_drops.glob("review/drop=night/*")).write_bytes(b"damaged")
    with pytest.raises(StorageError, match="review"):
        waiting_for_people(store)
