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

BLOCK_PIXELS = 1 << 15


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

    Only the columns and rows that can hold a positive value are computed, in blocks that fit a cache, and of each block
    only the ends of runs are kept: nothing of the video's size is ever made.

    Args:    low_hw: (h, w) float32 logits, SAM2's low-resolution grid.
             height, width: of the video, pixels.
    Returns: the mask `interpolate(low_hw, (height, width), bilinear, align_corners=False) > 0`, but for pixels whose
             value is 0 within float32 rounding.
    Raises:  ShapeError if not 2-D, or the size is not positive.
    """
    if low_hw.ndim != 2 or low_hw.size == 0 or height < 1 or width < 1:
        raise ShapeError(
            "logits (h, w) and a video of at least 1 x 1",
            f"shape {low_hw.shape} and a video of {height} x {width}",
            "pass the logits of one mask",
        )
    positive_hw = low_hw > 0
    if not positive_hw.any():  # bilinear weights are convex: nothing positive can come out
        return empty_mask(height, width)
    rows, columns = (
        _reach(np.flatnonzero(positive_hw.any(1 - axis)), low_hw.shape[axis], size)
        for axis, size in ((0, height), (1, width))
    )
    before_x, after_x, weight_x = _neighbours(low_hw.shape[1], width, columns)
    before_y, after_y, weight_y = _neighbours(low_hw.shape[0], height, rows)
    low_wh = np.ascontiguousarray(low_hw.T, dtype=np.float32)
    step, ends = max(BLOCK_PIXELS // len(rows), 1), []
    for start in range(0, len(columns), step):  # transposed: a block is some columns of the video, in COCO's order
        block = slice(start, start + step)
        wide_xh = low_wh[before_x[block]]
        wide_xh += (low_wh[after_x[block]] - wide_xh) * weight_x[block, None]
        value_xy = wide_xh.take(before_y, 1)
        rise_xy = wide_xh.take(after_y, 1)
        rise_xy -= value_xy
        rise_xy *= weight_y
        value_xy += rise_xy
        inside_xy = np.zeros((len(value_xy), len(rows) + 2), bool)  # outside above and below, so that every run ends
        np.greater(value_xy, 0, out=inside_xy[:, 1:-1])
        x, y = np.nonzero(inside_xy[:, 1:] != inside_xy[:, :-1])
        ends.append((x + columns[start]) * height + y + rows[0])
    return _from_ends(np.concatenate(ends), height, width)


def _reach(found: npt.NDArray[np.intp], low: int, size: int) -> range:
    """Outputs of one axis that the positive inputs `found`, of `low`, can reach."""
    scale = size / low
    return range(
        max(int((found[0] - 0.5) * scale - 0.5), 0), min(int(np.ceil((found[-1] + 1.5) * scale - 0.5)) + 1, size)
    )


def _neighbours(low: int, size: int, outputs: range) -> tuple[Any, Any, npt.NDArray[np.float32]]:
    """For outputs of one axis, the inputs before and after, and the weight of the latter, with clamped edges."""
    place = np.maximum((np.arange(outputs.start, outputs.stop) + 0.5) * (low / size) - 0.5, 0)
    before = np.minimum(place.astype(np.int64), low - 1)
    return before, np.minimum(before + 1, low - 1), (place - before).astype(np.float32)


def _from_ends(ends: npt.NDArray[np.int64], height: int, width: int) -> EncodedMask:
    """The mask whose runs begin and end, in turn, at these places in COCO's order."""
    if len(ends) == 0:
        return empty_mask(height, width)
    joined = np.flatnonzero(ends[1:] == ends[:-1])  # a run that goes on at the top of the next column
    ends = np.delete(ends, np.r_[joined, joined + 1])
    total = height * width
    runs = np.diff(np.r_[0, ends, total] if ends[-1] < total else np.r_[0, ends])
    return _describe(coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width))


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
