"""Shots of rows: counted by cuts, and across a cut exactly where no prompt of the object lies in the same shot."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import MASKS
from pipeline.shot_log import ShotLog

FRAMES = 20


def rows(objects: list[int], frames: int = FRAMES) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {
                "video_id": "v", "video_uri": "v.mp4", "frame_index": frame, "pts_seconds": 0.0, "object_id": one,
                "height": 8, "width": 8, "visibility": "visible", "direction": "forward", "auto": False,
                "shot_index": 0, "across_cut": False,
            }
            for frame in range(frames)
            for one in objects
        ],
        schema=MASKS,
    )  # fmt: skip


@settings(deadline=None)
@given(
    cuts=st.sets(st.integers(1, FRAMES - 1)),
    prompts=st.dictionaries(st.integers(1, 3), st.sets(st.integers(0, FRAMES - 1), min_size=1), min_size=1),
    size=st.integers(1, 30),
)
def test_the_columns_follow_their_definition_in_both_directions(
    cuts: set[int], prompts: dict[int, set[int]], size: int
) -> None:
    log = ShotLog()
    for one, frames in prompts.items():
        for frame in frames:
            log.prompt(one, frame)
    for cut in sorted(cuts):
        log.cut(cut)
    whole = rows(sorted(prompts))
    batches = [whole.slice(start, size) for start in range(0, whole.num_rows, size)]
    table = pa.Table.from_batches(list(ShotLog.from_state(log.state()).annotate(batches)), schema=MASKS)
    for row in table.to_pylist():
        frame = row["frame_index"]
        between = [any(min(frame, at) < cut <= max(frame, at) for cut in cuts) for at in prompts[row["object_id"]]]
        assert row["across_cut"] == all(between)
        assert row["shot_index"] == sum(cut <= frame for cut in cuts)


def test_a_cut_that_is_seen_again_counts_once() -> None:
    log = ShotLog()
    for frame in (4, 4, 9, 4):
        log.cut(frame)
    assert log.cuts == [4, 9]
