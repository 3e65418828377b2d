"""What people said becomes facts, once and for good; what nobody spoke of stays what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pipeline.prompt_inputs import is_seen
from pipeline.review.answers import Answer, ReviewError
from pipeline.review.corrections import Corrected, pending
from pipeline.review.items import about, read_items
from pipeline.review.repropagate import Stopping
from usam.features import FEATURES

from .answering import BEGAN, answer, facts, give, iou
from .clip import Clip

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def test_one_fix_repairs_its_stretch_and_touches_no_other_object(lost: Clip) -> None:
    clip = lost
    before, rows_before = facts(clip.ledger, clip.video_id), clip.rows()
    listed = len(clip.rows("review"))
    fix = clip.fix(31, 1)
    give(clip.store, fix)
    assert [one.answer_id for one in pending(clip.store)[clip.video_id]] == [fix.answer_id]
    done = clip.apply()
    after, rows = facts(clip.ledger, clip.video_id), clip.rows()
    assert (done.commit.generation, done.commit.corrects, done.commit.answers) == (2, 1, (fix.answer_id,))
    assert done.applied == (fix.answer_id,)
    assert pending(clip.store) == {}
    fixed = rows[31, 1]
    assert iou(fixed, clip.truth) == 1.0
    assert (fixed["prompted"], fixed["decision"], fixed["reasons"]) == ("answer", "accept", ["reviewed"])
    assert (fixed["uncertainty"], fixed["sam_score"], fixed["score_source"]) == (None, None, None)
    others = [key for key in rows if key[1] == 1 and key[0] != 31]
    gain = [iou(rows[key], clip.truth) - iou(rows_before[key], clip.truth) for key in others]
    print(f"neighbours gain {np.mean(gain):.3f} IoU; review rows {listed} -> {len(clip.rows('review'))}")
    assert np.mean(gain) > 0.2
    assert len(clip.rows("review")) < listed
    untouched = lambda table: table.filter([one != 1 for one in table["object_id"].to_pylist()])  # noqa: E731
    keys = ["frame_index", "object_id"]
    assert after.select(keys).equals(before.select(keys))
    assert untouched(after).equals(untouched(before))
    assert after.schema.metadata == before.schema.metadata
    assert [rows[key] for key in rows if key[1] != 1] == [rows_before[key] for key in rows if key[1] != 1]
    assert clip.apply().commit == done.commit  # a second time nothing is left to do
    assert clip.ledger.newest_generation(clip.video_id) == 2


def test_what_was_said_of_a_stretch_counts_for_each_of_its_rows(clip: Clip) -> None:
    before = clip.rows()
    accepted = answer(before[2, 1], "accept", scope="stretch", first_frame=1, last_frame=4, rows=4)
    absent = answer(before[6, 1], "absent", scope="stretch", first_frame=6, last_frame=7, rows=2)
    rejected = answer(before[9, 1], "reject", first_frame=9, last_frame=12, rows=4)  # of that frame alone
    give(clip.store, accepted, absent, rejected)
    assert len(clip.apply().applied) == 3
    rows = clip.rows()
    for frame in range(1, 5):
        assert rows[frame, 1]["rle"] == before[frame, 1]["rle"]
        assert (rows[frame, 1]["prompted"], rows[frame, 1]["decision"]) == ("answer", "accept")
    for frame in (6, 7):
        assert (rows[frame, 1]["area_px"], rows[frame, 1]["visibility"]) == (0, "absent")
        assert (rows[frame, 1]["decision"], rows[frame, 1]["reasons"]) == ("accept", ["reviewed"])
    assert (rows[9, 1]["rle"], rows[9, 1]["visibility"], rows[9, 1]["prompted"]) == (None, "untracked", "reject")
    assert (rows[9, 1]["decision"], rows[9, 1]["reasons"]) == ("hold", ["rejected by a reviewer"])
    assert rows[10, 1]["temporal_iou"] is None  # there is nothing before it to compare with
    assert [key[0] for key in rows if rows[key]["rle"] != before[key]["rle"]] == [6, 7, 9]
    assert not {key for key in clip.rows("review") if key[1] == 1} & {(f, 1) for f in (1, 2, 3, 4, 6, 7, 9)}


def test_the_last_answer_on_a_row_counts_whenever_each_is_applied(clip: Clip) -> None:
    rows = clip.rows()
    late, early = answer(rows[8, 1], "accept", minutes=5), clip.fix(8, 1, minutes=1)
    give(clip.store, late)
    clip.apply()
    give(clip.store, early)
    done = clip.apply()
    assert set(done.commit.answers) == {late.answer_id, early.answer_id}  # it changes nothing, and is not asked again
    assert clip.rows()[8, 1]["rle"] == rows[8, 1]["rle"]
    assert pending(clip.store) == {}


def test_while_the_video_is_away_its_fixes_wait_and_all_else_is_applied(own_clip: Clip) -> None:
    own_clip.label()
    rows = own_clip.rows()
    fix, accept = own_clip.fix(8, 1), answer(rows[2, 1], "accept")
    give(own_clip.store, fix, accept)
    away = own_clip.video.rename(own_clip.video.with_suffix(".away"))
    done = own_clip.apply()
    assert (done.applied, done.waiting) == ((accept.answer_id,), (fix.answer_id,))
    assert done.why is not None
    assert own_clip.rows()[8, 1]["rle"] == rows[8, 1]["rle"]
    assert own_clip.apply().commit == done.commit
    away.rename(own_clip.video)
    done = own_clip.apply()
    assert (done.applied, done.waiting, done.commit.corrects) == ((fix.answer_id,), (), 1)
    assert iou(own_clip.rows()[8, 1], own_clip.truth) == 1.0
    assert own_clip.rows()[2, 1]["rle"] == rows[2, 1]["rle"]


def test_while_the_video_is_away_the_pictures_of_all_that_still_waits_stay(own_clip: Clip) -> None:
    own_clip.label()

    def pictured() -> set[str]:
        waiting = [row for row in own_clip.rows("review").values() if row["representative"]]
        uris = {row["review_id"]: (row["frame_uri"], row["overlay_uri"]) for row in waiting}
        return {name for name, both in uris.items() if all(uri and Path(uri).is_file() for uri in both)}

    before, items = pictured(), next(read_items(own_clip.store)).items
    first = min(before)
    (asked,) = [one for one in items if one.review_id == first]
    give(own_clip.store, Answer(**about(asked), answer_id="a" * 16, frame_index=asked.frame_index, verdict="accept",
                                answered_at=BEGAN, reviewer="ann"))  # fmt: skip
    own_clip.video.rename(own_clip.video.with_suffix(".away"))
    own_clip.apply()
    assert len(before) > 1
    assert pictured() == before - {first}


def test_a_rival_that_commits_meanwhile_is_corrected_in_its_turn(clip: Clip) -> None:
    ours, theirs = clip.fix(8, 1), answer(clip.rows()[3, 2], "absent")
    give(clip.store, ours)
    came: list[Corrected] = []

    @contextmanager
    def slot() -> Iterator[None]:
        if not came:
            ours_key = f"answers/{clip.video_id}/{ours.answer_id}.json"
            body = clip.store.get(ours_key)
            clip.store.delete(ours_key)
            give(clip.store, theirs)
            came.append(clip.apply())
            clip.store.put_atomic(ours_key, body)
        yield

    done = clip.apply(slot=slot)
    assert came[0].commit.generation == 2
    assert (done.commit.generation, done.commit.parent, done.commit.corrects) == (3, 2, 1)
    assert set(done.commit.answers) == {ours.answer_id, theirs.answer_id}
    assert (clip.rows()[3, 2]["visibility"], iou(clip.rows()[8, 1], clip.truth)) == ("absent", 1.0)
    written = {path.name for path in clip.out.glob(f"masks/*/{clip.video_id}-*")}
    named = {clip.ledger.read(clip.video_id, n).file("masks").key.rpartition("/")[2] for n in (1, 2, 3)}
    assert written == named  # the loser left nothing


def test_a_mask_that_is_too_small_for_the_model_is_given_and_stops_nothing_else(own_clip: Clip) -> None:
    own_clip.label()
    row = own_clip.rows()[8, 1]
    tiny_hw = np.zeros((row["height"], row["width"]), bool)
    tiny_hw[3, 3] = True
    assert not is_seen(tiny_hw, own_clip.nano.image_size)
    tiny, good = answer(row, "fix", tiny_hw), own_clip.fix(5, 2)
    give(own_clip.store, tiny, good)
    done = own_clip.apply()
    assert set(done.applied) == {tiny.answer_id, good.answer_id}
    assert (own_clip.rows()[8, 1]["area_px"], iou(own_clip.rows()[5, 2], own_clip.truth)) == (1, 1.0)
    give(own_clip.store, own_clip.fix(11, 1, minutes=5))  # the small mask is no prompt of later corrections
    assert len(own_clip.apply().applied) == 1
    assert own_clip.label(**{"propagate.exact": True}) == "labelled"
    assert own_clip.rows()[8, 1]["area_px"] == 1


def test_objects_that_were_found_are_corrected_too_and_not_found_anew(own_clip: Clip) -> None:
    automatic = {"prompts.on_missing": "auto", "prompts.auto.min_score": 0.3, "prompts.auto.min_stability": 0.3}
    own_clip.label(**automatic)
    frame, object_id = min(own_clip.rows())
    row = own_clip.rows()[frame, object_id]
    mask_hw = np.zeros(own_clip.truth.shape[1:], bool)
    mask_hw[40:90, 40:90] = True
    give(own_clip.store, answer(own_clip.rows()[frame + 2, object_id], "fix", mask_hw))
    done = own_clip.apply()
    assert own_clip.rows()[frame + 2, object_id]["area_px"] == 2500
    assert own_clip.rows()[frame, object_id]["prompt_xyxy"] == row["prompt_xyxy"]
    assert own_clip.label(**automatic) == "unchanged"
    assert own_clip.label(**automatic, **{"propagate.exact": True}) != "labelled"
    assert own_clip.ledger.newest(own_clip.video_id) == done.commit


def test_a_row_that_waits_to_be_judged_stays_what_it_was_drawn_as(clip: Clip) -> None:
    (key, *_) = [key for key, row in clip.rows().items() if row["audit"] and key[0] > 2]
    before = facts(clip.ledger, clip.video_id)
    wrong = np.zeros(clip.truth.shape[1:], bool)
    wrong[:20, :20] = True
    row = clip.rows()[key[0] - 2, key[1]]
    give(clip.store, answer(row, "fix", wrong))
    clip.apply(rule=Stopping(agree_iou=None))
    after = facts(clip.ledger, clip.video_id)
    place = list(zip(after["frame_index"].to_pylist(), after["object_id"].to_pylist(), strict=True)).index(key)
    assert after.slice(place, 1).equals(before.slice(place, 1))
    changed = [i for i in range(after.num_rows) if not after.slice(i, 1).equals(before.slice(i, 1))]
    assert len(changed) > 2
    assert clip.rows()[key]["audit"]


def test_a_mask_that_is_carried_onto_another_object_is_seen_to_overlap_it(own_clip: Clip) -> None:
    own_clip.label()
    place = FEATURES.index("overlap_other")

    def overlaps() -> dict[tuple[int, int], float]:
        table = facts(own_clip.ledger, own_clip.video_id, "tokens").to_pylist()
        values = {(row["frame_index"], row["object_id"]): np.frombuffer(row["features"], "<f4") for row in table}
        return {key: float(features_f[place]) for key, features_f in values.items()}

    before, wrong = overlaps(), own_clip.truth[8] == 2
    give(own_clip.store, answer(own_clip.rows()[8, 1], "fix", wrong))
    own_clip.apply()
    assert before[9, 1] < 0.1
    assert overlaps()[9, 1] > 0.6


@pytest.mark.parametrize("wrong", ["counts", "size"])
def test_a_mask_that_is_none_of_the_video_is_refused_and_nothing_is_committed(clip: Clip, wrong: str) -> None:
    fix = clip.fix(8, 1)
    assert fix.mask is not None
    if wrong == "size":
        fix = answer(clip.rows()[8, 1], "fix", np.ones((80, 160), bool))
    else:
        fix = fix.model_copy(update={"mask": fix.mask.model_copy(update={"counts": "0" * 9})})
    give(clip.store, fix)
    with pytest.raises(ReviewError, match="remove the answer"):
        clip.apply()
    assert clip.ledger.newest_generation(clip.video_id) == 1


def test_under_a_stride_only_labelled_frames_are_corrected(own_clip: Clip) -> None:
    own_clip.label(**{"decode.stride": 3, "output.tokens": False, "output.candidates": False})
    before = own_clip.rows()
    give(own_clip.store, own_clip.fix(9, 1))
    assert own_clip.apply(rule=Stopping(agree_iou=None)).changed == 5
    rows = own_clip.rows()
    assert rows.keys() == before.keys() == {(frame, one) for frame in range(0, 16, 3) for one in (1, 2)}
    assert [row["pts_seconds"] for row in rows.values()] == [row["pts_seconds"] for row in before.values()]
    assert iou(rows[9, 1], own_clip.truth) == 1.0
    moved = {key for key in rows if rows[key]["rle"] != before[key]["rle"]}
    assert {(6, 1), (9, 1), (12, 1)} <= moved <= {(frame, 1) for frame in (3, 6, 9, 12, 15)}
