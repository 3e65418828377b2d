"""Small random heads, and rows whose IoU can be learned from their tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from usam.harvest import Rows


@pytest.fixture(scope="session")
def build_sam2() -> Callable[..., Any]:
    """`random_model.random_model`: a small SAM2VideoPredictor, seeded, with settings overridden by name."""
    spec = importlib.util.spec_from_file_location("random_model", Path(__file__).parent / "random_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., Any] = module.random_model
    return function


@pytest.fixture
def make_state() -> Callable[..., dict[str, torch.Tensor]]:
    def make(width: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = {"layers.0": (width, width), "layers.1": (width, width), "layers.2": (1, width)}
        state = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return state | {f"{name}.bias": torch.randn(shape[0], generator=generator) for name, shape in shapes.items()}

    return make


@pytest.fixture
def make_rows() -> Callable[..., Rows]:
    """Rows of `videos` x 20; IoU is a function of the tokens, SAM2's score a noisy view of it."""

    def make(videos: int = 30, width: int = 8, seed: int = 0) -> Rows:
        rng = np.random.default_rng(seed)
        n = videos * 20
        tokens: NDArray[np.float32] = (3 + 2 * rng.normal(size=(n, width))).astype(np.float32)
        logit = tokens[:, 0] - tokens[:, 1] + np.abs(tokens[:, 2] - 3) - 1
        iou = (1 / (1 + np.exp(-logit))).astype(np.float32)
        return Rows(
            tokens_n2d=tokens,
            sam_score_n=np.clip(iou + rng.normal(0, 0.3, n), 0, 1).astype(np.float32),
            object_score_n=np.ones(n, np.float32),
            iou_n=iou,
            video_id_n=np.repeat([f"v{i}" for i in range(videos)], 20),
            frame_index_n=np.tile(np.arange(20), videos),
            object_id_n=np.ones(n, np.int64),
            prompted_n=np.zeros(n, bool),
            predicted_n=np.arange(n) % 10 != 0,
            visible_n=np.arange(n) % 7 != 0,
        )

    return make
