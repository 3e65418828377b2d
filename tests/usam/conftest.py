"""Small random heads, and rows and harvests whose IoU can be learned from their tokens."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from usam.shard import Plan, Shard, ShardWriter


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
def make_rows() -> Callable[..., Any]:
    """Rows of `videos` x 20; IoU is a function of the tokens, SAM2's score a noisy view of it."""

    def make(videos: int = 30, width: int = 8, seed: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        n = videos * 20
        tokens: NDArray[np.float32] = (3 + 2 * rng.normal(size=(n, width))).astype(np.float32)
        logit = tokens[:, 0] - tokens[:, 1] + np.abs(tokens[:, 2] - 3) - 1
        iou = (1 / (1 + np.exp(-logit))).astype(np.float32)
        return SimpleNamespace(
            tokens_n2d=tokens,
            sam_score_n=np.clip(iou + rng.normal(0, 0.3, n), 0, 1).astype(np.float32),
            iou_n=iou,
            video_id_n=np.repeat([f"v{i}" for i in range(videos)], 20),
        )

    return make


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[..., Shard]:
    """Harvests whose quality can be read off the IoU token and the chosen mask's own token, not off another's."""

    models = {size: {"name": f"{size}_model", "sha256": digit * 64} for size, digit in (("tiny", "a"), ("large", "b"))}

    def make(
        name: str,
        videos: int = 12,
        *,
        first: int = 0,
        kind: str = "frames",
        d: int = 4,
        edit: Callable[[dict[str, Any]], None] = lambda columns: None,
        **plan: Any,
    ) -> Shard:
        plan = {"models": models, "deployed": "tiny", "dataset": "toy", "split": "train", **plan}
        writer = ShardWriter(tmp_path / name, Plan(kind=kind, protocol={}, **plan))
        names = [f"v{i}" for i in range(first, first + videos)]
        for number, video in enumerate(names, first):
            rng, n = np.random.default_rng(number), 40
            tokens = rng.normal(size=(n, 5, d)).astype(np.float32)
            best = 1 + np.arange(n) % 3
            chosen = 1 + np.arange(n) // 2 % 3
            own = tokens[np.arange(n), chosen + 1]
            logit = 1 + tokens[:, 0, 0] + 2 * own[:, 0]
            iou = 1 / (1 + np.exp(-logit))
            columns: dict[str, Any] = {
                "frame_index": np.arange(n) // 2,
                "object_id": np.ones(n, np.int64),
                "size": ["tiny", "large"] * (n // 2) if kind == "frames" else ["tiny"] * n,
                "prompted": np.arange(n) < 2,
                "visible": np.arange(n) % 10 != 3,
                "predicted": np.arange(n) % 8 != 5,
                "chosen": chosen,
                "best": best,
                "sam_score": np.clip(iou + rng.normal(0, 0.3, n), 0, 1),
                "iou_chosen": iou,
                "iou_unsupervised": iou,
                "iou": np.minimum(iou + 0.1, 1),
            }
            columns |= {"iou_tiny": iou, "iou_large": np.minimum(iou + 0.2, 1)} if kind == "frames" else {}
            columns |= {"iou_tracked": iou} if kind == "tracked" else {}
            edit(columns)
            writer.add(video, {key: list(values) for key, values in columns.items()}, tokens)
        return writer.finish(names)

    return make
