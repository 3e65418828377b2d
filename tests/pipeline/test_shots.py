"""Scene cuts: found on their frame, and on no other for what a camera does within a shot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import shots
from pipeline.errors import ShapeError
from pipeline.label import facts_config
from pipeline.nano.clips import render_clip
from pipeline.settings import load_settings
from pipeline.shots import ShotDetector
from pipeline.video.probe import VideoInfo

SIZE = 128
EASY = dict.fromkeys(("camouflage", "low_contrast", "noise", "fast", "flicker"), 0.0)
seeds = st.integers(0, 2**31 - 1)


def clip(seed: int, frames: int = 8, **mix: float) -> NDArray[np.uint8]:
    return render_clip(seed, frames=frames, size=SIZE, mix={**EASY, **mix}).frames_thw3


def cuts(frames: NDArray[np.uint8], detector: ShotDetector | None = None) -> list[int]:
    detector = detector or ShotDetector()
    return [index for index, frame in enumerate(frames) if detector.is_cut(frame)]


def lit(frames: NDArray[np.uint8], gain_n: NDArray[np.float64]) -> NDArray[np.uint8]:
    bright: NDArray[np.uint8] = (frames * gain_n[:, None, None, None]).clip(0, 255).astype(np.uint8)
    return bright


def mosaic(seed: int, tiles: int = 16, side: int = SIZE) -> NDArray[np.uint8]:
    """A picture that is nothing but edges and colours."""
    small = np.random.default_rng(seed).integers(20, 200, (tiles, tiles, 3), dtype=np.uint8)
    return small.repeat(side // tiles, 0).repeat(side // tiles, 1)


def test_a_cut_between_two_clips_is_found_on_its_very_frame() -> None:
    found = 0
    for seed in range(12):
        first, second = clip(7000 + seed, 5 + seed % 4), clip(8000 + seed)
        said = cuts(np.concatenate([first, second]))
        assert set(said) <= {len(first)}
        found += said == [len(first)]
    assert found >= 11


@settings(deadline=None, max_examples=15)
@given(seed=seeds, size=st.integers(1, 300), aspect=st.integers(1, 300))
def test_a_standing_picture_of_any_size_has_no_cut(seed: int, size: int, aspect: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (size, aspect, 3), dtype=np.uint8)
    assert cuts(np.repeat(picture[None], 4, 0)) == []


@settings(deadline=None, max_examples=15)
@given(seed=seeds, data=st.data())
def test_jitter_of_the_brightness_is_no_cut(seed: int, data: st.DataObject) -> None:
    frames = clip(seed % 1000)
    gain = np.array(data.draw(st.lists(st.floats(0.6, 1.4), min_size=len(frames), max_size=len(frames))))
    assert cuts(lit(frames, gain)) == []


@pytest.mark.parametrize("step", [(0, 12), (9, -9), (-14, 3)])
def test_a_pan_over_a_busy_scene_is_no_cut_but_a_jump_is(step: tuple[int, int]) -> None:
    wide = mosaic(5, 32, 2 * SIZE)
    corners = [(64 + step[0] * i, 64 + step[1] * i) for i in range(5)]
    views = np.stack([wide[y : y + SIZE, x : x + SIZE] for y, x in corners])
    assert cuts(views) == []
    assert cuts(np.stack([*views, mosaic(6)])) == [5]


@pytest.mark.parametrize(
    "tone", [lambda x: x**9, lambda x: 1 - (1 - x) ** 9, lambda x: (30 * (x - 0.7)).clip(0, 1), lambda x: x / 8]
)
def test_another_tone_curve_is_no_cut(tone: Callable[[Any], Any]) -> None:
    picture = mosaic(5)
    picture[:] = picture[..., :1]  # grey: a curve changes the hue of single colours
    changed = (255 * tone(picture / 255)).astype(np.uint8)
    assert cuts(np.stack([picture, changed, picture])) == []


def test_cuts_are_found_without_colour() -> None:
    grey = [np.repeat(mosaic(seed, 8).mean(-1, keepdims=True).astype(np.uint8), 3, -1) for seed in range(8)]
    assert cuts(np.stack(grey).repeat(2, 0)) == [2, 4, 6, 8, 10, 12, 14]


def test_a_restless_shot_raises_the_bar_and_a_calm_one_lowers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_is_cut(evidence: list[float]) -> bool:
        script = iter(evidence)
        monkeypatch.setattr("pipeline.shots._evidence", lambda before, now: next(script))
        return cuts(np.repeat(mosaic(1)[None], len(evidence) + 1, 0)) == [len(evidence)]

    still, calm, restless = [-12.0] * 8, [-9.0] * 8, [-3.0] * 8
    assert last_is_cut([*still, -1.0])
    assert not last_is_cut([*still[:7], -8.0, -1.0])
    assert not last_is_cut([*calm, -1.0])
    assert last_is_cut([*calm, 1.0])
    assert not last_is_cut([*restless, 1.0])
    assert last_is_cut([*restless, 5.0])
    assert last_is_cut([*restless, *calm, 1.0])  # unrest is forgotten


def test_a_washed_out_frame_is_judged_only_if_it_stays() -> None:
    scene, glare = mosaic(1), (mosaic(2) // 8 + 220).astype(np.uint8)  # what is left of a picture in strong light
    assert cuts(np.stack([scene, scene, glare, glare, scene])) == []
    assert cuts(np.stack([scene, scene, glare, glare, glare, glare])) == [4]


def test_a_faint_picture_does_not_become_what_others_are_compared_with_at_once() -> None:
    scene = mosaic(1)
    faint = (scene // 8 + 20).astype(np.uint8)
    assert cuts(np.stack([scene, faint, faint, mosaic(2)])) == [3]
    detector = ShotDetector()
    cuts(np.stack([scene, faint, faint]), detector)
    kept = np.asarray(detector.state()["reference"]).std()
    cuts(np.repeat(faint[None], 20, 0), detector)
    assert np.asarray(detector.state()["reference"]).std() < kept / 4  # it is the scene's new look by now


@settings(deadline=None, max_examples=10)
@given(seed=seeds, step=st.integers(-3, 3))
def test_a_steady_pan_is_no_cut(seed: int, step: int) -> None:
    wide = render_clip(seed % 1000, frames=1, size=256, mix=EASY).frames_thw3[0]
    views = [wide[64 : 64 + SIZE, 64 + 8 * step * i // 2 :][:, :SIZE] for i in range(5)]
    assert cuts(np.stack(views)) == []


@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_is_no_cut(length: int) -> None:
    frames = clip(7, 10)
    for blend in (0.5, 0.8, 0.97, 1.0):
        lit_up = frames.astype(np.float64)
        lit_up[4 : 4 + length] += (255 - lit_up[4 : 4 + length]) * blend
        assert cuts(lit_up.astype(np.uint8)) == [], blend


def test_a_fade_through_black_is_a_cut_only_if_another_scene_follows() -> None:
    down = np.array([1, 1, 0.7, 0.4, 0.1, 0, 0, 0])
    out, back, other = lit(clip(7, 8), down), lit(clip(7, 8), down[::-1]), lit(clip(11, 8), down[::-1])
    assert cuts(np.concatenate([out, back])) == []
    (cut,) = cuts(np.concatenate([out, other]))
    assert 8 <= cut <= 14


def test_black_at_the_start_and_blank_videos_have_no_cut() -> None:
    black = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    assert cuts(np.concatenate([black, clip(7)])) == []
    assert cuts(np.concatenate([black, black + 255, black])) == []


def test_the_detector_goes_on_from_its_state_as_if_it_had_never_stopped() -> None:
    frames = np.concatenate([clip(1, noise=1.0), lit(clip(2), np.linspace(1, 0, 8)), clip(3, fast=1.0), clip(4)])
    faint = (mosaic(1) // 8 + 20).astype(np.uint8)
    frames = np.concatenate([frames, mosaic(1)[None], np.repeat(faint[None], 20, 0), mosaic(1)[None]])
    expected = cuts(frames, ShotDetector(0.4))
    assert len(expected) >= 2
    detector, straight, said = ShotDetector(0.4), ShotDetector(0.4), []
    for index, frame in enumerate(frames):
        detector = ShotDetector.from_state(json.loads(json.dumps(detector.state())))
        straight.is_cut(frame)
        if detector.is_cut(frame):
            said.append(index)
        assert detector.state() == straight.state(), index
    assert said == expected


def test_the_decision_does_not_see_what_comes_later() -> None:
    frames = np.concatenate([clip(1), clip(2), clip(3)])
    whole = cuts(frames)
    for stop in range(1, len(frames)):
        assert cuts(frames[:stop]) == [cut for cut in whole if cut < stop]


def test_a_higher_threshold_finds_no_more() -> None:
    frames = np.concatenate([clip(seed, 4) for seed in range(20, 30)])
    counts = [len(cuts(frames, ShotDetector(threshold))) for threshold in (0.01, 0.5, 0.99, 0.999999)]
    assert counts[0] >= 9
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0]


def test_another_kind_of_picture_is_refused() -> None:
    for frame in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(ShapeError, match="uint8"):
            ShotDetector().is_cut(frame)


def test_another_way_to_find_cuts_is_other_work_where_cuts_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    info = VideoInfo(Path("clip.mp4"), 64, 48, 10, 25.0, 0.4, "h264", "mov", 0, "decord", "test")
    changed = []
    for on_cut in ("flag", "stop", "ignore"):
        wanted = load_settings(None, {"propagate.on_cut": on_cut})
        before = facts_config(info, wanted)
        monkeypatch.setattr(shots, "METHOD", shots.METHOD + 1)
        changed.append(facts_config(info, wanted) != before)
    assert changed == [True, True, False]
