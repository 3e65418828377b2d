"""A pool of rendered training clips on disk: shards that processes draw batches from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.nano.clips import render_clip

TRAINING_FIRST_SEED = 1_000_000
MAX_OBJECTS = 4


@dataclass(frozen=True)
class Shard:
    """Clips of one shard, memory-mapped.

    Args:
        frames_nthw3: (N, T, H, W, 3) uint8 RGB.
        ids_nthw: (N, T, H, W) uint8 visible object ids.
        parts_nthw: (N, T, H, W) uint8 ids of objects whose part is seen.
        areas_not: (N, MAX_OBJECTS, T) int32, pixels of each object per frame, objects in id order.
        part_areas_not: the same for parts.
    """

    frames_nthw3: NDArray[np.uint8]
    ids_nthw: NDArray[np.uint8]
    parts_nthw: NDArray[np.uint8]
    areas_not: NDArray[np.int32]
    part_areas_not: NDArray[np.int32]


def render_shard(folder: Path, index: int, *, clips: int, frames: int, size: int) -> None:
    """Render shard `index` into the folder unless it is there; a killed render leaves no half shard.

    Args:
        folder: pool folder, made if missing.
        index: shard number; its clips have seeds TRAINING_FIRST_SEED + index * clips onwards.
        clips, frames, size: shape of the shard.
    """
    done = folder / f"shard-{index:04d}.json"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        "frames": (clips, frames, size, size, 3),
        "ids": (clips, frames, size, size),
        "parts": (clips, frames, size, size),
    }
    out = {
        name: np.lib.format.open_memmap(folder / f"shard-{index:04d}.{name}.npy", "w+", np.uint8, shape)
        for name, shape in shapes.items()
    }
    for i in range(clips):
        clip = render_clip(TRAINING_FIRST_SEED + index * clips + i, frames=frames, size=size)
        out["frames"][i], out["ids"][i], out["parts"][i] = clip.frames_thw3, clip.ids_thw, clip.parts_thw
    for array in out.values():
        array.flush()
    scratch = done.with_suffix(".tmp")
    scratch.write_text(json.dumps({"clips": clips, "frames": frames, "size": size}))
    os.replace(scratch, done)


def _areas(maps_nthw: NDArray[np.uint8]) -> NDArray[np.int32]:
    n, t = maps_nthw.shape[:2]
    out = np.zeros((n, MAX_OBJECTS, t), np.int32)
    for i in range(n):
        for o in range(MAX_OBJECTS):
            out[i, o] = (maps_nthw[i] == o + 1).sum((1, 2))
    return out


def open_shard(folder: Path, index: int) -> Shard | None:
    """The shard, or None when it is not finished yet."""
    stem = folder / f"shard-{index:04d}"
    if not stem.with_suffix(".json").exists():
        return None
    frames, ids, parts = (
        np.load(folder / f"shard-{index:04d}.{name}.npy", mmap_mode="r") for name in ("frames", "ids", "parts")
    )
    return Shard(frames, ids, parts, _areas(ids), _areas(parts))
