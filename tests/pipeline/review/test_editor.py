"""The editor: clicks are obeyed and mend masks, boxes start anew, candidates are three."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.review_edit import iou, largest_error
from pipeline.models import LoadedModel
from pipeline.nano.clips import Clip, render_clip
from pipeline.nano.follow import innermost_pixel, tight_box
from pipeline.review.editor import Editor
from usam.image import EncodedImage

SIZE = (160, 160)
BoolArray = NDArray[np.bool_]


@pytest.fixture(scope="module")
def editor(nano: LoadedModel) -> Editor:
    return Editor(nano)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return render_clip(900_100_006, frames=4, size=SIZE[0])


@pytest.fixture(scope="module")
def features(editor: Editor, clip: Clip) -> EncodedImage:
    return editor.features(clip.frames_thw3[0])


@pytest.fixture(scope="module")
def truth_hw(clip: Clip) -> BoolArray:
    return max((clip.mask(one)[0] for one in clip.object_ids), key=lambda mask: int(mask.sum()))


def test_a_box_finds_the_object_whatever_the_mask_was(
    editor: Editor, features: EncodedImage, truth_hw: BoolArray
) -> None:
    box = np.array(tight_box(truth_hw), np.float32)
    found = editor.mask(features, None, None, box, None, SIZE)
    assert found.mask_hw.shape == SIZE
    assert found.mask_hw.dtype == bool
    assert iou(found.mask_hw, truth_hw) > 0.7
    again = editor.mask(features, None, None, box, ~truth_hw, SIZE)
    assert (again.mask_hw == found.mask_hw).all()


@pytest.mark.parametrize("kind", ["half", "too much", "empty", "none"])
def test_clicks_on_the_largest_error_mend_a_mask(
    editor: Editor, features: EncodedImage, truth_hw: BoolArray, kind: str
) -> None:
    middle = innermost_pixel(truth_hw)[0]
    start = {
        "half": truth_hw & (np.arange(SIZE[1]) < middle), "too much": truth_hw | (np.arange(SIZE[1]) > 150),
        "empty": np.zeros(SIZE, bool),
    }.get(kind)  # fmt: skip
    mask_hw, points, labels = start if start is not None else np.zeros(SIZE, bool), [], []
    before = iou(mask_hw, truth_hw)
    for _ in range(3):
        click = largest_error(truth_hw, mask_hw)
        assert click is not None
        points.append(click[:2])
        labels.append(click[2])
        current = None if kind == "none" and len(points) == 1 else mask_hw
        mask_hw = editor.mask(features, np.array(points), np.array(labels), None, current, SIZE).mask_hw
    assert iou(mask_hw, truth_hw) > max(before, 0.6)


def test_a_background_click_alone_takes_away_and_leaves_the_object(
    editor: Editor, features: EncodedImage, truth_hw: BoolArray
) -> None:
    wrong_hw = truth_hw.copy()
    far = np.argwhere(~truth_hw)
    y, x = far[np.abs(far - np.array(innermost_pixel(truth_hw)[::-1])).sum(1).argmax()]
    wrong_hw[max(0, y - 15) : y + 15, max(0, x - 15) : x + 15] = True
    found = editor.mask(features, np.array([[x, y]], np.float32), np.array([0]), None, wrong_hw, SIZE)
    assert not found.mask_hw[y, x]
    assert iou(found.mask_hw, truth_hw) > 0.6


def test_three_candidates_for_a_mask_an_empty_one_too(
    editor: Editor, features: EncodedImage, truth_hw: BoolArray
) -> None:
    for mask_hw in (truth_hw, np.zeros(SIZE, bool)):
        found = editor.candidates(features, mask_hw, SIZE)
        assert [one.mask_hw.shape for one in found] == [SIZE] * 3
    assert max(iou(one.mask_hw, truth_hw) for one in editor.candidates(features, truth_hw, SIZE)) > 0.6


def test_threads_take_turns_and_get_the_same(editor: Editor, features: EncodedImage, truth_hw: BoolArray) -> None:
    box = np.array(tight_box(truth_hw), np.float32)
    right = editor.mask(features, None, None, box, None, SIZE).mask_hw
    found: list[BoolArray] = []
    threads = [
        threading.Thread(target=lambda: found.append(editor.mask(features, None, None, box, None, SIZE).mask_hw))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all((one == right).all() for one in found)
