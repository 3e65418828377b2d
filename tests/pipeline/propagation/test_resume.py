"""A resumed session stays near an uninterrupted one; a corrected one is a fresh one, for the objects it is about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import resume, rle, stored_masks
from pipeline.encode import RowContext, mask_row
from pipeline.errors import PropagationError, StorageError
from pipeline.ledger import Ledger
from pipeline.models import load_model
from pipeline.nano.clips import render_clip
from pipeline.nano.follow import innermost_pixel, tight_box
from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet, prompt_set
from pipeline.propagate import FrameResult, Session
from pipeline.records import MASKS
from pipeline.resume import corrected, frames_remembered, merge_prompts, resume_session
from pipeline.score import ScoredResult
from pipeline.settings import StorageSettings
from pipeline.storage.manifest import facts_key, write_facts
from pipeline.storage.objects import ObjectStore
from pipeline.stored_masks import StoredMask, StoredMasks
from pipeline.video.sample import Sample

FRAMES, VIDEO_HW = 30, (150, 200)
Results = dict[tuple[int, int], FrameResult]


@pytest.fixture(scope="module")
def nano() -> Any:
    return load_model("sam2_nano").model


@pytest.fixture(scope="module")
def scene(nano: Any) -> SimpleNamespace:
    """A drawn clip; object 1 is clicked on the first frame, object 2 boxed on the fourth. The video is not square."""
    clip = render_clip(700_000_004, frames=FRAMES, size=nano.image_size)
    one, two = clip.object_ids[:2]
    scale = np.array(VIDEO_HW[::-1], np.float32) / nano.image_size
    click = np.array([innermost_pixel(clip.mask(one)[0])], np.float32) * scale
    box = np.array(tight_box(clip.mask(two)[4]), np.float32) * np.tile(scale, 2)
    objects = (
        ObjectPrompts(1, None, (FramePrompt(0, click, np.ones(1, np.int32)),)),
        ObjectPrompts(2, None, (FramePrompt(4, box_xyxy=box),)),
    )
    return SimpleNamespace(prompts=prompt_set(objects, "test"), read=lambda index: clip.frames_thw3[index])


def collect(passes: Iterator[list[FrameResult]]) -> Results:
    """The last word on every object and frame."""
    return {(r.object_id, r.frame_index): r for results in passes for r in results}


def frames(read: Any, start: int, end: int = FRAMES) -> Iterator[Any]:
    return (SimpleNamespace(index=i, rgb_hw3=read(i)) for i in range(start, end))


def whole_run(model: Any, prompts: PromptSet, read: Any, **options: Any) -> Results:
    session = Session(model, prompts, VIDEO_HW, FRAMES, **options)
    session.prepare(read)
    found = collect(session.forward(frames(read, 0)))
    return found | collect(session.backward(read)) if session.reverse else found


def counts(result: FrameResult) -> bytes:
    assert result.logits_hw is not None
    return rle.encode_logits(result.logits_hw.numpy(), *VIDEO_HW).counts


def stored_of(results: Results) -> StoredMasks:
    return StoredMasks(
        {
            key: StoredMask(counts(result), result.object_score, *VIDEO_HW)
            for key, result in results.items()
            if result.visibility != "untracked"
        }
    )


@pytest.fixture(scope="module")
def run(nano: Any, scene: SimpleNamespace) -> Results:
    return whole_run(nano, scene.prompts, scene.read)


@pytest.mark.parametrize("t", [1, 3, 5, 18, 29])
def test_it_goes_on_near_an_uninterrupted_run(nano: Any, scene: SimpleNamespace, run: Results, t: int) -> None:
    session = Session.resume(nano, scene.prompts, stored_of(run), t, scene.read, VIDEO_HW, FRAMES)
    again = collect(session.forward(frames(scene.read, t)))
    assert sorted(again) == [(o, i) for o in (1, 2) for i in range(t, FRAMES)]
    followed = [key for key, result in again.items() if result.visibility != "untracked"]
    assert {key for key in again if key not in followed} == {(2, i) for i in range(t, 4)}
    ious = [rle.iou(counts(again[key]), counts(run[key]), *VIDEO_HW) for key in followed]
    assert min(ious) > 0.9
    assert np.mean(ious) > 0.99


def test_it_reads_what_it_says_and_conditioning_frames(nano: Any, scene: SimpleNamespace, run: Results) -> None:
    seen: list[int] = []

    def read(index: int) -> Any:
        seen.append(index)
        return scene.read(index)

    resume_session(nano, scene.prompts, stored_of(run), 25, read, VIDEO_HW, FRAMES)
    assert sorted(seen) == [0, 4, *frames_remembered(nano, FRAMES, 25)]
    assert list(frames_remembered(nano, FRAMES, 25)) == list(range(25 - nano.max_obj_ptrs_in_encoder + 1, 25))
    assert list(frames_remembered(nano, FRAMES, 3)) == [0, 1, 2]


def test_a_mask_that_was_edited_is_what_is_remembered(
    nano: Any, scene: SimpleNamespace, run: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited_hw = np.zeros(VIDEO_HW, bool)
    edited_hw[10:60, 110:170] = True
    masks = dict(stored_of(run)._masks)
    for index in range(1, 20):
        masks[1, index] = StoredMask(rle.encode_mask(edited_hw).counts, 5.0, *VIDEO_HW)
    masks[1, 19] = StoredMask(rle.empty_mask(*VIDEO_HW).counts, -5.0, *VIDEO_HW)
    encoded: list[StoredMask] = []
    encode = resume._encoded

    def noting(session: Session, feats: Any, mask: StoredMask) -> Any:
        encoded.append(mask)
        return encode(session, feats, mask)

    monkeypatch.setattr(resume, "_encoded", noting)
    session = resume_session(nano, scene.prompts, StoredMasks(masks), 20, scene.read, VIDEO_HW, FRAMES)
    assert [mask.present for mask in encoded] == [True] * (len(frames_remembered(nano, FRAMES, 20)) - 1) + [False]
    plain = resume_session(nano, scene.prompts, stored_of(run), 20, scene.read, VIDEO_HW, FRAMES)
    memory, other = (one.tracks[0].propagated[18].spatial_1chw for one in (session, plain))
    assert memory is not None
    assert other is not None
    assert (memory.float() - other.float()).abs().max() > 0.1
    assert torch.equal(session.tracks[0].propagated[19].pointer_1c, nano.no_obj_ptr)
    assert not torch.equal(plain.tracks[0].propagated[19].pointer_1c, nano.no_obj_ptr)


def test_an_object_that_was_not_followed_stays_so(nano: Any, scene: SimpleNamespace, run: Results) -> None:
    masks = {key: mask for key, mask in stored_of(run)._masks.items() if key[0] == 2 or key[1] < 12}
    session = resume_session(nano, scene.prompts, StoredMasks(masks), 15, scene.read, VIDEO_HW, FRAMES, barriers=[12])
    again = collect(session.forward(frames(scene.read, 15)))
    assert {r.visibility for (o, _), r in again.items() if o == 1} == {"untracked"}
    assert all(r.visibility != "untracked" for (o, _), r in again.items() if o == 2)


@pytest.mark.parametrize("lost", [11, 14])
def test_an_object_that_must_have_been_followed_needs_its_masks(
    nano: Any, scene: SimpleNamespace, run: Results, lost: int
) -> None:
    whole = stored_of(run)._masks
    masks = StoredMasks({key: mask for key, mask in whole.items() if key != (1, lost)})
    rest = (15, scene.read, VIDEO_HW, FRAMES)
    with pytest.raises(PropagationError, match=f"mask of object 1 on frame {lost}"):
        resume_session(nano, scene.prompts, masks, *rest)
    with pytest.raises(PropagationError, match="mask of object 1"):
        resume_session(nano, scene.prompts, masks, *rest, barriers=[0, lost + 1])  # not between prompt and frame
    resume_session(nano, scene.prompts, masks, *rest, barriers=[lost])


def test_an_automatic_object_without_masks_has_ended(nano: Any, scene: SimpleNamespace, run: Results) -> None:
    one, two = scene.prompts.objects
    auto = ObjectPrompts(1, None, (FramePrompt(0, one.frames[0].points_n2, one.frames[0].labels_n, auto=True),))
    masks = StoredMasks({key: mask for key, mask in stored_of(run)._masks.items() if key[0] == 2 or key[1] < 10})
    found, rest = prompt_set([auto, two], "test"), (15, scene.read, VIDEO_HW, FRAMES)
    session = resume_session(nano, found, masks, *rest)
    copy = Session.from_state(nano, found, VIDEO_HW, FRAMES, session.state(), reverse=False)
    for each in (session, copy):
        again = collect(each.forward(frames(scene.read, 15)))
        assert sorted(again) == [(2, i) for i in range(15, FRAMES)]
    revived = merge_prompts(prompt_set([auto], "test"), fix(1, 20, 60, 40, 120, 110))
    again = collect(resume_session(nano, revived, masks, *rest).forward(frames(scene.read, 15)))
    assert [i for (_, i), r in sorted(again.items()) if r.logits_hw is not None] == list(range(20, FRAMES))


def test_there_is_no_way_back_from_stored_masks(nano: Any, scene: SimpleNamespace, run: Results) -> None:
    with pytest.raises(PropagationError, match="reverse=False"):
        resume_session(nano, scene.prompts, stored_of(run), 15, scene.read, VIDEO_HW, FRAMES, reverse=True)


@pytest.mark.parametrize("t", [-1, FRAMES])
def test_a_frame_outside_of_the_video_is_refused(nano: Any, scene: SimpleNamespace, run: Results, t: int) -> None:
    with pytest.raises(PropagationError, match=r"0\.\.29"):
        resume_session(nano, scene.prompts, stored_of(run), t, scene.read, VIDEO_HW, FRAMES)


# Corrections ----------------------------------------------------------------------------------------------------------


def fix(object_id: int, frame_index: int, *xyxy: float) -> PromptSet:
    prompt = FramePrompt(frame_index, box_xyxy=np.array(xyxy, np.float32))
    return prompt_set([ObjectPrompts(object_id, None, (prompt,))], "review")


@pytest.mark.parametrize(("object_id", "frame_index"), [(1, 12), (1, 0), (2, 12), (2, 2), (3, 10)])
def test_the_exact_way_is_a_fresh_session_with_all_prompts(
    nano: Any, scene: SimpleNamespace, object_id: int, frame_index: int
) -> None:
    new = fix(object_id, frame_index, 60, 40, 120, 110)
    found = collect(corrected(nano, scene.prompts, new, scene.read, VIDEO_HW, FRAMES, exact=True))
    everything = {one.object_id: one for one in scene.prompts.objects}
    everything |= {one.object_id: one for one in merge_prompts(scene.prompts, new).objects}
    fresh = whole_run(nano, prompt_set(everything.values(), "all"), scene.read, exact=True)
    assert {o for o, _ in found} == {object_id}  # the others are independent of it
    for key, wanted in fresh.items():
        if key[0] != object_id:
            continue
        assert key in found
        assert (found[key].visibility, found[key].prompted) == (wanted.visibility, wanted.prompted)
        if wanted.logits_hw is not None:
            assert torch.equal(found[key].logits_hw, wanted.logits_hw)


def test_the_fast_way_goes_from_the_prompt_before_to_the_prompt_after(nano: Any, scene: SimpleNamespace) -> None:
    old, read, scale = scene.prompts, scene.read, (VIDEO_HW, FRAMES)
    found = collect(corrected(nano, old, fix(2, 12, 60, 40, 120, 110), read, *scale, fast=True))
    assert sorted(found) == [(2, i) for i in range(5, FRAMES)]
    assert [found[2, i].direction for i in (5, 11, 12, 13)] == ["reverse", "reverse", "none", "forward"]
    before = collect(corrected(nano, old, fix(2, 2, 60, 40, 120, 110), read, *scale, fast=True))
    assert sorted(before) == [(2, i) for i in range(4)]
    forward = collect(corrected(nano, old, fix(2, 2, 60, 40, 120, 110), read, *scale, fast=True, reverse=False))
    assert sorted(forward) == [(2, 2), (2, 3)]


def test_fast_corrections_of_one_object_meet_without_a_gap(nano: Any, scene: SimpleNamespace) -> None:
    two = [fix(1, i, 60, 40, 120, 110).objects[0].frames[0] for i in (9, 20)]
    new = prompt_set([ObjectPrompts(1, None, tuple(two))], "review")
    passes = [r for rs in corrected(nano, scene.prompts, new, scene.read, VIDEO_HW, FRAMES, fast=True) for r in rs]
    assert sorted(r.frame_index for r in passes) == list(range(1, FRAMES))  # every frame once


def test_a_new_prompt_replaces_the_one_on_its_frame_and_leaves_other_objects_out(scene: SimpleNamespace) -> None:
    new = fix(1, 0, 60, 40, 120, 110)
    (one,) = merge_prompts(scene.prompts, new).objects
    assert [frame.kind for frame in one.frames] == ["box"]
    (two,) = merge_prompts(scene.prompts, fix(2, 1, 60, 40, 120, 110)).objects
    assert [frame.frame_index for frame in two.frames] == [1, 4]


# Stored masks ---------------------------------------------------------------------------------------------------------


def commit_rows(
    tmp_path: Path, run: Results, sample: Sample, auto: Any = (), metadata: Any = None
) -> tuple[ObjectStore, Any]:
    context = RowContext("0" * 64, "clip.mp4", {}, *VIDEO_HW, auto=set(auto))
    rows = []
    for (_, index), result in sorted(run.items(), key=lambda item: (item[0][1], item[0][0])):
        row = mask_row(context, index / 25, ScoredResult(result))
        rows.append({**row, "frame_index": sample.frame_index(index), "shot_index": 0, "across_cut": False})
    store = ObjectStore(str(tmp_path), StorageSettings())
    batch = pa.RecordBatch.from_pylist(rows, schema=MASKS)
    file = write_facts(store, "masks", facts_key("masks", "d", "0" * 64, "1"), [batch], MASKS, metadata or {})
    ledger = Ledger(store)
    from datetime import UTC, datetime

    commit = ledger.commit(
        "0" * 64, parent=0, work_key="k", video_uri="clip.mp4", drop="d", files=[file], run_id="r", attempt=1,
        started_at=datetime.now(UTC),
    )  # fmt: skip
    return store, commit


@pytest.mark.parametrize("stride", [1, 3])
def test_masks_come_back_from_facts_at_positions(tmp_path: Path, run: Results, stride: int) -> None:
    sample = Sample(FRAMES) if stride == 1 else Sample(FRAMES * stride, np.arange(FRAMES) * stride)
    store, commit = commit_rows(tmp_path, run, sample)
    found = StoredMasks.from_facts(store, commit, range(2, 12), sample=sample)
    wanted = stored_of(run)
    for object_id in (1, 2):
        for index in range(2, 12):
            one, other = found.get(object_id, index), wanted.get(object_id, index)
            assert (one is None) == (other is None)
            assert one is None or (one.counts, one.present) == (other.counts, other.present)
    assert found.get(1, 12) is None
    with pytest.raises(StorageError, match="frame"):
        StoredMasks.from_facts(store, commit, [FRAMES * stride], sample=None)


def test_automatic_objects_come_back_from_facts_where_nobody_is_followed_too(
    tmp_path: Path, nano: Any, scene: SimpleNamespace
) -> None:
    box = np.array([60, 40, 120, 110], np.float32) / 3
    auto = prompt_set([ObjectPrompts(5, None, (FramePrompt(9, box_xyxy=box, auto=True),), 6)], "test")
    rows = {key: one for key, one in whole_run(nano, auto, scene.read).items() if 6 <= key[1] < 15}
    sample = Sample(FRAMES * 3, np.arange(FRAMES) * 3)
    config = {"sampling": {"stride": 3}}
    store, commit = commit_rows(tmp_path, rows, sample, auto=[5], metadata={"config": config, "num_frames": FRAMES * 3})
    assert StoredMasks.from_facts(store, commit, range(18, 25), sample=sample)._masks == {}
    stored = StoredMasks.from_facts(store, commit, range(12, 25), sample=sample)
    assert sorted(stored._masks) == [(5, 12), (5, 13), (5, 14)]
    found = stored_masks.found_objects(store, commit, sample=sample)
    assert found.sha256 == auto.sha256  # the very boxes, and how far back
    with pytest.raises(StorageError, match=f"frame {FRAMES}"):
        StoredMasks.from_facts(store, commit, [FRAMES], sample=sample)
    with pytest.raises(StorageError, match="name the sample"):
        StoredMasks.from_facts(store, commit, range(1, 3))


def test_frames_past_the_end_of_an_automatic_video_are_refused(tmp_path: Path, run: Results) -> None:
    store, commit = commit_rows(tmp_path, {}, Sample(FRAMES), metadata={"num_frames": FRAMES})
    assert StoredMasks.from_facts(store, commit, range(FRAMES))._masks == {}
    assert stored_masks.found_objects(store, commit).objects == ()
    with pytest.raises(StorageError, match=f"frame {FRAMES}"):
        StoredMasks.from_facts(store, commit, [FRAMES])


def test_automatic_objects_without_their_boxes_are_refused(tmp_path: Path, run: Results) -> None:
    store, commit = commit_rows(tmp_path, run, Sample(FRAMES), auto=[1])
    with pytest.raises(StorageError, match="label again"):
        stored_masks.found_objects(store, commit)
