"""Clips in styles that no training has seen: the shifted half of the exam in benchmarks/usam.yaml.

Committed before the models and heads that it judges were trained, and not edited afterwards. A style changes how a clip
looks, or moves the camera; the scenes behind it come from `pipeline.nano.clips`, so the truth stays exact.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.nano.clips import Clip, render_clip

Frames = NDArray[np.uint8]
Maps = NDArray[np.uint8]
Style = Callable[[np.random.Generator, Frames, Maps], tuple[Frames, Maps]]


def _cartoon(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """Few flat colours and a dark outline around every object."""
    levels = int(rng.integers(3, 6))
    flat = np.round(frames / 255 * levels) / levels * 255
    edge = np.zeros(ids.shape, bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[:, :, 1:] |= ids[:, :, 1:] != ids[:, :, :-1]
    return np.where(edge[..., None], rng.uniform(0, 40), flat).astype(np.uint8), ids


def _thermal(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """Brightness as false colour."""
    grey = frames.mean(-1) / 255
    if rng.random() < 0.5:
        grey = 1 - grey
    stops = np.array([[0, 0, 10], [80, 10, 110], [190, 50, 80], [250, 150, 10], [250, 250, 160]], np.float64)
    return np.stack([np.interp(grey, np.linspace(0, 1, 5), stops[:, c]) for c in range(3)], -1).astype(np.uint8), ids


def _night(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """Little light: dark, bluish, with noise that grows with brightness."""
    light = rng.uniform(0.3, 0.6) * (frames / 255.0) ** 1.6 * np.array([0.8, 0.9, 1.2])
    photons = rng.uniform(60, 200)
    return (rng.poisson(light * photons) / photons * 255).clip(0, 255).astype(np.uint8), ids


def _rain(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """Bright streaks that fall across the picture, and haze behind them."""
    _, h, w = ids.shape
    out = frames * 0.7 + 0.3 * rng.uniform(120, 200)
    for frame in out:
        for _ in range(int(rng.integers(25, 60))):
            x, y, length = int(rng.integers(w)), int(rng.integers(h)), int(rng.integers(6, 22))
            frame[y : y + length, x : x + 1] += 70
    return out.clip(0, 255).astype(np.uint8), ids


def _shake(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """A hand-held camera that also zooms: frames and truth move together."""
    t, h, w = ids.shape
    zoom = 1.12 + 0.1 * np.sin(np.arange(t) / rng.uniform(3, 8) + rng.uniform(0, 6))
    jolt = np.cumsum(rng.normal(0, 0.012, (t, 2)), 0) * 0.5 + rng.normal(0, 0.008, (t, 2))
    new_frames, new_ids = np.empty_like(frames), np.empty_like(ids)
    for i in range(t):
        side_x, side_y = w / zoom[i], h / zoom[i]
        x = float(np.clip((w - side_x) / 2 + jolt[i, 0] * w, 0, w - side_x))
        y = float(np.clip((h - side_y) / 2 + jolt[i, 1] * h, 0, h - side_y))
        box = (x, y, x + side_x, y + side_y)
        new_frames[i] = np.asarray(Image.fromarray(frames[i]).resize((w, h), Image.Resampling.BICUBIC, box))
        new_ids[i] = np.asarray(Image.fromarray(ids[i]).resize((w, h), Image.Resampling.NEAREST, box))
    return new_frames, new_ids


def _compressed(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """JPEG blocks of a bad connection."""
    quality = int(rng.integers(5, 14))
    out = np.empty_like(frames)
    for i, frame in enumerate(frames):
        data = io.BytesIO()
        Image.fromarray(frame).save(data, "JPEG", quality=quality)
        out[i] = np.asarray(Image.open(data))
    return out, ids


def _halftone(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """A coarse sensor with dead and hot pixels."""
    t, h, w = ids.shape
    out = np.repeat(np.repeat(frames[:, ::2, ::2], 2, 1), 2, 2)[:, :h, :w].copy()
    share = rng.uniform(0.01, 0.05)
    spots = rng.random((t, h, w))
    out[spots < share / 2] = 0
    out[spots > 1 - share / 2] = 255
    return out, ids


def _shadows(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """Soft shadows that wander over the scene."""
    t, h, w = ids.shape
    yy, xx = np.mgrid[0:h, 0:w] / h
    angle, width = rng.uniform(0, np.pi), rng.uniform(2, 5)
    across = xx * np.cos(angle) + yy * np.sin(angle)
    moving = across[None] * width + rng.uniform(0.02, 0.12) * np.arange(t)[:, None, None]
    depth = rng.uniform(0.45, 0.75)
    shade = 1 - depth / (1 + np.exp(-14 * np.sin(2 * np.pi * moving)))
    return (frames * shade[..., None]).clip(0, 255).astype(np.uint8), ids


def _old_film(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """Grey, vignetted, scratched, of uneven exposure."""
    t, h, w = ids.shape
    yy, xx = np.mgrid[0:h, 0:w] / h - 0.5
    vignette = (1.1 - 1.5 * (xx**2 + yy**2)).clip(0.1, 1)
    grey = frames.mean(-1) * vignette * rng.uniform(0.7, 1.2, (t, 1, 1)) + rng.normal(0, 12, ids.shape)
    for frame in grey:
        for _ in range(int(rng.integers(0, 4))):
            frame[:, int(rng.integers(w))] += rng.uniform(-90, 90)
    return (grey[..., None] * np.array([1.05, 0.95, 0.8])).clip(0, 255).astype(np.uint8), ids


def _swirl(rng: np.random.Generator, frames: Frames, ids: Maps) -> tuple[Frames, Maps]:
    """Colours that turn from frame to frame, under a veil of large soft blots."""
    _, h, w = ids.shape
    out = np.empty(frames.shape)
    blots = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((w, h), Image.Resampling.BICUBIC)
    veil = np.asarray(blots.filter(ImageFilter.GaussianBlur(3)), np.float64)
    speed = rng.uniform(0.1, 0.35)
    for i, frame in enumerate(frames):
        c, s = np.cos(speed * i), np.sin(speed * i)
        turn = np.full((3, 3), (1 - c) / 3) + c * np.eye(3)
        turn += s / np.sqrt(3) * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
        out[i] = 0.7 * (frame @ turn.T) + 0.3 * veil
    return out.clip(0, 255).astype(np.uint8), ids


STYLES: dict[str, Style] = {
    "cartoon": _cartoon,
    "thermal": _thermal,
    "night": _night,
    "rain": _rain,
    "shake": _shake,
    "compressed": _compressed,
    "halftone": _halftone,
    "shadows": _shadows,
    "old_film": _old_film,
    "swirl": _swirl,
}


def style_of(seed: int) -> str:
    """The style of a clip: every style gets a tenth of the seeds, in turn."""
    return tuple(STYLES)[seed % len(STYLES)]


def render_shifted(seed: int, *, frames: int = 24, size: int = 128) -> Clip:
    """Draw one clip of the shifted exam.

    Args:    seed: decides scene and style. frames, size: as `pipeline.nano.clips.render_clip`.
    Returns: the clip; its tags carry the style's name. Parts are left out.
    """
    clip = render_clip(seed, frames=frames, size=size)
    name = style_of(seed)
    pixels, ids = STYLES[name](np.random.default_rng([seed, 77]), clip.frames_thw3, clip.ids_thw)
    return replace(clip, frames_thw3=pixels, ids_thw=ids, parts_thw=np.zeros_like(ids), tags=clip.tags | {name})
