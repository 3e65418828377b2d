"""Answers outlive what is done to a video afterwards: labelling anew, damage, other heads, garbage collection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import StorageError
from pipeline.fit_reviewed import harvest_reviewed
from pipeline.forget import forget, known_videos
from pipeline.gc import Sweep
from pipeline.models import LoadedModel
from pipeline.other_heads import Banks
from pipeline.rescore import rescore_video
from pipeline.review.answers import answered_videos, write_answer
from pipeline.review.corrections import pending, unfinished
from pipeline.settings import DropSettings

from .answering import answer, facts, give, iou
from .clip import Clip

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def test_labelling_anew_keeps_what_people_said(own_clip: Clip) -> None:
    own_clip.label()
    before = own_clip.rows()
    fix, reject = own_clip.fix(8, 1), answer(before[12, 1], "reject")
    accept = answer(before[3, 1], "accept", scope="stretch", first_frame=2, last_frame=4, rows=3)
    give(own_clip.store, fix, reject, accept)
    corrected = own_clip.apply().commit
    assert own_clip.label() == "unchanged"
    assert own_clip.label(**{"propagate.exact": True}) == "labelled"
    commit, rows = own_clip.ledger.newest(own_clip.video_id), own_clip.rows()
    assert commit is not None
    assert (commit.generation, commit.answers, commit.corrects) == (3, corrected.answers, 1)
    assert own_clip.label(**{"propagate.exact": True}) == "unchanged"
    assert pending(own_clip.store) == {}
    assert (rows[8, 1]["prompted"], iou(rows[8, 1], own_clip.truth)) == ("answer", 1.0)
    assert [rows[frame, 1]["rle"] for frame in (2, 3, 4)] == [before[frame, 1]["rle"] for frame in (2, 3, 4)]
    assert {rows[frame, 1]["reasons"][0] for frame in (2, 3, 4, 8)} == {"reviewed"}
    assert (rows[12, 1]["visibility"], rows[12, 1]["decision"]) == ("untracked", "hold")
    free = [frame for frame in range(5, 16) if frame not in (8, 12)]
    gain = [iou(rows[frame, 1], own_clip.truth) - iou(before[frame, 1], own_clip.truth) for frame in free]
    assert np.mean(gain) > 0.01  # the fix prompts the model
    tokens = facts(own_clip.ledger, own_clip.video_id, "tokens")
    given = set(zip(tokens["frame_index"].to_pylist(), tokens["object_id"].to_pylist(), strict=True))
    assert not given & {(frame, 1) for frame in (2, 3, 4, 8, 12)}


def test_under_a_number_that_now_names_something_else_nobody_has_said_anything(own_clip: Clip) -> None:
    own_clip.label()
    accept = answer(own_clip.rows()[3, 1], "accept")
    give(own_clip.store, accept, own_clip.fix(8, 2))
    own_clip.apply()
    path = own_clip.video.with_suffix(".prompts.json")
    prompts = json.loads(path.read_text())
    next(one for one in prompts["objects"] if one["object_id"] == 1)["label"] = "something else"
    path.write_text(json.dumps(prompts))
    assert own_clip.label() == "labelled"
    rows = own_clip.rows()
    assert (rows[3, 1]["prompted"], rows[8, 2]["prompted"]) == (None, "answer")
    assert pending(own_clip.store) == {}


def test_facts_that_were_damaged_are_made_again_with_the_answers(own_clip: Clip) -> None:
    own_clip.label()
    give(own_clip.store, own_clip.fix(8, 1))
    commit = own_clip.apply().commit
    (own_clip.out / commit.file("masks").key).write_bytes(b"damaged")
    assert own_clip.label() == "labelled"
    newest = own_clip.ledger.newest(own_clip.video_id)
    assert newest is not None
    assert (newest.answers, newest.generation) == (commit.answers, 3)
    assert iou(own_clip.rows()[8, 1], own_clip.truth) == 1.0


def test_heads_score_corrected_facts_and_keep_the_answers(own_clip: Clip) -> None:
    own_clip.label()
    give(own_clip.store, own_clip.fix(8, 1))
    commit = own_clip.apply().commit
    for layer in ("tokens", "candidates"):
        table = facts(own_clip.ledger, own_clip.video_id, layer)
        keys = list(zip(table["frame_index"].to_pylist(), table["object_id"].to_pylist(), strict=True))
        assert keys == sorted(keys)
        assert (8, 1) not in keys
        assert len(set(keys)) == commit.rows - 1

    class Other(Banks):  # heads that call themselves others, and say the same
        def fitting(self, facts: Any, tokens: Any) -> Any:
            return super().fitting(facts, tokens)._replace(sha256="0" * 64)

    before = own_clip.rows()
    done = rescore_video(
        own_clip.store, own_clip.ledger, own_clip.video_id, Other(own_clip.settings), own_clip.settings,
        own_clip.out.parent,
    )  # fmt: skip
    newest = own_clip.ledger.newest(own_clip.video_id)
    assert newest is not None
    assert (done.status, newest.answers, newest.corrects) == ("rescored", commit.answers, 1)
    assert own_clip.rows()[8, 1] == before[8, 1]
    for key, row in own_clip.rows().items():
        assert row["iou_stacked"] == pytest.approx(before[key]["iou_stacked"], abs=0.02)


def test_heads_are_fitted_to_the_masks_that_were_judged(own_clip: Clip, nano: LoadedModel, tmp_path: Path) -> None:
    own_clip.label()
    before = own_clip.rows()
    give(own_clip.store, own_clip.fix(8, 1))
    own_clip.apply()
    judged = {key: {"iou": iou(before[key], own_clip.truth)} for key in ((8, 1), (12, 1))}
    shard, _ = harvest_reviewed({own_clip.video_id: judged}, own_clip.store, nano, tmp_path / "shard")
    assert shard.column("frame_index").tolist() == [8, 12]
    assert shard.column("sam_score").tolist() == pytest.approx([before[key]["sam_score"] for key in judged], abs=1e-6)


def test_what_people_judged_is_no_garbage_and_goes_with_its_video(clip: Clip) -> None:
    give(clip.store, clip.fix(8, 1))
    clip.apply()
    give(clip.store, answer(clip.rows()[3, 2], "absent", generation=2))
    clip.apply()
    give(clip.store, answer(clip.rows()[4, 2], "absent", generation=1))
    clip.apply()
    sweeper = Sweep(clip.store, clip.ledger, DropSettings(), older_than_seconds=0, superseded=True)
    sweeper.remove(sweeper.look().orphans)
    there = [clip.store.exists(clip.ledger.read(clip.video_id, n).file("masks").key) for n in (1, 2, 3, 4)]
    assert there == [True, True, False, True]
    subject = known_videos(clip.store).subject(clip.video_id)
    done = forget(clip.store, clip.ledger, clip.settings, subject)
    assert done.removed["answers"] == 3
    assert (done.proof.traces, clip.video_id in answered_videos(clip.store)) == ((), False)
    late = answer({"video_id": clip.video_id, "object_id": 1, "frame_index": 0, "area_px": 1}, "reject")
    assert not write_answer(clip.store, late)  # of a queue that has not heard of it
    assert unfinished(clip.store) == []
    with pytest.raises(StorageError):
        clip.apply()
