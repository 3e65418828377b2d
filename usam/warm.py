"""Starts a head from SAM2's own IoU predictor: the same depth, so its weights fit into a plain USAM MLP."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from usam.errors import HeadError


def score_head_state(model: Any, seed: int = 0) -> dict[str, Tensor]:
    """A head that, before any training, ranks masks as SAM2's own score does.

    SAM2 predicts IoU from the IoU token by an MLP `d -> 256 -> 256 -> 4` with ReLU and sigmoid; a USAM head is
    `2d -> 2d -> 2d -> 1` on IoU token and mask token. With 2d >= 256 the first fits into the second: the mask token's
    columns start at zero, spare hidden units start random with no way out, and the last row is the mean over the three
    multimask outputs. Learning from there is learning the correction, as a residual head does, and the result stays a
    plain MLP.

    Args:
        model: a sam2 `SAM2Base`.
        seed: of the spare units.
    Returns: `layers.{0,1,2}.{weight,bias}`, float32, on the CPU.
    Raises:  HeadError if the model's predictor is deeper or wider than a head.
    """
    layers = list(model.sam_mask_decoder.iou_prediction_head.layers)
    d = int(layers[0].weight.shape[1])
    hidden, width = int(layers[0].weight.shape[0]), 2 * d
    if len(layers) != 3 or hidden > width:
        raise HeadError(
            f"an IoU predictor of 3 layers, at most {width} wide",
            f"{len(layers)} layers, {hidden} wide",
            "train without a warm start",
        )
    generator = torch.Generator().manual_seed(seed)
    spread = 1 / math.sqrt(width)
    state = {
        "layers.0.weight": torch.empty(width, width).uniform_(-spread, spread, generator=generator),
        "layers.0.bias": torch.zeros(width),
        "layers.1.weight": torch.empty(width, width).uniform_(-spread, spread, generator=generator),
        "layers.1.bias": torch.zeros(width),
        "layers.2.weight": torch.zeros(1, width),
        "layers.2.bias": torch.zeros(1),
    }
    weights = [layer.weight.detach().float().cpu() for layer in layers]
    biases = [layer.bias.detach().float().cpu() for layer in layers]
    state["layers.0.weight"][:hidden] = 0
    state["layers.0.weight"][:hidden, :d] = weights[0]
    state["layers.0.bias"][:hidden] = biases[0]
    state["layers.1.weight"][:hidden] = 0
    state["layers.1.weight"][:hidden, :hidden] = weights[1]
    state["layers.1.bias"][:hidden] = biases[1]
    state["layers.2.weight"][0, :hidden] = weights[2][1:4].mean(0)
    state["layers.2.bias"][0] = biases[2][1:4].mean()
    return state
