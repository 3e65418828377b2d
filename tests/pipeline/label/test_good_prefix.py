"""A damaged video is refused as a whole, or the frames before the damage are labelled, and the facts say so."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PromptError, VideoError
from pipeline.models import LoadedModel
from pipeline.prompts import load_prompts
from pipeline.records import read_metadata
from pipeline.settings import DecodeSettings, load_settings
from pipeline.video.probe import probe_video

from .conftest import FRAMES, read_rows, run_label


@pytest.fixture
def damaged_drop(drop: Path, tmp_path: Path) -> Path:
    """The drop with noise over the second half of its last frames."""
    folder = Path(shutil.copytree(drop, tmp_path / "night"))
    path = folder / "clip.mp4"
    data = bytearray(path.read_bytes())
    first = data.index(b"mdat") + 4
    last = first - 8 + int.from_bytes(data[first - 8 : first - 4], "big")
    at = first + (last - first) * 9 // 10
    data[at:last] = np.random.default_rng(0).integers(0, 256, last - at, np.uint8).tobytes()
    path.write_bytes(data)
    return folder


def test_it_is_refused_and_nothing_is_published(damaged_drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="damage"):
        run_label(damaged_drop, tmp_path / "out", nano)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_the_good_prefix_is_labelled(damaged_drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    settings = load_settings(None, {"decode.on_damage": "keep_good_prefix"})
    info = probe_video(damaged_drop / "clip.mp4", DecodeSettings(on_damage="keep_good_prefix"))
    assert 6 <= info.num_frames < FRAMES
    report = run_label(damaged_drop, tmp_path / "out", nano, settings)
    assert report.frames == info.num_frames
    assert report.damage == info.damage is not None
    rows = read_rows(tmp_path / "out")
    assert sorted(set(rows.frame_index)) == list(range(info.num_frames))
    facts = next((tmp_path / "out" / "masks").rglob("*.parquet"))
    metadata = read_metadata(pq.read_schema(facts))
    assert metadata["config"]["good_prefix"] == {"frames": info.num_frames, "damage": info.damage}
    assert run_label(damaged_drop, tmp_path / "out", nano, settings).status == "unchanged"


def test_a_prompt_behind_the_good_prefix_is_told_why(damaged_drop: Path) -> None:
    prompts = load_prompts(damaged_drop / "clip.prompts.json")
    info = probe_video(damaged_drop / "clip.mp4", DecodeSettings(on_damage="keep_good_prefix"))
    cut = dataclasses.replace(info, num_frames=4)
    told = r"0\.\.3 of clip.mp4, which is damaged from frame 4 on, got frame 5 .*; prompt on an earlier frame, or copy"
    with pytest.raises(PromptError, match=told):
        prompts.validate(cut)
    with pytest.raises(PromptError, match=r"0\.\.3 of clip.mp4, got frame 5 .*; correct frame_index"):
        prompts.validate(dataclasses.replace(cut, damage=None))
