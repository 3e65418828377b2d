"""The batched entropies equal the paper's definitions worked out one map at a time, with one encoding per view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from usam.errors import EvaluationError, ShapeError
from usam.image import decode_points, encode_image, upsampled_iou
from usam.perturb import PERTURBATIONS, perturb
from usam.prompts import dense_points
from usam.scorers import ENTROPIES, Entropy, ImageViews, Select, image_entropies


@pytest.fixture(scope="module")
def models(build_sam2: Callable[..., Any]) -> dict[str, Any]:
    return {"tiny": build_sam2(0), "large": build_sam2(1, image_size=192)}


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rgb = np.random.default_rng(0).integers(0, 255, (80, 120, 3)).astype(np.uint8)
    truth = np.zeros((2, 80, 120), bool)
    truth[0, 10:50, 20:60] = True
    truth[1, 30:75, 70:110] = True
    return rgb, np.stack([dense_points(mask, i) for i, mask in enumerate(truth)]), truth


@pytest.fixture(scope="module")
def decoded(models: dict[str, Any], scene: Any) -> dict[tuple[str, str, int, int], Any]:
    """Every (model, view, object, click), decoded alone."""
    rgb, points, _ = scene
    out = {}
    for size, model in models.items():
        for view in PERTURBATIONS:
            image = encode_image(model, perturb(view, rgb, 0))
            for obj, click in np.ndindex(*points.shape[:2]):
                out[size, view, obj, click] = decode_points(model, image, points[obj, click][None, None])
    return out


def one_by_one(models: dict[str, Any], decoded: Any, truth: Any, kind: Entropy, select: Select, obj: int) -> float:
    """One entropy of one object, straight from the table of the paper."""
    deployed = "tiny"
    sizes = list(models) if kind in ("H_Theta", "H_Y") else [deployed]
    views = PERTURBATIONS if kind in ("H_T", "H_Y") else PERTURBATIONS[:1]
    clicks = range(8 if kind in ("H_XP", "H_Y") else 1)
    grid = models[deployed].image_size // 4
    total, weights = torch.zeros(grid, grid, dtype=torch.float64), 0.0
    for size in sizes:
        for view in views:
            for click in clicks:
                call = decoded[size, view, obj, click]
                maps: Tensor = call.candidates_n3hw[0].double().clamp(-32, 32).sigmoid()
                maps = functional.interpolate(maps[None], (grid, grid), mode="bilinear", align_corners=False)[0]
                score = call.candidate_scores_n3[0].double()
                if kind in ("H_A", "H_Y"):
                    shares = score / score.sum()
                else:
                    best = score if select == "sam_score" else upsampled_iou(call.candidates_n3hw, truth[obj][None])[0]
                    shares = functional.one_hot(best.argmax(), 3).double()
                total += (shares[:, None, None] * maps).sum(0)
                weights += float(shares.sum())
    p = (total / weights).clamp(1e-6, 1 - 1e-6)
    h = -p * p.log2() - (1 - p) * (1 - p).log2()
    return float((p * h).sum() / p.sum())


@pytest.mark.slow
@pytest.mark.parametrize("select", ["sam_score", "gt"])
def test_batched_entropies_equal_the_definitions(
    models: dict[str, Any], scene: Any, decoded: Any, select: Select
) -> None:
    rgb, points, truth = scene
    got = image_entropies(ImageViews(models, rgb), "tiny", points, truth, select=select, batch_prompts=8)
    assert list(got) == list(ENTROPIES)
    for kind, values in got.items():
        wanted = [one_by_one(models, decoded, truth, kind, select, i) for i in range(2)]
        assert values.tolist() == pytest.approx(wanted, abs=2e-4), kind


@pytest.mark.parametrize(
    ("kinds", "runs"),
    [
        (ENTROPIES, {"tiny": 5, "large": 5}),
        (("H_Std", "H_A", "H_XP"), {"tiny": 1, "large": 0}),
        (("H_T",), {"tiny": 5, "large": 0}),
        (("H_Theta", "H_T"), {"tiny": 5, "large": 1}),
    ],
)
def test_each_view_is_encoded_once(
    models: dict[str, Any], scene: Any, kinds: tuple[Entropy, ...], runs: dict[str, int]
) -> None:
    counts = dict.fromkeys(models, 0)

    def counter(name: str) -> Any:
        def count(*_: Any) -> None:
            counts[name] += 1

        return count

    hooks = [model.image_encoder.register_forward_hook(counter(name)) for name, model in models.items()]
    try:
        views = ImageViews(models, scene[0])
        views.plain("tiny")
        image_entropies(views, "tiny", scene[1], kinds=kinds, batch_prompts=8)
        views.plain("tiny")
    finally:
        for hook in hooks:
            hook.remove()
    assert counts == runs


def test_batches_of_any_size_agree(models: dict[str, Any], scene: Any) -> None:
    one = {"tiny": models["tiny"]}
    a, b = (image_entropies(ImageViews(one, scene[0]), "tiny", scene[1], batch_prompts=n) for n in (1, 64))
    for kind in ENTROPIES:
        torch.testing.assert_close(a[kind], b[kind], atol=1e-4, rtol=1e-4)


def test_one_model_is_its_own_mean_over_sizes(models: dict[str, Any], scene: Any) -> None:
    got = image_entropies(ImageViews({"tiny": models["tiny"]}, scene[0]), "tiny", scene[1], kinds=("H_Std", "H_Theta"))
    assert torch.equal(got["H_Std"], got["H_Theta"])


def test_bad_calls_are_refused(models: dict[str, Any], scene: Any) -> None:
    rgb, points, truth = scene
    views = ImageViews(models, rgb)
    with pytest.raises(EvaluationError, match="truth_khw"):
        image_entropies(views, "tiny", points, select="gt")
    with pytest.raises(EvaluationError, match="huge"):
        image_entropies(views, "huge", points)
    with pytest.raises(EvaluationError, match="H_Z"):
        image_entropies(views, "tiny", points, kinds=("H_Z",))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="dense_points"):
        image_entropies(views, "tiny", points[0])
    with pytest.raises(ShapeError, match="one mask per object"):
        image_entropies(views, "tiny", points, truth[:1], select="gt")
