"""Random-weight models, a noisy moving clip, and the upstream session that masksieve must reproduce bit by bit."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.prompts import FramePrompt, ObjectPrompts

_SPEC = importlib.util.spec_from_file_location("random_model", Path(__file__).parents[2] / "usam" / "random_model.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_RANDOM_MODEL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_RANDOM_MODEL)

HEIGHT, WIDTH, FRAMES = 96, 144, 22


def click(frame: int, x: float, y: float) -> FramePrompt:
    return FramePrompt(frame, np.array([[x, y]], np.float32), np.array([1], np.int32))


def clicks(frame: int, *xyl: tuple[float, float, int]) -> FramePrompt:
    return FramePrompt(frame, np.array([p[:2] for p in xyl], np.float32), np.array([p[2] for p in xyl], np.int32))


def box(frame: int, *xyxy: float) -> FramePrompt:
    return FramePrompt(frame, box_xyxy=np.array(xyxy, np.float32))


def mask(frame: int, x0: int, y0: int, x1: int, y1: int) -> FramePrompt:
    mask_hw = np.zeros((HEIGHT, WIDTH), bool)
    mask_hw[y0:y1, x0:x1] = True
    return FramePrompt(frame, mask_hw=mask_hw)


def prompt_set(*objects: list[FramePrompt]) -> Any:
    """Objects 1, 2, ... with these prompts."""
    numbered = zip(itertools.count(1), objects)
    return SimpleNamespace(objects=[ObjectPrompts(i, None, tuple(frames)) for i, frames in numbered])


@dataclass
class Clip:
    """A folder of JPEG frames, read as upstream reads it."""

    folder: Path
    size: int
    num_frames: int
    video_hw: tuple[int, int] = (HEIGHT, WIDTH)

    def read(self, index: int) -> np.ndarray:
        image = Image.open(self.folder / f"{index:05d}.jpg").convert("RGB")
        return np.asarray(image.resize((self.size, self.size)))

    def frames(self) -> Any:
        return (SimpleNamespace(index=i, rgb_hw3=self.read(i)) for i in range(self.num_frames))


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Clip]:
    def make(num_frames: int) -> Clip:
        folder = tmp_path_factory.mktemp("clip")
        rng = np.random.default_rng(3)
        texture = rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3))
        for i in range(num_frames):
            frame = np.kron(np.roll(texture, i // 2, axis=1), np.ones((8, 8, 1)))
            frame[20 + i % 40 : 50 + i % 40, 30 + i % 60 : 70 + i % 60] = (220, 40 + i, 60)
            frame += rng.normal(0, 15, frame.shape)
            Image.fromarray(frame.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=95)
        return Clip(folder, 128, num_frames)

    return make


@pytest.fixture(scope="session")
def clip(make_clip: Callable[[int], Clip]) -> Clip:
    return make_clip(FRAMES)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    return _RANDOM_MODEL.random_model


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Any]) -> Any:
    return make_model(0)


def upstream(
    model: Any, clip: Clip, *objects: list[FramePrompt], reverse: bool = False
) -> list[dict[int, torch.Tensor]]:
    """Low-resolution logits of every object by frame from one upstream session: forward, then reverse if asked."""
    state = model.init_state(str(clip.folder))
    for number, prompts in enumerate(objects, start=1):
        for p in prompts:
            if p.mask_hw is not None:
                model.add_new_mask(state, p.frame_index, number, p.mask_hw)
            else:
                model.add_new_points_or_box(
                    state, p.frame_index, number, points=p.points_n2, labels=p.labels_n, box=p.box_xyxy
                )
    for _ in model.propagate_in_video(state):
        pass
    if reverse:
        for _ in model.propagate_in_video(state, reverse=True):
            pass
    outputs = state["output_dict_per_obj"]
    return [
        {t: out["pred_masks"][0, 0] for part in outputs[i].values() for t, out in part.items()}
        for i in range(len(objects))
    ]
