"""One output of five labelled videos: three drawn clips, one clip under a second name, and one that stands still."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from pipeline.demo import DEMO_CLIPS, make_drop
from pipeline.label import label_video
from pipeline.models import load_model
from pipeline.render.film import FilmWriter
from pipeline.settings import Settings, load_settings

FRAMES = 6
STILL_FRAMES = 5


@pytest.fixture(scope="session")
def settings() -> Settings:
    return load_settings(None, {"policy.max_uncertainty": 0.2, "output.review_frames": False})


def _still(folder: Path) -> Path:
    """A square that nobody moves, its mask given on every frame."""
    video = folder / "still.mp4"
    with FilmWriter(video, 10.0, quality=8) as film:
        for _ in range(STILL_FRAMES):
            frame = np.full((96, 160, 3), 90, np.uint8)
            frame[30:60, 40:100] = 200
            film.append(frame)
    mask = np.zeros((96, 160), np.uint8)
    mask[30:60, 40:100] = 1
    given = coco.encode(np.asfortranarray(mask))
    shown = {"mask": {"size": given["size"], "counts": given["counts"].decode()}}
    prompts = [{"frame_index": index, **shown} for index in range(STILL_FRAMES)]
    objects = [{"object_id": 1, "label": "<i>square</i>", "prompts": prompts}]
    video.with_suffix(".prompts.json").write_text(json.dumps({"version": 1, "objects": objects}))
    return video


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> Path:
    """A folder with `drop/night`, `drop/day` and the output `out`; tests use copies."""
    root = tmp_path_factory.mktemp("snapshots")
    clips = make_drop(root / "drop/night", DEMO_CLIPS[::2], num_frames=FRAMES)
    clips += make_drop(root / "drop/day", DEMO_CLIPS[1:2], num_frames=FRAMES)
    again = root / "drop/day/again.mp4"
    shutil.copy(clips[0].video, again)
    shutil.copy(clips[0].prompts, again.with_suffix(".prompts.json"))
    model = load_model("sam2_nano")
    for video in [*(clip.video for clip in clips), _still(root / "drop/day"), again]:
        prompts = video.with_suffix(".prompts.json")
        label_video(str(video), prompts, str(root / "out"), settings, drop=video.parent.name, model=model)
    return root


@pytest.fixture
def out(original: Path, tmp_path: Path) -> Path:
    """A copy of the output that a test may change; its videos lie where they were."""
    shutil.copytree(original / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="session")
def objects_in() -> Callable[[Path], dict[str, bytes]]:
    """Every object of a snapshot by its key, the time of the manifest left out."""

    def read(folder: Path) -> dict[str, bytes]:
        found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        if "manifest.json" in found:
            manifest: dict[str, Any] = json.loads(found["manifest.json"])
            manifest.pop("created_at")
            found["manifest.json"] = json.dumps(manifest).encode()
        return found

    return read
