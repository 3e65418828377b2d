"""What the tests of the review share: a drop of three drawn clips, labelled for real, with stretches and audits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.demo import prompts_from_truth
from pipeline.label import label_video
from pipeline.ledger import Ledger
from pipeline.models import LoadedModel, load_model
from pipeline.nano.clips import render_clip
from pipeline.render.film import FilmWriter
from pipeline.settings import Settings, load_settings
from pipeline.storage.objects import ObjectStore

from .clip import POLICY, Clip

SEEDS = {"one": 900_100_006, "two": 900_100_011, "three": 900_100_017}
FRAMES, SIZE_PX = 16, 160


@dataclass(frozen=True)
class Drop:
    """A labelled drop.

    Args:
        folder: the videos and their prompts.
        out: the output; tests that write take a `Copy` of it.
        truth: (T, H, W) uint8 ids of objects by the video's stem.
        settings: that it was labelled with; the queue and server of a test take them too.
    """

    folder: Path
    out: Path
    truth: dict[str, NDArray[np.uint8]]
    settings: Settings


@pytest.fixture(scope="session")
def nano() -> LoadedModel:
    return load_model("sam2_nano")


@pytest.fixture(scope="session")
def review_drop(tmp_path_factory: pytest.TempPathFactory, nano: LoadedModel) -> Drop:
    """Three clips of 16 frames at 160 px, labelled by the embedded model: some stretches to review, some audits."""
    root = tmp_path_factory.mktemp("review")
    folder, out, settings, truth = root / "day", root / "out", load_settings(None, POLICY), {}
    folder.mkdir()
    for name, seed in SEEDS.items():
        drawn = render_clip(seed, frames=FRAMES, size=SIZE_PX)
        with FilmWriter(folder / f"{name}.mp4", 12.0, quality=8) as film:
            for frame in drawn.frames_thw3:
                film.append(frame)
        (folder / f"{name}.prompts.json").write_text(json.dumps(prompts_from_truth(drawn.ids_thw[0], "click")))
        truth[name] = drawn.ids_thw
        label_video(
            str(folder / f"{name}.mp4"), folder / f"{name}.prompts.json", str(out), settings, drop="day", model=nano
        )
    return Drop(folder, out, truth, settings)


@pytest.fixture
def labelled_copy(review_drop: Drop, tmp_path: Path) -> Callable[[], Drop]:
    """`labelled_copy()`: the drop with an output of its own, to write into; the videos are shared, never changed."""

    def copy() -> Drop:
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        shutil.copytree(review_drop.out, out)
        return Drop(review_drop.folder, out, review_drop.truth, review_drop.settings)

    return copy


@pytest.fixture
def clip(review_drop: Drop, labelled_copy: Callable[[], Drop], nano: LoadedModel) -> Clip:
    """`one`, as the drop has it: object 1 is doubtful throughout, object 2 is right."""
    drop = labelled_copy()
    (commit,) = [one for one in Ledger(ObjectStore(drop.out)).read_all() if one.video_uri.endswith("/one.mp4")]
    video = drop.folder / "one.mp4"
    return Clip(video, drop.out, drop.truth["one"], drop.settings, nano, commit.video_id)


@pytest.fixture
def own_clip(review_drop: Drop, tmp_path: Path, nano: LoadedModel) -> Clip:
    """The same clip in a folder of its own, not labelled yet."""
    (tmp_path / "in").mkdir()
    for name in ("one.mp4", "one.prompts.json"):
        shutil.copy(review_drop.folder / name, tmp_path / "in" / name)
    settings = review_drop.settings
    return Clip(tmp_path / "in/one.mp4", tmp_path / "own", review_drop.truth["one"], settings, nano)


@pytest.fixture
def lost(tmp_path: Path, nano: LoadedModel, review_drop: Drop) -> Clip:
    """A clip of which object 1 is soon lost, labelled."""
    drawn = render_clip(900_100_003, frames=40, size=160)
    (tmp_path / "in").mkdir()
    with FilmWriter(tmp_path / "in/lost.mp4", 12.0, quality=8) as film:
        for frame in drawn.frames_thw3:
            film.append(frame)
    prompts = prompts_from_truth(drawn.ids_thw[0], "click")
    (tmp_path / "in/lost.prompts.json").write_text(json.dumps(prompts))
    clip = Clip(tmp_path / "in/lost.mp4", tmp_path / "own", drawn.ids_thw, review_drop.settings, nano)
    clip.label()
    return clip
