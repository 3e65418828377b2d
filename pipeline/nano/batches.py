"""Training batches: images with prompted targets, and short videos that hold disappearances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.nano.pool import Shard

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@dataclass
class Batch:
    """T frames of B clips and N targets on them.

    Args:
        images_btchw: (B, T, 3, H, W) float32, normalised.
        ids_bthw: (B, T, H, W) int64.
        clip_n: (N,) int64, row of each target's clip.
        truth_nthw: (N, T, H, W) bool.
        times_t: frame index of each step, as the memory sees it.
    """

    images_btchw: Tensor
    ids_bthw: Tensor
    clip_n: Tensor
    truth_nthw: Tensor
    times_t: list[int]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.images_btchw.to(device),
            self.ids_bthw.to(device),
            self.clip_n.to(device),
            self.truth_nthw.to(device),
            self.times_t,
        )


def normalise(frames_uint8: np.ndarray) -> Tensor:
    """(..., H, W, 3) uint8 RGB -> (..., 3, H, W) float32 as SAM2's image encoder wants it."""
    x = torch.from_numpy(np.ascontiguousarray(frames_uint8)).movedim(-1, -3).float().div_(255)
    return x.sub_(_MEAN).div_(_STD)


def _pick_times(rng: np.random.Generator, frames: int, steps: int) -> tuple[list[int], list[int]]:
    """Clip frames and the frame indices told to the memory: consecutive, strided, or after a jump."""
    stride = int(rng.choice([1, 1, 2, 3]))
    while (steps - 1) * stride >= frames:
        stride -= 1
    if rng.random() < 0.6:
        start = int(rng.integers(0, frames - (steps - 1) * stride))
        gap = int(rng.integers(1, 40)) if rng.random() < 0.3 else 1
        chosen = [start + i * stride for i in range(steps)]
    else:
        stride = 1
        start = int(rng.integers(0, frames - steps))
        jump = int(rng.integers(1, frames - steps - start + 2))
        chosen = [start] + [start + jump + i for i in range(steps - 1)]
        gap = max(jump, int(rng.integers(1, 40)))
    if rng.random() < 0.25:
        last = frames - 1
        chosen = [last - t for t in chosen]  # a clip played backwards is a clip
    return chosen, [0] + [gap + i for i in range(steps - 1)]


def fit_frames(frames_thw3: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) at size x size, resized as SAM2 does (PIL bicubic); untouched if they have the size."""
    if frames_thw3.shape[1:3] == (size, size):
        return frames_thw3
    return np.stack([np.asarray(Image.fromarray(f).resize((size, size))) for f in frames_thw3])


def fit_maps(maps_thw: NDArray[Any], size: int) -> NDArray[Any]:
    """Maps of ids or masks (T, H, W) at size x size, nearest pixel."""
    height, width = maps_thw.shape[1:]
    ys, xs = ((np.arange(size) + 0.5) * side / size for side in (height, width))
    return maps_thw[:, ys.astype(int)[:, None], xs.astype(int)]


class Sampler:
    """Draws batches from shards; deterministic for a given generator and set of shards.

    Args:
        shards: of any frame size.
        rng: draws everything.
        size: side of the model's input, px; smaller or larger clips are resized to it.
    """

    def __init__(self, shards: list[Shard], rng: np.random.Generator, size: int) -> None:
        self.shards, self.rng, self.size = shards, rng, size

    def _clip(self) -> tuple[Shard, int]:
        shard = self.shards[self.rng.integers(len(self.shards))]
        return shard, int(self.rng.integers(len(shard.frames_nthw3)))

    def _target(self, shard: Shard, clip: int, start: int, least_px: int, part_share: float) -> list[tuple[int, bool]]:
        found = [(o, False) for o in np.flatnonzero(shard.areas_not[clip, :, start] >= least_px)]
        if self.rng.random() < part_share:
            found += [(o, True) for o in np.flatnonzero(shard.part_areas_not[clip, :, start] >= least_px)]
        self.rng.shuffle(found)
        return [(int(o), bool(p)) for o, p in found]

    def images(self, count: int, targets: int, least_px: int) -> Batch:
        """`count` single frames with up to `targets` targets each (parts among them)."""
        frames: list[NDArray[np.uint8]] = []
        ids: list[NDArray[np.uint8]] = []
        truth: list[NDArray[np.bool_]] = []
        rows: list[int] = []
        while len(frames) < count:
            shard, clip = self._clip()
            t = int(self.rng.integers(shard.frames_nthw3.shape[1]))
            found = self._target(shard, clip, t, least_px, 0.3)[:targets]
            if not found:
                continue
            flip = self.rng.random() < 0.5
            cut = np.s_[:, ::-1] if flip else np.s_[:, :]
            for o, is_part in found:
                source = shard.parts_nthw if is_part else shard.ids_nthw
                truth.append(fit_maps((source[clip, t] == o + 1)[cut][None], self.size))
                rows.append(len(frames))
            frames.append(fit_frames(shard.frames_nthw3[clip, t][cut][None], self.size))
            ids.append(fit_maps(shard.ids_nthw[clip, t][cut][None], self.size))
        return self._batch(np.stack(frames), np.stack(ids), np.stack(truth), rows, [0])

    def videos(self, count: int, targets: int, steps: int, least_px: int, vanish_share: float) -> Batch:
        """`count` clips of `steps` frames with one set of times; a share of them chosen because a target vanishes."""
        length = self.shards[0].frames_nthw3.shape[1]
        chosen, times = _pick_times(self.rng, length, steps)
        frames: list[NDArray[np.uint8]] = []
        ids: list[NDArray[np.uint8]] = []
        truth: list[NDArray[np.bool_]] = []
        rows: list[int] = []
        while len(frames) < count:
            vanish = self.rng.random() < vanish_share
            for _ in range(60):
                shard, clip = self._clip()
                found = self._target(shard, clip, chosen[0], least_px, 0.15)
                if vanish:
                    lost = [
                        (o, p)
                        for o, p in found
                        if ((shard.part_areas_not if p else shard.areas_not)[clip, o, chosen[1:]] == 0).any()
                    ]
                    found = lost + [pair for pair in found if pair not in lost] if lost else []
                if found:
                    break
            if not found:
                continue
            cut = np.s_[:, :, ::-1] if self.rng.random() < 0.5 else np.s_[:, :, :]
            for o, is_part in found[:targets]:
                source = shard.parts_nthw if is_part else shard.ids_nthw
                truth.append(fit_maps((source[clip][chosen] == o + 1)[cut], self.size))
                rows.append(len(frames))
            frames.append(fit_frames(shard.frames_nthw3[clip][chosen][cut], self.size))
            ids.append(fit_maps(shard.ids_nthw[clip][chosen][cut], self.size))
        return self._batch(np.stack(frames), np.stack(ids), np.stack(truth), rows, times)

    def _batch(
        self, frames: np.ndarray, ids: np.ndarray, truth: np.ndarray, rows: list[int], times: list[int]
    ) -> Batch:
        gain = self.rng.uniform(0.85, 1.15, (len(frames), 1, 1, 1, 3))
        order = self.rng.permutation(3)
        mixed = np.clip(frames[..., order] * gain, 0, 255).astype(np.uint8)
        return Batch(
            normalise(mixed), torch.from_numpy(ids.astype(np.int64)), torch.tensor(rows), torch.from_numpy(truth), times
        )


def sample_clicks(truth_nhw: Tensor) -> Tensor:
    """One positive click per target, more often deep inside than at the rim.

    Args:    truth_nhw: (N, H, W) bool, no row empty.
    Returns: (N, 1, 2) float32 (x, y) pixel indices: SAM2's prompt encoder adds the half pixel to the centre itself.
    """
    soft = truth_nhw[:, None].float()
    depth = (F.avg_pool2d(soft, 9, 1, 4) ** 4 + 1e-4) * soft
    index = torch.multinomial(depth.flatten(1), 1)[:, 0]
    width = truth_nhw.shape[-1]
    return torch.stack([index % width, index // width], -1)[:, None].float()


def sample_boxes(truth_nhw: Tensor, jitter: float) -> Tensor:
    """The truth's box with its corners moved by up to `jitter` of its sides: (N, 2, 2) float32 corners."""
    h, w = truth_nhw.shape[-2:]
    cols, rows = truth_nhw.any(1), truth_nhw.any(2)
    x0 = cols.float().argmax(1)
    x1 = w - cols.flip(1).float().argmax(1)
    y0 = rows.float().argmax(1)
    y1 = h - rows.flip(1).float().argmax(1)
    box = torch.stack([x0, y0, x1, y1], 1).float()
    side = torch.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], 1).float()
    box = box + (torch.rand_like(box) * 2 - 1) * jitter * side
    return box.view(-1, 2, 2).clamp(0, max(h, w))
