"""From a training checkpoint to the weights that ship: averaged, presence threshold set, fp16 safetensors."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.nano.clips import render_clip
from pipeline.nano.follow import first_frame_prompts, follow

log = logging.getLogger(__name__)

VALIDATION_FIRST_SEED = 100_000_000
MOST_VISIBLE_CALLED_ABSENT = 0.042  # below the exam's 5%, with room for another draw of clips
_BIAS = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"


def averaged_weights(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The moving average of a training run and how far the run got (`step`, `seconds`)."""
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return saved["average"], {"step": saved["step"], "seconds": saved["seconds"]}


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write fp16 safetensors, whole or not at all; the same weights give the same bytes."""
    scratch = path.with_suffix(".tmp")
    save_file({k: v.detach().to(torch.float16).contiguous() for k, v in sorted(state.items())}, scratch)
    os.replace(scratch, path)


def presence_figures(model: Any, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Object scores of tracked frames of validation clips where the truth is absent, and where it is visible.

    A visible frame whose mask is empty at any score counts as score -inf.
    """
    gone: list[float] = []
    seen: list[float] = []
    for seed in range(VALIDATION_FIRST_SEED, VALIDATION_FIRST_SEED + clips):
        clip = render_clip(seed)
        for kind in ("click", "box"):
            prompts = first_frame_prompts(clip, kind, 60)
            if prompts is None:
                continue
            for row in follow(model, clip, prompts):
                if row.frame_index:
                    score = float(row.result.object_score or 0.0)
                    (seen if row.truth_px else gone).append(score)
    return np.array(gone), np.array(seen)


def set_presence_threshold(model: Any, clips: int = 80, rounds: int = 3) -> dict[str, float]:
    """Shift the presence head's bias so that at most `MOST_VISIBLE_CALLED_ABSENT` of visible frames are called absent.

    SAM2 calls an object absent at a logit of 0 or less; training balances no such rate. The shift changes what the
    memory sees, so it is measured again after each move.

    Args:
        model: changed in place.
        clips: validation clips (own seeds, in no other set).
    Returns: the last measured rates and the total shift.
    """
    head = model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias
    total = 0.0
    for _ in range(rounds):
        gone, seen = presence_figures(model, clips)
        shift = -float(np.quantile(seen, MOST_VISIBLE_CALLED_ABSENT))
        log.info(
            "presence: absent recognised %.3f, visible called absent %.3f; shift by %+.3f",
            float((gone <= 0).mean()), float((seen <= 0).mean()), shift,
        )  # fmt: skip
        if abs(shift) < 0.05:
            break
        with torch.no_grad():
            head += shift
        total += shift
    gone, seen = presence_figures(model, clips)
    return {
        "shift": total,
        "validation_clips": clips,
        "absent_recognised": float((gone <= 0).mean()),
        "visible_called_absent": float((seen <= 0).mean()),
    }
