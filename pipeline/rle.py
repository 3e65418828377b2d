"""Masks as COCO run lengths: low-resolution logits in, compressed counts that pycocotools reads out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from pipeline.errors import ShapeError

# pycocotools' arrays do not know NumPy 2's `copy` yet; a process that turns warnings into errors must not fail for it.
warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning, "pycocotools")


@dataclass(frozen=True)
class EncodedMask:
    """One mask at video size.

    Args:
        counts: COCO compressed counts.
        area_px: number of set pixels.
        bbox_xyxy: tight box in pixels, right and lower edge exclusive; None for an empty mask.
    """

    counts: bytes
    area_px: int
    bbox_xyxy: tuple[float, float, float, float] | None


def to_coco(counts: bytes, height: int, width: int) -> dict[str, Any]:
    """The dict that pycocotools calls an RLE: `{"size": [height, width], "counts": bytes}`."""
    return {"size": [height, width], "counts": counts}


def _describe(rle: dict[str, Any]) -> EncodedMask:
    area_px = int(coco.area(rle))
    if area_px == 0:
        return EncodedMask(rle["counts"], 0, None)
    x, y, w, h = (float(value) for value in coco.toBbox(rle))
    return EncodedMask(rle["counts"], area_px, (x, y, x + w, y + h))


def encode_mask(mask_hw: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> EncodedMask:
    """Encode a mask that already has the video's size.

    Args:    mask_hw: (H, W) bool or uint8, set where not zero.
    Raises:  ShapeError if not 2-D or empty.
    """
    if mask_hw.ndim != 2 or mask_hw.size == 0:
        raise ShapeError("a mask (H, W) with at least one pixel", f"shape {mask_hw.shape}", "pass one mask at a time")
    return _describe(coco.encode(np.asfortranarray(mask_hw != 0).view(np.uint8)))


def empty_mask(height: int, width: int) -> EncodedMask:
    """The mask of an absent object: no pixel set."""
    return EncodedMask(_leb_counts(height * width), 0, None)


def _leb_counts(value: int) -> bytes:
    """One run length in COCO's text form (5 bits a character, sign bit, offset 48)."""
    out = bytearray()
    more = True
    while more:
        bits = value & 0x1F
        value >>= 5
        more = value != 0 if not bits & 0x10 else value != -1
        out.append((bits | 0x20 if more else bits) + 48)
    return bytes(out)


def encode_logits(low_hw: npt.NDArray[np.float32], height: int, width: int) -> EncodedMask:
    """Upsample low-resolution logits to the video's size, threshold at 0 and encode.

    The transposed logits are upsampled, which gives Fortran order at once, so the encoder needs no copy.

    Args:    low_hw: (h, w) float32 logits, SAM2's low-resolution grid.
             height, width: of the video, pixels.
    Returns: the mask `interpolate(low_hw, (height, width), bilinear, align_corners=False) > 0`.
    Raises:  ShapeError if not 2-D, or the size is not positive.
    """
    if low_hw.ndim != 2 or low_hw.size == 0 or height < 1 or width < 1:
        raise ShapeError(
            "logits (h, w) and a video of at least 1 x 1",
            f"shape {low_hw.shape} and a video of {height} x {width}",
            "pass the logits of one mask",
        )
    if not (low_hw > 0).any():  # bilinear weights are convex: nothing positive can come out
        return empty_mask(height, width)
    import torch
    import torch.nn.functional as nnf

    transposed_wh = torch.from_numpy(np.ascontiguousarray(low_hw.T, dtype=np.float32))
    with torch.inference_mode():
        up_wh = nnf.interpolate(transposed_wh[None, None], size=(width, height), mode="bilinear", align_corners=False)
        mask_wh = (up_wh[0, 0] > 0).view(torch.uint8).numpy()
    return _describe(coco.encode(mask_wh.T))


def decode(counts: bytes, height: int, width: int) -> npt.NDArray[np.bool_]:
    """The mask (height, width), bool, of COCO compressed counts."""
    mask_hw: npt.NDArray[np.bool_] = coco.decode(to_coco(counts, height, width)).astype(bool)
    return mask_hw


def iou(a: bytes, b: bytes, height: int, width: int) -> float:
    """Intersection over union of two masks of one video, in [0, 1]; 1 for two empty masks.

    Args:    a, b: COCO compressed counts, both of height x width pixels.
    """
    if a == b:
        return 1.0
    return float(coco.iou([to_coco(a, height, width)], [to_coco(b, height, width)], [0])[0, 0])
