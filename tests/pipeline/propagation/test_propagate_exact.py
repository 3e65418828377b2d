"""A session gives upstream's masks bit by bit in fp32, whatever the prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.propagate import FrameResult, Session

from .conftest import Clip, box, click, clicks, mask, prompt_set, upstream


def ours(model: Any, clip: Clip, *objects: list[Any], reverse: bool = False) -> list[dict[int, FrameResult]]:
    """Every object's tracked results by frame: forward, then backward if asked."""
    session = Session(model, prompt_set(*objects), clip.video_hw, clip.num_frames, reverse=reverse, exact=True)
    session.prepare(clip.read)
    lists = list(session.forward(clip.frames()))
    assert [[r.object_id for r in frame] for frame in lists] == [list(range(1, len(objects) + 1))] * clip.num_frames
    if reverse:
        lists += list(session.backward(clip.read))
    tracked = [r for frame in lists for r in frame if r.visibility != "untracked"]
    return [{r.frame_index: r for r in tracked if r.object_id == i + 1} for i in range(len(objects))]


def assert_same(mine: dict[int, FrameResult], theirs: dict[int, torch.Tensor]) -> None:
    assert sorted(mine) == sorted(theirs)
    wrong = [t for t in sorted(mine) if not torch.equal(mine[t].logits_hw, theirs[t])]
    assert wrong == [], [(t, float((mine[t].logits_hw - theirs[t]).abs().max())) for t in wrong]


PROMPTS = {
    "click": [click(0, 50, 35)],
    "clicks": [clicks(0, (50, 35, 1), (60, 40, 1), (5, 5, 0))],
    "box": [box(0, 30, 20, 70, 50)],
    "mask": [mask(0, 30, 20, 70, 50)],
    "several frames": [click(0, 50, 35), box(6, 33, 25, 77, 57), mask(13, 43, 33, 83, 63)],
}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS.keys())
def test_one_object(model: Any, clip: Clip, prompts: list[Any]) -> None:
    mine, theirs = ours(model, clip, prompts), upstream(model, clip, prompts)
    assert_same(mine[0], theirs[0])
    assert any((logits > 0).any() for logits in theirs[0].values())


def test_several_objects_of_one_frame(model: Any, clip: Clip) -> None:
    objects = [[click(0, 50, 35)], [box(0, 90, 10, 130, 60)], [mask(0, 10, 60, 40, 90)]]
    for mine, theirs in zip(ours(model, clip, *objects), upstream(model, clip, *objects), strict=True):
        assert_same(mine, theirs)


def test_a_late_object_equals_its_own_upstream_session(model: Any, clip: Clip) -> None:
    objects = [[click(0, 50, 35)], [box(9, 36, 26, 80, 60)]]
    mine = ours(model, clip, *objects)
    for i, prompts in enumerate(objects):
        assert_same(mine[i], upstream(model, clip, prompts)[0])
    assert min(mine[1]) == 9


def test_reverse_after_forward(model: Any, clip: Clip) -> None:
    objects = [[click(12, 62, 45)], [box(19, 46, 36, 90, 70), click(21, 65, 50)]]
    mine = ours(model, clip, *objects, reverse=True)
    for i, prompts in enumerate(objects):
        theirs = upstream(model, clip, prompts, reverse=True)[0]
        assert sorted(theirs) == list(range(clip.num_frames))
        assert_same(mine[i], theirs)


@pytest.mark.parametrize("seed", [1, 2])
def test_objects_that_the_model_calls_absent(make_model: Any, clip: Clip, seed: int) -> None:
    model = make_model(seed)
    prompts = [click(4, 50, 35)]
    mine, theirs = ours(model, clip, prompts, reverse=True)[0], upstream(model, clip, prompts, reverse=True)[0]
    assert_same(mine, theirs)
    for t, logits in theirs.items():
        assert (mine[t].visibility == "absent") == bool((logits == -1024).all())


@pytest.mark.parametrize(
    "overrides",
    [
        {"memory_temporal_stride_for_eval": 2},
        {"memory_temporal_stride_for_eval": 3, "num_maskmem": 7, "max_obj_ptrs_in_encoder": 4},
        {"max_cond_frames_in_attn": 2},
        {"num_maskmem": 2},
        {"num_maskmem": 1, "max_obj_ptrs_in_encoder": 16},
    ],
    ids=str,
)
def test_other_memory_settings(make_model: Any, clip: Clip, overrides: dict[str, Any]) -> None:
    model = make_model(0, **overrides)
    prompts = [click(7, 57, 42), box(11, 38, 28, 82, 62), mask(18, 48, 38, 88, 68)]
    assert_same(ours(model, clip, prompts, reverse=True)[0], upstream(model, clip, prompts, reverse=True)[0])
