"""The three masks that SAM2 offered where a video was labelled, from its candidates sidecar."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from pipeline import rle
from pipeline.errors import StorageError
from pipeline.ledger import Ledger
from pipeline.review.editor import Candidate
from pipeline.review.items import Item
from pipeline.review.shown import ShownRow

COUNT = 3
_COLUMNS = ["candidate_index", "height", "width", "rle", "sam_score", "chosen"]


def offered(ledger: Ledger, item: Item, row: ShownRow) -> list[Candidate] | None:
    """What the model chose among on the representative frame.

    Args:    row: of that frame; where its mask was chosen, the mask itself stands for its low-resolution copy.
    Returns: three masks (item.height, item.width) with SAM2's scores in [0, 1], as numbered in the sidecar; None where
             the video has no sidecar, or the frame none there: it carried a prompt, or a person gave its mask.
    """
    filters = [("frame_index", "=", item.frame_index), ("object_id", "=", item.object_id)]
    try:
        commit = ledger.read(item.video_id, item.generation)
        with ledger.store.open(commit.file("candidates").key) as file:
            found = pq.read_table(file, columns=_COLUMNS, filters=filters).sort_by("candidate_index").to_pylist()
    except StorageError:
        return None
    if len(found) != COUNT:
        return None
    masks = []
    for one in found:
        low_hw = np.where(rle.decode(one["rle"], one["height"], one["width"]), 1.0, -1.0).astype(np.float32)
        full = rle.encode_logits(low_hw, item.height, item.width).counts
        counts = row.counts if one["chosen"] and row.counts is not None else full
        masks.append(Candidate(rle.decode(counts, item.height, item.width), float(one["sam_score"] or 0.0)))
    return masks
