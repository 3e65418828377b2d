"""What people said of single rows, laid over facts: what it changes of the rows around."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest

from pipeline import rle
from pipeline.records import MASKS
from pipeline.review.answers import Verdict
from pipeline.review.kept_answers import KeptAnswers
from pipeline.review.laid_over import Key, Said, across_cuts, lay_over, prompted_shots
from pipeline.shot_log import ShotLog

from .answering import answer

SHOWN = rle.encode_mask(np.eye(8, dtype=bool))
CUT = 2


def rows() -> pa.RecordBatch:
    """An object that was clicked on in the first shot and followed into the second."""
    return pa.RecordBatch.from_pylist(
        [
            {
                "video_id": "0" * 64, "video_uri": "a.mp4", "frame_index": frame, "pts_seconds": frame / 25,
                "object_id": 1, "height": 8, "width": 8, "rle": SHOWN.counts, "area_px": SHOWN.area_px,
                "visibility": "visible", "prompted": None if frame else "click", "auto": False, "direction": "forward",
                "shot_index": int(frame >= CUT), "across_cut": frame >= CUT,
            }
            for frame in range(5)
        ],
        schema=MASKS,
    )  # fmt: skip


@pytest.mark.parametrize(("verdict", "vouched"), [("accept", True), ("absent", False), ("reject", False)])
def test_behind_a_cut_only_a_mask_that_somebody_saw_vouches_for_the_others(verdict: Verdict, vouched: bool) -> None:
    mask = {"accept": SHOWN, "absent": rle.empty_mask(8, 8), "reject": None}[verdict]
    one = answer({"video_id": "0" * 64, "object_id": 1, "frame_index": 3, "area_px": SHOWN.area_px}, verdict)
    said: Mapping[Key, Said] = {(3, 1): Said(one, mask, True, 8, 8)}
    laid = list(lay_over([rows()], said))
    corrected = pa.Table.from_batches(across_cuts(laid, prompted_shots(laid)))
    shots = ShotLog()
    shots.cut(CUT)
    shots.prompt(1, 0)
    kept = KeptAnswers(said, (one.answer_id,), 1)
    labelled_anew = pa.Table.from_batches(shots.annotate(list(kept.masks([rows()], shots))))
    for table in (corrected, labelled_anew):
        assert table["across_cut"].to_pylist()[:3] == [False, False, not vouched]
        assert table["across_cut"].to_pylist()[4] is not vouched
