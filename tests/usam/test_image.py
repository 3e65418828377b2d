"""Single images: the decoder gets what SAM2's own predictors give it, in batches of any size."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from usam.errors import ShapeError
from usam.image import decode_points, encode_image, upsampled_iou


@pytest.fixture(scope="module")
def model(build_sam2: Callable[..., Any]) -> Any:
    return build_sam2(0)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (90, 150, 3)).astype(np.uint8)


class Transforms:
    """What upstream's SAM2Transforms does, which needs torchvision, for the one thing that is compared."""

    def __init__(self, resolution: int, **_: Any) -> None:
        self.resolution = resolution

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        x = functional.interpolate(x, (self.resolution,) * 2, mode="bilinear", antialias=True)[0]
        return (x - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
            :, None, None
        ]

    def transform_coords(self, coords: torch.Tensor, normalize: bool, orig_hw: tuple[int, int]) -> torch.Tensor:
        return coords / torch.tensor([orig_hw[1], orig_hw[0]]) * self.resolution

    def postprocess_masks(self, masks: torch.Tensor, orig_hw: tuple[int, int]) -> torch.Tensor:
        return functional.interpolate(masks.float(), orig_hw, mode="bilinear", align_corners=False)


def test_one_click_equals_upstreams_image_predictor(
    model: Any, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = ModuleType("sam2.utils.transforms")
    stub.SAM2Transforms = Transforms  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sam2.utils.transforms", stub)
    monkeypatch.delitem(sys.modules, "sam2.sam2_image_predictor", raising=False)
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(model)
    side = model.sam_image_embedding_size
    predictor._bb_feat_sizes = [(4 * side, 4 * side), (2 * side, 2 * side), (side, side)]  # upstream's are for 1024
    predictor.set_image(rgb)
    _, scores, low = predictor.predict(np.array([[40, 30]]), np.array([1]), multimask_output=True)
    monkeypatch.delitem(sys.modules, "sam2.sam2_image_predictor")
    call = decode_points(model, encode_image(model, rgb), np.array([[[40, 30]]]))
    assert np.allclose(call.candidate_scores_n3[0], scores, atol=1e-5)
    assert np.allclose(call.candidates_n3hw[0].clamp(-32, 32), low, atol=1e-3)


@pytest.mark.parametrize("multimask", [True, False])
def test_prompts_equal_upstreams_heads_row_by_row(model: Any, rgb: np.ndarray, multimask: bool) -> None:
    image = encode_image(model, rgb)
    points = np.random.default_rng(1).uniform(0, 90, (5, 3, 2))
    labels = np.array([[1, 1, 1], [1, 0, -1], [0, 1, 1], [1, -1, -1], [1, 1, 0]])
    call = decode_points(model, image, points, labels, multimask=multimask, batch_prompts=2)
    scale = torch.tensor([model.image_size / 150, model.image_size / 90])
    with torch.inference_mode():
        low, _, ious, chosen, *_ = model._forward_sam_heads(
            backbone_features=image.features_1chw.expand(5, -1, -1, -1),
            point_inputs={"point_coords": torch.tensor(points).float() * scale, "point_labels": torch.tensor(labels)},
            high_res_features=[level.expand(5, -1, -1, -1) for level in image.high_res or []],
            multimask_output=multimask,
        )
    there = chosen[:, 0, 0, 0] != -1024
    assert there.any()
    torch.testing.assert_close(call.sam_score_n, ious.max(1).values, atol=1e-5, rtol=1e-4)
    if multimask:
        torch.testing.assert_close(call.candidates_n3hw[there], low[there], atol=1e-3, rtol=1e-3)
        assert torch.equal(call.chosen_n, ious.argmax(1) + 1)


def test_the_batch_size_changes_nothing(model: Any, rgb: np.ndarray) -> None:
    image = encode_image(model, rgb)
    points = np.random.default_rng(2).uniform(0, 90, (7, 1, 2))
    calls = [decode_points(model, image, points, batch_prompts=size) for size in (1, 3, 64)]
    for call in calls[1:]:
        torch.testing.assert_close(call.pairs(), calls[0].pairs(), atol=1e-4, rtol=1e-4)
        assert torch.equal(call.chosen_n, calls[0].chosen_n)
    assert calls[0].pairs().shape == (7, 2 * model.hidden_dim)


def test_a_model_without_fine_features_decodes(build_sam2: Callable[..., Any], rgb: np.ndarray) -> None:
    plain = build_sam2(0, use_high_res_features_in_sam=False)
    image = encode_image(plain, rgb)
    assert image.high_res is None
    assert decode_points(plain, image, np.array([[[40, 30]]])).candidates_n3hw.shape == (1, 3, 32, 32)


def test_iou_is_taken_at_the_truths_size() -> None:
    logits = torch.full((2, 3, 4, 4), -5.0)
    logits[0, 1, :, :2] = 5.0
    truth = np.zeros((2, 16, 16), bool)
    truth[0, :, :8] = True
    assert upsampled_iou(logits, truth).tolist() == [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]


def test_bad_input_is_refused(model: Any, rgb: np.ndarray) -> None:
    image = encode_image(model, rgb)
    with pytest.raises(ShapeError, match="uint8"):
        encode_image(model, rgb.astype(np.float32))
    with pytest.raises(ShapeError, match="clicks per prompt"):
        decode_points(model, image, np.zeros((2, 2)))
    with pytest.raises(ShapeError, match="label per click"):
        decode_points(model, image, np.zeros((2, 1, 2)), np.ones((1, 2)))
    with pytest.raises(ShapeError, match="mask per row"):
        upsampled_iou(torch.zeros(2, 4, 4), np.zeros((1, 8, 8), bool))
