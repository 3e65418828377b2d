"""The five views of an image that H_T averages over: as it is, two JPEG qualities, noise, blur."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from usam.errors import ShapeError

UInt8Array = NDArray[np.uint8]

PERTURBATIONS = ("identity", "jpeg_10", "jpeg_30", "gaussian_noise", "gaussian_blur")
NOISE_VARIANCE = 5000.0
# OpenCV's kernel of size 5 when it derives the sigma itself: its formula says 1.1, but up to size 7 it uses fixed
# binomial weights.
_BLUR_WEIGHTS = np.array([1, 4, 6, 4, 1], np.float32) / 16


def perturb(name: str, rgb_hw3: UInt8Array, seed: int | Sequence[int] = 0) -> UInt8Array:
    """One of the five views of an image.

    Args:
        name: one of `PERTURBATIONS`: JPEG at quality 10 or 30, additive Gaussian noise of variance 5000 per channel,
            Gaussian blur with a 5x5 kernel (borders mirrored without the edge pixel, as OpenCV does).
        rgb_hw3: (H, W, 3) uint8, at the image's own size.
        seed: decides the noise; the other views have nothing random.
    Returns: (H, W, 3) uint8, a new array except for identity.
    Raises:  ShapeError for another shape or dtype, or an unknown name.
    Source:  Kaiser et al., ICML 2025, the perturbations T.
    """
    if rgb_hw3.ndim != 3 or rgb_hw3.shape[2] != 3 or rgb_hw3.dtype != np.uint8 or 0 in rgb_hw3.shape:
        raise ShapeError("an image (H, W, 3) uint8", f"{rgb_hw3.shape} {rgb_hw3.dtype}", "convert it to 8-bit RGB")
    if name == "identity":
        return rgb_hw3
    if name == "jpeg_10":
        return _jpeg(rgb_hw3, 10)
    if name == "jpeg_30":
        return _jpeg(rgb_hw3, 30)
    if name == "gaussian_noise":
        noise_hw3 = np.random.default_rng(seed).standard_normal(rgb_hw3.shape, np.float32)
        return _to_uint8(rgb_hw3 + np.float32(NOISE_VARIANCE**0.5) * noise_hw3)
    if name == "gaussian_blur":
        return _to_uint8(_blur(_blur(rgb_hw3.astype(np.float32), 0), 1))
    raise ShapeError(f"a perturbation out of {', '.join(PERTURBATIONS)}", repr(name), "correct the name")


def _jpeg(rgb_hw3: UInt8Array, quality: int) -> UInt8Array:
    buffer = io.BytesIO()
    Image.fromarray(rgb_hw3).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        return np.array(image.convert("RGB"))


def _blur(image_hw3: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    reach = len(_BLUR_WEIGHTS) // 2
    length = image_hw3.shape[axis]
    padded = np.pad(image_hw3, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="reflect")
    out_hw3 = np.zeros_like(image_hw3)
    for i, weight in enumerate(_BLUR_WEIGHTS):
        out_hw3 += weight * padded[i : i + length] if axis == 0 else weight * padded[:, i : i + length]
    return out_hw3


def _to_uint8(image_hw3: NDArray[np.float32]) -> UInt8Array:
    return np.clip(np.rint(image_hw3), 0, 255).astype(np.uint8)
