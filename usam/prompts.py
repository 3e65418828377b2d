"""The paper's prompts from a mask: the centre click, and the centre with seven more clicks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from usam.errors import ShapeError

DENSE_POINTS = 8
_REACH = 2  # of a 5x5 square


def eroded(mask_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask eroded once with a 5x5 square, or the mask itself where nothing would be left.

    What lies outside of the image counts as foreground, as in OpenCV: an object that the image cuts keeps its cut side.

    Args:    mask_hw: (H, W) bool.
    Returns: (H, W) bool, never emptier than it must be.
    Raises:  ShapeError for another number of dimensions.
    """
    if mask_hw.ndim != 2:
        raise ShapeError("a mask (H, W)", str(mask_hw.shape), "give one mask at a time")
    mask_hw = mask_hw.astype(bool, copy=False)
    out_hw = mask_hw
    for axis in (0, 1):
        padded = np.pad(out_hw, [(_REACH, _REACH) if a == axis else (0, 0) for a in (0, 1)], constant_values=True)
        length = mask_hw.shape[axis]
        out_hw = np.logical_and.reduce([padded.take(range(i, i + length), axis) for i in range(2 * _REACH + 1)], axis=0)
    return out_hw if out_hw.any() else mask_hw


def centre_point(mask_hw: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The click in the middle of a mask: the eroded mask's pixel nearest to its centroid.

    Of several nearest pixels the first in reading order is taken.

    Args:    mask_hw: (H, W) bool with at least one pixel.
    Returns: (2,) float32, (x, y) in pixels of the mask; always on the mask.
    Raises:  ShapeError for an empty mask or another number of dimensions.
    Source:  Kaiser et al., ICML 2025, and its public code.
    """
    return _centre_of(_inner_pixels(mask_hw))


def dense_points(mask_hw: NDArray[np.bool_], seed: int | Sequence[int] = 0) -> NDArray[np.float32]:
    """Eight positive clicks: the centre, then seven random pixels of the eroded mask.

    Random pixels are drawn without replacement, and with it only where the eroded mask has fewer than seven.

    Args:
        mask_hw: (H, W) bool with at least one pixel.
        seed: decides the random pixels; a sequence such as (seed, video, frame, object) gives each mask its own.
    Returns: (8, 2) float32, (x, y) in pixels of the mask. As one prompt they are the dense prompt; H_XP uses them as
             eight single clicks.
    Raises:  ShapeError for an empty mask or another number of dimensions.
    Source:  Kaiser et al., ICML 2025, and its public code.
    """
    pixels_n2 = _inner_pixels(mask_hw)
    wanted = DENSE_POINTS - 1
    picked = np.random.default_rng(seed).choice(len(pixels_n2), wanted, replace=len(pixels_n2) < wanted)
    return np.concatenate([_centre_of(pixels_n2)[None], pixels_n2[picked].astype(np.float32)])


def _inner_pixels(mask_hw: NDArray[np.bool_]) -> NDArray[np.intp]:
    """(n, 2) (x, y) of the eroded mask, in reading order; erosion sees only the mask's surroundings."""
    if mask_hw.ndim == 2 and not mask_hw.any():
        raise ShapeError("a mask with foreground", "an empty one", "prompt only objects that can be seen")
    if mask_hw.ndim != 2:
        raise ShapeError("a mask (H, W)", str(mask_hw.shape), "give one mask at a time")
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    top, left = max(int(rows[0]) - _REACH, 0), max(int(columns[0]) - _REACH, 0)
    crop_hw = mask_hw[top : rows[-1] + _REACH + 1, left : columns[-1] + _REACH + 1]
    y_n, x_n = np.nonzero(eroded(crop_hw))
    return np.stack([x_n + left, y_n + top], axis=1)


def _centre_of(pixels_n2: NDArray[np.intp]) -> NDArray[np.float32]:
    away_n = ((pixels_n2 - pixels_n2.mean(0)) ** 2).sum(1)
    nearest: NDArray[np.float32] = pixels_n2[int(away_n.argmin())].astype(np.float32)
    return nearest
