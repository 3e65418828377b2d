"""One drawn video with a click, a late box and a given mask, and how the tests label it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco

from pipeline.label import label_video
from pipeline.models import LoadedModel, load_model
from pipeline.nano.clips import Clip, render_clip
from pipeline.render.film import FilmWriter
from pipeline.report import VideoReport
from pipeline.settings import Settings, load_settings

FRAMES = 12
SEED = 900_100_006
CUT = 8  # of the video with two shots


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("sam2_nano")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return render_clip(SEED, frames=FRAMES, size=160)


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory, clip: Clip) -> Path:
    """A folder with one video whose objects start on frame 0 (a click), 5 (a box) and 3 (a full mask)."""
    folder = tmp_path_factory.mktemp("night")
    with FilmWriter(folder / "clip.mp4", 25.0, quality=8) as film:
        for frame in clip.frames_thw3:
            film.append(frame)
    ids = clip.object_ids
    ys, xs = np.nonzero(clip.mask(ids[0])[0])
    box_ys, box_xs = np.nonzero(clip.mask(ids[1 % len(ids)])[5])
    given = coco.encode(np.asfortranarray(clip.mask(ids[0])[3].astype(np.uint8)))
    objects = [
        {"object_id": 1, "label": "thing", "prompts": [{"frame_index": 0, "points": [[int(xs[0]), int(ys[0]), 1]]}]},
        {"object_id": 2, "prompts": [{"frame_index": 5, "box": [
            int(box_xs.min()), int(box_ys.min()), int(box_xs.max()) + 1, int(box_ys.max()) + 1]}]},
        {"object_id": 3, "prompts": [
            {"frame_index": 3, "mask": {"size": given["size"], "counts": given["counts"].decode()}}]},
    ]  # fmt: skip
    (folder / "clip.prompts.json").write_text(json.dumps({"version": 1, "objects": objects}))
    return folder


@pytest.fixture(scope="module")
def two_shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn clips in one video of 18 frames; three objects, prompted on frame 0, on frame 12, and on 2 and 14."""
    folder = tmp_path_factory.mktemp("cuts")
    shots = [render_clip(seed, frames=10, size=160, mix={"exit": 0.0}) for seed in (900_100_006, 900_100_011)]
    with FilmWriter(folder / "clip.mp4", 25.0, quality=8) as film:
        for frame in (*shots[0].frames_thw3[:CUT], *shots[1].frames_thw3):
            film.append(frame)

    def click(frame: int) -> dict[str, object]:
        shot, at = (shots[0], frame) if frame < CUT else (shots[1], frame - CUT)
        ys, xs = np.nonzero(shot.mask(shot.object_ids[0])[at])
        middle = len(xs) // 2
        return {"frame_index": frame, "points": [[int(xs[middle]), int(ys[middle]), 1]]}

    prompts = {1: [click(0)], 2: [click(12)], 3: [click(2), click(14)]}
    objects = [{"object_id": one, "prompts": found} for one, found in prompts.items()]
    (folder / "clip.prompts.json").write_text(json.dumps({"version": 1, "objects": objects}))
    return folder


def run_label(
    drop: Path, out: Path | str, model: LoadedModel, settings: Settings | None = None, **more: Any
) -> VideoReport:
    return label_video(
        str(drop / "clip.mp4"), drop / "clip.prompts.json", str(out), settings or load_settings(), model=model, **more
    )


@pytest.fixture(scope="module")
def labelled(drop: Path, nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoReport]:
    out = tmp_path_factory.mktemp("out")
    return out, run_label(drop, out, nano, load_settings(None, {"output.candidates": True, "output.tokens": True}))


def read_rows(out: Path, layer: str = "labels") -> pd.DataFrame:
    return pd.read_parquet(out / layer)
