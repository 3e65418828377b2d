"""A capture sees the mask that SAM2 chose, pairs it with its token, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import usam
from usam.capture import TokenCapture
from usam.errors import HeadError


@pytest.fixture(scope="module")
def model(build_sam2: Callable[..., Any]) -> Any:
    return build_sam2(0)


def decode(model: Any, points: int, multimask: bool) -> Any:
    """The decoder's three interesting outputs for two rows of random features."""
    generator = torch.Generator().manual_seed(5)
    size, d = model.sam_image_embedding_size, model.hidden_dim
    features = torch.randn(2, d, size, size, generator=generator)
    high = [torch.randn(2, d // 8, 4 * size, 4 * size, generator=generator)]
    high += [torch.randn(2, d // 4, 2 * size, 2 * size, generator=generator)]
    coords = torch.rand(2, points, 2, generator=generator) * model.image_size
    with torch.inference_mode():
        return model._forward_sam_heads(
            backbone_features=features,
            point_inputs={"point_coords": coords, "point_labels": torch.ones(2, points, dtype=torch.int32)},
            high_res_features=high,
            multimask_output=multimask,
        )


def test_multimask_rows_follow_the_best_score(model: Any) -> None:
    with TokenCapture(model) as capture:
        _, _, ious, *_ = decode(model, 1, multimask=True)
        call = capture.take()
    assert torch.equal(call.chosen_n, ious.argmax(1) + 1)
    assert torch.equal(call.sam_score_n, ious.max(1).values)
    assert torch.equal(call.candidate_scores_n3, ious)
    own = call.mask_tokens_n4d[torch.arange(2), call.chosen_n]
    assert torch.equal(call.pairs(), torch.cat([call.iou_token_nd, own], 1))
    published = call.mask_tokens_n4d[torch.arange(2), call.chosen_n - 1]
    assert torch.equal(call.pairs(0)[:, model.hidden_dim :], published)


@pytest.mark.parametrize("threshold", [0.0, 2.0])
def test_the_token_follows_a_swap_for_stability(model: Any, monkeypatch: pytest.MonkeyPatch, threshold: float) -> None:
    monkeypatch.setattr(model.sam_mask_decoder, "dynamic_multimask_stability_thresh", threshold)
    with TokenCapture(model) as capture:
        _, _, ious, low, *_ = decode(model, 3, multimask=False)
        call = capture.take()
    assert torch.equal(call.sam_score_n, ious[:, 0])
    if threshold == 0.0:
        assert call.chosen_n.tolist() == [0, 0]
        assert torch.equal(call.pairs(0), call.pairs(1))
    else:
        best = call.candidate_scores_n3.argmax(1)
        assert torch.equal(call.chosen_n, best + 1)
        assert torch.equal(ious[:, 0], call.candidate_scores_n3.max(1).values)
        present = low[:, 0, 0, 0] != -1024
        assert torch.equal(low[present, 0], call.candidates_n3hw[torch.arange(2), best][present])


def test_the_tokens_are_those_that_made_the_scores(model: Any) -> None:
    with TokenCapture(model) as capture:
        _, _, ious, *_ = decode(model, 1, multimask=True)
        call = capture.take()
    with torch.inference_mode():
        again = model.sam_mask_decoder.iou_prediction_head(call.iou_token_nd)[:, 1:]
    assert torch.equal(again, ious)


def test_the_model_is_untouched_inside_and_after(model: Any) -> None:
    before = decode(model, 2, multimask=False)
    with TokenCapture(model) as capture:
        inside = decode(model, 2, multimask=False)
        capture.take()
    assert all(torch.equal(a, b) for a, b in zip(before, inside, strict=True))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0


def test_a_call_is_given_out_once(model: Any) -> None:
    with TokenCapture(model) as capture:
        decode(model, 1, multimask=True)
        capture.take()
        with pytest.raises(HeadError, match="none"):
            capture.take()


def heads(model: Any, rows: int, kind: str, multimask: bool) -> Any:
    """The decoder's outputs for rows of random features under one kind of prompt."""
    generator = torch.Generator().manual_seed(rows)
    side, d, size = model.sam_image_embedding_size, model.hidden_dim, model.image_size
    points, masks = None, None
    if kind in ("click", "clicks", "box"):
        count = {"click": 1, "clicks": 4, "box": 2}[kind]
        labels = torch.tensor([[2, 3]]) if kind == "box" else torch.tensor([[1, 0, 1, -1]])[:, :count]
        coords = (torch.rand(rows, count, 2, generator=generator) * size).sort(1).values
        points = {"point_coords": coords, "point_labels": labels.expand(rows, -1).int()}
    if kind == "mask":
        masks = (torch.rand(rows, 1, size, size, generator=generator) > 0.5).float()
    with torch.inference_mode():
        return model._forward_sam_heads(
            backbone_features=torch.randn(rows, d, side, side, generator=generator),
            point_inputs=points,
            mask_inputs=masks,
            high_res_features=[
                torch.randn(rows, d // 8, 4 * side, 4 * side, generator=generator),
                torch.randn(rows, d // 4, 2 * side, 2 * side, generator=generator),
            ],
            multimask_output=multimask,
        )


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["nothing", "click", "clicks", "box", "mask"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_captured_choice_is_the_mask_that_came_out(model: Any, rows: int, kind: str, multimask: bool) -> None:
    with usam.attach(model) as capture:
        _, _, ious, low, _, _, presence = heads(model, rows, kind, multimask)
        call = capture.take()
    torch.testing.assert_close(call.sam_score_n, ious.max(1).values)
    assert call.pairs().shape == (rows, 2 * model.hidden_dim)
    for i in range(rows):
        chosen = int(call.chosen_n[i])
        assert torch.equal(call.pairs()[i, model.hidden_dim :], call.mask_tokens_n4d[i, chosen])
        if chosen:
            assert call.candidate_scores_n3[i, chosen - 1] == call.sam_score_n[i]
        if chosen and presence[i] > 0:
            assert torch.equal(call.candidates_n3hw[i, chosen - 1], low[i, 0])


def follow(model: Any, capture: TokenCapture | None = None) -> tuple[list[torch.Tensor], list[int]]:
    """Two objects, prompted by a click and by a box, followed by upstream's predictor; masks, and calls per frame."""
    frames = torch.randn(4, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    state: Any = {
        "images": frames, "num_frames": 4, "offload_video_to_cpu": False, "offload_state_to_cpu": False,
        "video_height": 60, "video_width": 90, "device": frames.device, "storage_device": frames.device,
        "point_inputs_per_obj": {}, "mask_inputs_per_obj": {}, "cached_features": {}, "constants": {},
        "obj_id_to_idx": {}, "obj_idx_to_id": {}, "obj_ids": [], "output_dict_per_obj": {},
        "temp_output_dict_per_obj": {}, "frames_tracked_per_obj": {},
    }  # fmt: skip
    model.add_new_points_or_box(state, 0, 7, points=np.array([[30, 30]]), labels=np.array([1]))
    model.add_new_points_or_box(state, 0, 8, box=np.array([10, 10, 60, 40]))
    calls, masks = [len(capture.take_all())] if capture else [], []
    for _, _, logits in model.propagate_in_video(state):
        masks.append(logits.clone())
        if capture:
            calls.append(len(capture.take_all()))
    return masks, calls


def test_upstreams_video_predictor_is_watched_object_by_object(model: Any) -> None:
    with usam.attach(model) as capture:
        masks, calls = follow(model, capture)
    assert calls == [2, 0, 2, 2, 2]  # two prompts; the prompted frame is not decoded again; two objects a frame
    assert all(torch.equal(a, b) for a, b in zip(masks, follow(model)[0], strict=True))


def test_all_calls_since_the_last_take_come_in_order(model: Any) -> None:
    with usam.attach(model, hold=2) as capture:
        assert capture.take_all() == []
        heads(model, 1, "click", True)
        heads(model, 3, "box", True)
        assert [len(call.chosen_n) for call in capture.take_all()] == [1, 3]
        for _ in range(3):
            heads(model, 1, "click", True)
        with pytest.raises(HeadError, match="at most 2 calls"):
            capture.take_all()


def test_the_hooks_of_others_stay(model: Any) -> None:
    seen: list[int] = []
    handle = model.sam_mask_decoder.register_forward_hook(lambda *_: seen.append(1))
    try:
        with usam.attach(model) as outer:
            with usam.attach(model) as inner:
                heads(model, 1, "click", True)
                assert torch.equal(inner.take().pairs(), outer.take().pairs())
            heads(model, 1, "box", True)
            outer.take()
        heads(model, 1, "click", True)
    finally:
        handle.remove()
    assert len(seen) == 3
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0


def test_an_error_inside_leaves_no_hook(model: Any) -> None:
    with pytest.raises(ZeroDivisionError), usam.attach(model):
        _ = 1 / 0
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0


def test_a_predictor_that_holds_a_model_is_watched_too(model: Any) -> None:
    with usam.attach(SimpleNamespace(model=model)) as capture:
        heads(model, 1, "click", True)
        assert len(capture.take_all()) == 1


def test_what_has_no_mask_decoder_is_refused() -> None:
    with pytest.raises(HeadError, match="Linear"):
        usam.attach(torch.nn.Linear(2, 2))
