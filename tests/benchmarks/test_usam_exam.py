"""The exam of USAM is the one that was committed: its shifted clips, their truth, and seeds that nothing trains on."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.nano.clips import render_clip

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
EXAM: dict[str, Any] = yaml.safe_load((BENCHMARKS / "usam.yaml").read_text())


@pytest.fixture(scope="module")
def shifted() -> Any:
    spec = importlib.util.spec_from_file_location("shifted_clips_under_test", BENCHMARKS / "shifted_clips.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_shifted_clips_are_those_that_were_committed(shifted: Any) -> None:
    digest = hashlib.sha256()
    first = EXAM["exams"]["shifted"]["first_seed"]
    for seed in range(first, first + 10):
        clip = shifted.render_shifted(seed, frames=EXAM["frames"], size=EXAM["size"])
        digest.update(clip.frames_thw3.tobytes())
        digest.update(clip.ids_thw.tobytes())
    assert digest.hexdigest() == EXAM["shifted_first_pixels_sha256"]


def test_every_style_changes_the_pixels_and_only_the_camera_moves_the_truth(shifted: Any) -> None:
    for seed in range(len(shifted.STYLES)):
        plain, styled = render_clip(seed, frames=4), shifted.render_shifted(seed, frames=4)
        assert shifted.style_of(seed) in styled.tags
        assert not np.array_equal(plain.frames_thw3, styled.frames_thw3)
        assert np.array_equal(plain.ids_thw, styled.ids_thw) == (shifted.style_of(seed) != "shake")


def test_exams_and_training_share_no_seed() -> None:
    sets = [*EXAM["exams"].values(), EXAM["training"], EXAM["polishing"]]
    spans = sorted((rules["first_seed"], rules["first_seed"] + rules["clips"]) for rules in sets)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert all(rules["clips"] >= 400 for rules in EXAM["exams"].values())
