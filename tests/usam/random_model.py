"""A SAM2 of sam2_nano's size with amplified random weights: no skill, but every path of the maths carries signal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

CONFIG = Path(__file__).parents[2] / "configs" / "models" / "sam2_nano.yaml"


def random_model(seed: int = 0, gain: float = 2.0, **overrides: Any) -> Any:
    """Build a `SAM2VideoPredictor`, in eval mode, with upstream's video overrides and `fill_hole_area` 0."""
    config = OmegaConf.load(CONFIG)
    settings = {
        "_target_": "sam2.sam2_video_predictor.SAM2VideoPredictor",
        "fill_hole_area": 0,
        "binarize_mask_from_pts_for_mem_enc": True,
        "sam_mask_decoder_extra_args.dynamic_multimask_via_stability": True,
        "sam_mask_decoder_extra_args.dynamic_multimask_stability_delta": 0.05,
        "sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh": 0.98,
        **overrides,
    }
    for key, value in settings.items():
        OmegaConf.update(config, f"model.{key}", value, force_add=True)
    torch.manual_seed(seed)
    model = instantiate(config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos_embed" in name or "no_obj" in name or name.endswith("gamma"):
                parameter.normal_(std=0.3)
            elif parameter.ndim > 1 and "image_encoder" not in name:
                parameter.mul_(gain)
    return model.eval()
