"""What a score costs: seconds of SAM2 alone on an image, with all heads, and with five perturbed images."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from usam.errors import EvaluationError
from usam.heads import HeadBank
from usam.image import decode_points, encode_image
from usam.scorers import ImageViews, image_entropies

_WARM = 2
_IMAGE_HW = (480, 854)


@dataclass(frozen=True)
class Runtime:
    """Medians over frames, in seconds.

    Attributes:
        frames: how many were timed, after two that were not.
        sam2_seconds: encoding an image and decoding one click. heads_seconds: all heads on its token, in addition.
        h_t_seconds: H_T of the same click, which runs SAM2 on five views: the cost of the alternatives.
    """

    frames: int
    sam2_seconds: float
    heads_seconds: float
    h_t_seconds: float

    @property
    def with_heads_seconds(self) -> float:
        """SAM2 and all heads."""
        return self.sam2_seconds + self.heads_seconds


def image_runtime(model: Any, bank: HeadBank, frames: int = 5, seed: int = 0) -> Runtime:
    """Time a model on noise of 480p size, each part on the same images in turn.

    A bank of another width stands for one of the model's width with as many MLPs.

    Args:    model: a sam2 `SAM2Base`. bank: its heads, on the model's device. frames: at least 1. seed: of the noise.
    Raises:  EvaluationError for less than one frame.
    """
    if frames < 1:
        raise EvaluationError("at least 1 frame to time", str(frames), "time more")
    width = 2 * int(model.hidden_dim)
    heads = bank if bank.width == width else _blank(bank, width).to(bank.device)
    device = next(model.parameters()).device
    points_182 = np.tile(np.array([_IMAGE_HW[1] / 2, _IMAGE_HW[0] / 2], np.float32), (1, 8, 1))
    rng = np.random.default_rng(seed)
    times: list[tuple[float, float, float]] = []
    for _ in range(_WARM + frames):
        rgb_hw3 = rng.integers(0, 256, (*_IMAGE_HW, 3), np.uint8)
        start = _now(device)
        call = decode_points(model, encode_image(model, rgb_hw3), points_182[:, :1])
        decoded = _now(device)
        heads.stacked(call.pairs(heads.mask_token_offset)).tolist()
        headed = _now(device)
        image_entropies(ImageViews({"own": model}, rgb_hw3), "own", points_182, kinds=["H_T"])
        times.append((decoded - start, headed - decoded, _now(device) - headed))
    return Runtime(frames, *(statistics.median(column) for column in zip(*times[_WARM:], strict=True)))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _blank(bank: HeadBank, width: int) -> HeadBank:
    state: dict[str, torch.Tensor] = {}
    for i, outputs in enumerate((width, width, 1)):
        state |= {f"layers.{i}.weight": torch.zeros(outputs, width), f"layers.{i}.bias": torch.zeros(outputs)}
    return HeadBank(bank.names, [state] * len(bank.names), bank.card)
