"""A capture sees the mask that SAM2 chose, pairs it with its token, and leaves the model as it was."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from usam.capture import TokenCapture
from usam.errors import HeadError


@pytest.fixture(scope="module")
def model() -> Any:
    spec = importlib.util.spec_from_file_location("random_model", Path(__file__).parent / "random_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.random_model(0)


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
