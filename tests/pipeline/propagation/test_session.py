"""A session is bounded in memory, encodes each frame once, keeps the chosen mask's numbers, refuses what is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import PromptError, PropagationError, ShapeError
from pipeline.prompts import FramePrompt
from pipeline.propagate import Session

from .conftest import HEIGHT, WIDTH, Clip, box, click, mask, prompt_set


def start(model: Any, clip: Clip, *objects: list[FramePrompt], **options: Any) -> Session:
    session = Session(model, prompt_set(*objects), clip.video_hw, clip.num_frames, **options)
    session.prepare(clip.read)
    return session


def test_state_does_not_grow_with_the_video(model: Any, make_clip: Callable[[int], Clip]) -> None:
    clip = make_clip(121)
    session = start(model, clip, [box(0, 30, 20, 70, 50)], [click(10, 55, 40)])
    held = [session.state_bytes() for _ in session.forward(clip.frames())]
    assert len(set(held[40:])) == 1
    assert held[40] < 2_000_000


def test_state_does_not_grow_in_reverse(model: Any, make_clip: Callable[[int], Clip]) -> None:
    clip = make_clip(60)
    session = start(model, clip, [box(59, 30, 20, 70, 50)])
    list(session.forward(clip.frames()))
    held = [session.state_bytes() for _ in session.backward(clip.read)]
    assert len(held) == 59
    assert len(set(held[20:])) == 1


def test_each_frame_is_encoded_once(model: Any, clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = model.forward_image
    monkeypatch.setattr(model, "forward_image", lambda image: calls.append(1) or encode(image))
    session = start(model, clip, [click(0, 50, 35), click(8, 50, 35)], [box(3, 90, 10, 130, 60)])
    list(session.forward(clip.frames()))
    assert len(calls) == clip.num_frames


def test_before_the_first_prompt_nothing_is_invented(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(5, 50, 35)])
    frames = list(session.forward(clip.frames()))
    before = [frame[0] for frame in frames[:5]]
    assert all(r.visibility == "untracked" and r.direction == "none" and r.logits_hw is None for r in before)
    assert frames[5][0].prompted == "click"
    assert [r[0].direction for r in frames[6:]] == ["forward"] * (clip.num_frames - 6)
    back = list(session.backward(clip.read))
    assert [r[0].frame_index for r in back] == [4, 3, 2, 1, 0]
    assert {r[0].direction for r in back} == {"reverse"}


def test_backward_yields_only_objects_that_start_later(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(0, 50, 35)], [click(2, 50, 35)], [click(4, 50, 35)])
    assert list(session.backward_frames) == [3, 2, 1, 0]
    found = [[r.object_id for r in frame] for frame in session.backward(clip.read)]
    assert found == [[3], [3], [2, 3], [2, 3]]


def test_the_chosen_mask_is_the_candidate_with_the_best_score(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(0, 50, 35)], keep_candidates=True)
    for frame in session.forward(clip.frames()):
        r = frame[0]
        assert r.chosen is not None
        assert r.candidates_3hw is not None
        assert r.candidate_scores_3 is not None
        assert r.chosen == 1 + int(r.candidate_scores_3.argmax())
        assert r.sam_score == pytest.approx(float(r.candidate_scores_3.max()))
        if r.visibility == "visible":
            assert torch.equal(r.logits_hw, r.candidates_3hw[r.chosen - 1])


def test_a_given_mask_has_no_score(model: Any, clip: Clip) -> None:
    session = start(model, clip, [mask(0, 30, 20, 70, 50)], keep_candidates=True)
    first, second = (frame[0] for frame in list(session.forward(clip.frames()))[:2])
    assert (first.prompted, first.visibility) == ("mask", "visible")
    assert first.sam_score is first.tokens_2d is first.chosen is first.candidates_3hw is None
    assert second.sam_score is not None
    assert second.tokens_2d is not None
    assert second.tokens_2d.shape == (2 * model.hidden_dim,)


def test_tokens_and_candidates_only_on_request(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(0, 50, 35)], keep_tokens=False)
    assert all(f[0].tokens_2d is None and f[0].candidates_3hw is None for f in session.forward(clip.frames()))


@pytest.mark.parametrize(
    "where", ["sam_mask_decoder.pred_obj_score_head.layers.2.bias", "memory_encoder.out_proj.bias"]
)
def test_a_value_that_is_not_finite_stops_the_video(make_model: Callable[..., Any], clip: Clip, where: str) -> None:
    model = make_model(0)
    session = start(model, clip, [click(0, 50, 35)])
    dict(model.named_parameters())[where].data[0] = float("nan")
    with pytest.raises(PropagationError, match=r"non-finite value for object 1 on frame [12]"):
        list(session.forward(clip.frames()))


def test_bfloat16_runs_and_stays_near(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(0, 50, 35)], precision="bfloat16")
    first = next(iter(session.forward(clip.frames())))[0]
    exact = next(iter(start(model, clip, [click(0, 50, 35)]).forward(clip.frames())))[0]
    assert first.logits_hw is not None
    assert first.logits_hw.dtype == torch.float32
    assert (first.logits_hw - exact.logits_hw).abs().mean() < 0.2


def test_a_gap_in_the_frames_is_refused(model: Any, clip: Clip) -> None:
    frames = [f for f in clip.frames() if f.index != 3]
    with pytest.raises(PropagationError, match="frame 3 of 22, got frame 4"):
        list(start(model, clip, [click(0, 50, 35)]).forward(frames))


def test_passes_come_in_order(model: Any, clip: Clip) -> None:
    session = Session(model, prompt_set([click(0, 50, 35)]), clip.video_hw, clip.num_frames)
    with pytest.raises(PropagationError, match="prepared"):
        next(session.forward(clip.frames()))


@pytest.mark.parametrize("frame", [-1, 22])
def test_a_prompt_on_no_frame_is_refused(model: Any, clip: Clip, frame: int) -> None:
    with pytest.raises(PromptError, match=r"frames 0\.\.21"):
        start(model, clip, [click(frame, 50, 35)])


def test_a_mask_that_vanishes_at_model_size_is_refused(model: Any, clip: Clip) -> None:
    speck_hw = np.zeros((HEIGHT * 8, WIDTH * 8), bool)
    speck_hw[100, 100] = True
    with pytest.raises(PromptError, match="128 x 128"):
        start(model, clip, [FramePrompt(0, mask_hw=speck_hw)])


def test_frames_of_another_size_are_refused(model: Any, clip: Clip) -> None:
    session = Session(model, prompt_set([click(0, 50, 35)]), clip.video_hw, clip.num_frames)
    with pytest.raises(ShapeError, match=r"\(128, 128, 3\)"):
        session.prepare(lambda index: np.zeros((64, 64, 3), np.uint8))


def test_options_that_break_identity_are_refused(make_model: Callable[..., Any], clip: Clip) -> None:
    model = make_model(0, fill_hole_area=8)
    with pytest.raises(PropagationError, match="fill_hole_area"):
        Session(model, prompt_set([click(0, 50, 35)]), clip.video_hw, clip.num_frames)
