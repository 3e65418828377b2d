"""The simulated reviewer answers by the truth, and the figures of an exam are read off its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from benchmarks.review_figures import Run, midway
from benchmarks.review_reviewer import Reviewer, Videos, largest_error, loop_frames
from pipeline.models import load_model
from pipeline.nano.clips import render_clip
from pipeline.review.editor import Editor
from pipeline.review.items import Item

EXAM: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "benchmarks/review_worth.yaml").read_text())
URI, FRAMES = "/in/day/clip.mp4", 6


@pytest.fixture(scope="module")
def videos() -> Videos:
    clip = render_clip(961_600_002, frames=FRAMES, size=128)
    videos = Videos()
    videos._truth[URI], videos._frames[URI] = clip.ids_thw, list(clip.frames_thw3)
    return videos


def reviewer(videos: Videos, **arm: Any) -> Reviewer:
    return Reviewer(EXAM, {"order": "ours", **arm}, videos, Editor(load_model("sam2_nano")), seed=1)


def item(object_id: int) -> Item:
    return Item(
        "r", "a" * 64, URI, 1, "day", object_id, None, "review", 2, 0, FRAMES - 1, FRAMES, 128, 128, 12.0, 1, 0.5, (),
        None, 1.0,
    )  # fmt: skip


def shown(videos: Videos, object_id: int) -> dict[int, NDArray[np.bool_]]:
    return dict(enumerate(videos.truth(URI) == object_id))


def test_what_is_right_is_accepted_and_what_is_nowhere_is_absent(videos: Videos) -> None:
    one = reviewer(videos)
    masks = shown(videos, 1)
    said = one.answer(item(1), masks)
    assert (said.verdict, said.scope, said.shown_iou) == ("accept", "stretch", 1.0)
    masks[4] = np.zeros_like(masks[4])
    assert one.answer(item(1), masks).scope == "frame", "wrong elsewhere in the loop"
    nothing = one.answer(item(99), masks)
    assert (nothing.verdict, nothing.scope, nothing.mask) == ("absent", "stretch", None)


def test_what_is_wrong_is_mended_or_passed_on_and_takes_longer(videos: Videos) -> None:
    one, masks = reviewer(videos), shown(videos, 1)
    accepted = one.answer(item(1), masks).seconds
    masks[2] = np.roll(masks[2], 20, axis=1)
    said = one.answer(item(1), masks)
    assert said.seconds > accepted
    assert said.shown_iou < EXAM["reviewer"]["right_iou"]
    if said.verdict == "skip":
        assert said.mask is None
    else:
        assert said.given_iou is not None
        assert said.given_iou >= EXAM["reviewer"]["usable_iou"]


def test_wrong_answers_come_as_often_as_the_exam_says(videos: Videos) -> None:
    one, masks = reviewer(videos, wrong=True), shown(videos, 1)
    said = [one.answer(item(1), masks).verdict for _ in range(400)]
    assert 0.02 < said.count("absent") / 400 < 0.09
    assert set(said) == {"accept", "absent"}


def test_the_click_goes_to_the_middle_of_the_largest_error() -> None:
    true_hw = np.zeros((40, 40), bool)
    true_hw[10:30, 10:30] = True
    half_hw = true_hw.copy()
    half_hw[:, 20:] = False
    assert largest_error(half_hw, true_hw) == ((24, 14), 1)
    beside_hw = true_hw.copy()
    beside_hw[0:6, 31:37] = True
    assert largest_error(beside_hw, true_hw) == ((33, 2), 0)
    assert loop_frames(list(range(100)))[:2] == [0, 4]
    assert len(loop_frames(list(range(100)))) == 24


def test_midway_is_read_between_rounds() -> None:
    def run(name: str, *levels: float) -> Run:
        curve = [(5.0 * number, 20.0 * number, level, 0.0) for number, level in enumerate(levels)]
        return Run(name, {"order": name}, curve, {})

    ours, random = run("ours", 0.5, 0.7, 0.8, 0.8), run("random", 0.5, 0.5, 0.6, 0.8)
    assert midway(ours, [random]) == pytest.approx(0.65)
    assert ours.until(0.65, 0) == pytest.approx(3.75)
    assert random.until(0.65, 1) == pytest.approx(45.0)
    assert ours.until(0.9, 0) is None
