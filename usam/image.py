"""Runs SAM2 on single images without memory: encode once, decode many clicks in batches, tokens included."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from usam.capture import DecoderCall, TokenCapture
from usam.errors import ShapeError

# SAM2's own normalisation.
_MEAN_RGB, _STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """What SAM2's image encoder made of one image, as its mask decoder takes it.

    Attributes:
        features_1chw: (1, C, h, w) the coarsest features, the no-memory embedding added where the model wants it.
        high_res: finer features, (1, C', 4h, 4w) and (1, C'', 2h, 2w); None for a model without them.
        image_hw: size of the image in pixels; clicks are given in it.
    """

    features_1chw: Tensor
    high_res: list[Tensor] | None
    image_hw: tuple[int, int]


@torch.inference_mode()
def encode_image(model: Any, rgb_hw3: NDArray[np.uint8]) -> EncodedImage:
    """One run of the image encoder, with the steps of `SAM2ImagePredictor.set_image`.

    Args:    model: a sam2 `SAM2Base`. rgb_hw3: (H, W, 3) uint8 of any size.
    Returns: the features, on the model's device.
    Raises:  ShapeError for another shape or dtype.
    """
    if rgb_hw3.ndim != 3 or rgb_hw3.shape[2] != 3 or rgb_hw3.dtype != np.uint8:
        raise ShapeError("an image (H, W, 3) uint8", f"{rgb_hw3.shape} {rgb_hw3.dtype}", "convert it to 8-bit RGB")
    parameter = next(model.parameters())
    image_3hw = torch.from_numpy(np.ascontiguousarray(rgb_hw3)).to(parameter.device).permute(2, 0, 1).float() / 255
    image_13hw = functional.interpolate(
        image_3hw[None], size=(model.image_size,) * 2, mode="bilinear", align_corners=False, antialias=True
    )
    mean, std = (image_13hw.new_tensor(values)[:, None, None] for values in (_MEAN_RGB, _STD_RGB))
    backbone = model.forward_image(((image_13hw - mean) / std).to(parameter.dtype))
    _, vision, _, sizes = model._prepare_backbone_features(backbone)
    if model.directly_add_no_mem_embed:
        vision[-1] = vision[-1] + model.no_mem_embed
    maps = [level.permute(1, 2, 0).reshape(1, level.shape[2], *hw) for level, hw in zip(vision, sizes, strict=True)]
    return EncodedImage(maps[-1], maps[:-1] or None, (rgb_hw3.shape[0], rgb_hw3.shape[1]))


@torch.inference_mode()
def decode_points(
    model: Any,
    image: EncodedImage,
    points_nk2: NDArray[np.floating[Any]] | Tensor,
    labels_nk: NDArray[np.integer[Any]] | Tensor | None = None,
    *,
    multimask: bool = True,
    batch_prompts: int = 64,
) -> DecoderCall:
    """Decode n prompts of k clicks each on one image; the same decoder inputs as `SAM2ImagePredictor.predict`.

    The decoder is called as `_forward_sam_heads` calls it, but nothing is upsampled, and candidates are what the
    decoder says before absent objects are overwritten.

    Args:
        model: the sam2 `SAM2Base` that encoded the image.
        image: from `encode_image`.
        points_nk2: (n, k, 2) (x, y) in pixels of the image.
        labels_nk: (n, k) 1 for a positive click, 0 for a negative one, -1 for padding; all positive if None.
        multimask: SAM2's choice is the best-scored of three masks; else its single mask, or what its stability rule
            puts in its place.
        batch_prompts: prompts per decoder call.
    Returns: n rows, in the order of the prompts: tokens, the choice, and the three candidates with their scores.
    Raises:  ShapeError for points or labels of another shape, or none.
    """
    features = image.features_1chw
    points = torch.as_tensor(np.asarray(points_nk2), dtype=torch.float32)
    if points.ndim != 3 or points.shape[2] != 2 or 0 in points.shape:
        raise ShapeError("points (n, k, 2), at least one", str(tuple(points.shape)), "give clicks per prompt")
    labels = torch.ones(points.shape[:2]) if labels_nk is None else torch.as_tensor(np.asarray(labels_nk))
    if labels.shape != points.shape[:2]:
        raise ShapeError(f"labels {tuple(points.shape[:2])}", str(tuple(labels.shape)), "give one label per click")
    height, width = image.image_hw
    points = (points / torch.tensor([width, height]) * model.image_size).to(features.device)
    labels = labels.to(features.device, torch.int32)
    calls = []
    with TokenCapture(model) as capture:
        for start in range(0, len(points), max(1, batch_prompts)):
            rows = slice(start, start + max(1, batch_prompts))
            sparse, dense = model.sam_prompt_encoder(points=(points[rows], labels[rows]), boxes=None, masks=None)
            model.sam_mask_decoder(
                image_embeddings=features,
                image_pe=model.sam_prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                repeat_image=True,
                high_res_features=image.high_res,
            )
            calls.append(capture.take())
    if len(calls) == 1:
        return calls[0]
    return DecoderCall(*(torch.cat([getattr(call, f.name) for call in calls]) for f in fields(DecoderCall)))


@torch.inference_mode()
def upsampled_iou(logits_nhw: Tensor, truth_nhw: NDArray[np.bool_] | Tensor) -> Tensor:
    """IoU of masks with truth at the truth's size: logits upsampled bilinearly, above 0.

    Args:
        logits_nhw: (n, ..., h, w) float, the decoder's logits; further dimensions are candidates of the same object.
        truth_nhw: (n, H, W) bool.
    Returns: (n, ...) float32 in [0, 1], on the logits' device; 1 where both are empty.
    Raises:  ShapeError where the truth is not one mask per row.
    """
    truth = torch.as_tensor(truth_nhw)
    if truth.ndim != 3 or truth.shape[0] != logits_nhw.shape[0]:
        raise ShapeError(f"truth ({logits_nhw.shape[0]}, H, W)", str(tuple(truth.shape)), "give one mask per row")
    out = []
    for row, true_hw in zip(logits_nhw, truth.to(logits_nhw.device, torch.bool), strict=True):
        full = functional.interpolate(
            row.float().reshape(-1, 1, *row.shape[-2:]), size=true_hw.shape, mode="bilinear", align_corners=False
        )
        mask = full[:, 0] > 0
        union = (mask | true_hw).sum((-2, -1))
        iou = (mask & true_hw).sum((-2, -1)) / union.clamp_min(1)
        out.append(torch.where(union > 0, iou, 1.0).reshape(row.shape[:-2]))
    return torch.stack(out)


def upsampled_mask(logits_hw: Tensor, truth_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask's logits, upsampled bilinearly to the truth's size, above 0."""
    if truth_hw.ndim != 2:
        raise ShapeError("truth (H, W)", str(truth_hw.shape), "give one mask per frame and object")
    with torch.inference_mode():
        full_11hw = functional.interpolate(
            logits_hw[None, None].float(), size=truth_hw.shape, mode="bilinear", align_corners=False
        )
        mask_hw: NDArray[np.bool_] = (full_11hw[0, 0] > 0).cpu().numpy()
    return mask_hw
