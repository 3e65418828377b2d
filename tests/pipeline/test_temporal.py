"""Temporal columns: against the row before in time, null where there is nothing to compare."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import rle, temporal
from pipeline.records import MASKS

SIDE = 8


def row(frame: int, object_id: int, columns: int | None) -> dict[str, object]:
    """A row whose mask is the first `columns` columns; None is untracked."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, : columns or 0] = True
    encoded = rle.encode_mask(mask)
    return {
        "video_id": "v", "video_uri": "v.mp4", "frame_index": frame, "pts_seconds": frame / 25, "object_id": object_id,
        "height": SIDE, "width": SIDE, "direction": "forward",
        "auto": False, "shot_index": 0, "across_cut": False,
        "rle": None if columns is None else encoded.counts,
        "area_px": None if columns is None else encoded.area_px,
        "visibility": "untracked" if columns is None else "visible" if columns else "absent",
    }  # fmt: skip


def annotated(rows: list[dict[str, object]], batch: int = 1000) -> pa.Table:
    whole = pa.RecordBatch.from_pylist(rows, schema=MASKS)
    pieces = [whole.slice(start, batch) for start in range(0, len(rows), batch)]
    return pa.Table.from_batches(list(temporal.annotate(pieces)), schema=MASKS)


def test_each_object_is_compared_with_its_own_past() -> None:
    table = annotated([row(0, 1, 4), row(0, 2, 8), row(1, 1, 2), row(1, 2, 8)])
    assert table["temporal_iou"].to_pylist() == [None, None, 0.5, 1.0]
    assert table["area_change"].to_pylist() == [None, None, -0.5, 0.0]


def test_absent_twice_agrees_and_coming_back_does_not() -> None:
    table = annotated([row(0, 1, 4), row(1, 1, 0), row(2, 1, 0), row(3, 1, 4)])
    assert table["temporal_iou"].to_pylist() == [None, 0.0, 1.0, 0.0]
    assert table["area_change"].to_pylist() == [None, -1.0, 0.0, 1.0]


def test_untracked_rows_have_and_give_no_comparison() -> None:
    table = annotated([row(0, 1, None), row(1, 1, 4), row(2, 1, 4), row(3, 1, None), row(4, 1, 4)])
    assert table["temporal_iou"].to_pylist() == [None, None, 1.0, None, None]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.none() | st.integers(0, SIDE)), min_size=1, max_size=30), st.integers(1, 7)
)
def test_the_cut_into_batches_changes_nothing(states: list[tuple[int, int | None]], batch: int) -> None:
    rows = [row(frame, object_id, columns) for frame, (object_id, columns) in enumerate(states)]
    assert annotated(rows, batch).equals(annotated(rows))


@pytest.mark.parametrize(
    ("before", "now", "change"), [(0, 0, 0.0), (0, 5, 1.0), (5, 0, -1.0), (4, 8, 0.5), (8, 4, -0.5)]
)
def test_area_change_is_bounded_and_signed(before: int, now: int, change: float) -> None:
    assert temporal.area_change(before, now) == change
