"""A person's clicks, boxes and masks as the tensors that SAM2's prompt encoder takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.errors import PromptError

if TYPE_CHECKING:
    from pipeline.prompts import FramePrompt


def point_inputs(
    prompt: FramePrompt, video_hw: tuple[int, int], image_size: int, device: torch.device
) -> dict[str, Tensor]:
    """Clicks and a box as SAM2 takes them: the box's corners first, labelled 2 and 3, scaled to the model's size."""
    points_n2, labels_n = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)
    if prompt.points_n2 is not None and prompt.labels_n is not None:
        points_n2 = torch.as_tensor(prompt.points_n2, dtype=torch.float32)
        labels_n = torch.as_tensor(prompt.labels_n, dtype=torch.int32)
    if prompt.box_xyxy is not None:
        corners_22 = torch.as_tensor(prompt.box_xyxy, dtype=torch.float32).reshape(2, 2)
        points_n2 = torch.cat([corners_22, points_n2])
        labels_n = torch.cat([torch.tensor([2, 3], dtype=torch.int32), labels_n])
    height, width = video_hw
    points_n2 = points_n2 / torch.tensor([width, height]) * image_size
    return {"point_coords": points_n2[None].to(device), "point_labels": labels_n[None].to(device)}


def mask_inputs(prompt: FramePrompt, image_size: int, device: torch.device) -> Tensor:
    """A given mask at the model's size, (1, 1, image_size, image_size) float32 of 0 and 1.

    Raises: PromptError if nothing of it is left at that size.
    """
    assert prompt.mask_hw is not None
    mask_11hw = _at_model_size(prompt.mask_hw, image_size, device)
    if not bool(mask_11hw.any()):
        raise PromptError(
            f"a mask that covers a pixel at the model's {image_size} x {image_size}",
            f"an empty one on frame {prompt.frame_index}",
            "prompt with a box or a click, or use a model with a larger image_size",
        )
    return mask_11hw


def is_seen(mask_hw: NDArray[np.bool_], image_size: int) -> bool:
    """Whether anything of a mask is left at the model's size."""
    return bool(_at_model_size(mask_hw, image_size, torch.device("cpu")).any())


def _at_model_size(mask_hw: NDArray[np.bool_], image_size: int, device: torch.device) -> Tensor:
    """(1, 1, image_size, image_size) float32 of 0 and 1."""
    mask_11hw = torch.as_tensor(mask_hw, dtype=torch.bool)[None, None].float().to(device)
    if mask_11hw.shape[-2:] != (image_size, image_size):
        mask_11hw = functional.interpolate(
            mask_11hw, size=(image_size, image_size), mode="bilinear", align_corners=False, antialias=True
        )
        mask_11hw = (mask_11hw >= 0.5).float()
    return mask_11hw
