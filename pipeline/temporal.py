"""How much an object's mask changed since its previous row in time, whatever direction the model ran in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from pipeline import rle


def temporal_iou(previous: bytes, current: bytes, height: int, width: int) -> float:
    """IoU of an object's mask with its mask one row earlier, in [0, 1].

    Two empty masks agree (1); an empty and a non-empty one do not (0).

    Args:    previous, current: COCO compressed counts at height x width pixels.
    """
    return rle.iou(previous, current, height, width)


def area_change(previous_px: int, current_px: int) -> float:
    """Signed relative change of area, in [-1, 1]: (current - previous) / larger; 0 for two empty masks."""
    larger = max(previous_px, current_px)
    return 0.0 if larger == 0 else (current_px - previous_px) / larger


def annotate(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Fill `temporal_iou` and `area_change` of rows that come in time order.

    Both are null on an object's first row and where this row or the one before is untracked: there is no mask to
    compare. Only the last mask of each object is kept.

    Args:    batches: MASKS columns, sorted by frame_index then object_id over all batches.
    Yields:  the same rows with the two columns filled.
    """
    last: dict[int, tuple[bytes, int] | None] = {}
    for batch in batches:
        ious: list[float | None] = []
        changes: list[float | None] = []
        columns = [batch.column(name).to_pylist() for name in ("object_id", "rle", "area_px", "visibility")]
        heights, widths = (batch.column(name).to_numpy() for name in ("height", "width"))
        for row, (object_id, counts, area_px, visibility) in enumerate(zip(*columns, strict=True)):
            before = last.get(object_id)
            now = None if visibility == "untracked" or counts is None else (counts, area_px)
            last[object_id] = now
            if before is None or now is None:
                ious.append(None)
                changes.append(None)
                continue
            ious.append(temporal_iou(before[0], now[0], int(heights[row]), int(widths[row])))
            changes.append(area_change(before[1], now[1]))
        yield _with(_with(batch, "temporal_iou", ious), "area_change", changes)


def _with(batch: pa.RecordBatch, name: str, values: list[float | None]) -> pa.RecordBatch:
    index = batch.schema.get_field_index(name)
    column = pa.array(
        np.array([np.nan if value is None else value for value in values], dtype=np.float32),
        mask=np.array([value is None for value in values], dtype=bool),
    )
    return batch.set_column(index, batch.schema.field(index), column)
