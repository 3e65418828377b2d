"""How far a person's mask is carried: to the next prompt, or to where masks are trusted and agree; never beyond."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import rle
from pipeline.models import LoadedModel
from pipeline.nano.clips import render_clip
from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet, prompt_set
from pipeline.resume import corrected
from pipeline.review.repropagate import Stopping, repropagate
from pipeline.stored_masks import StoredMask

FRAMES, SIZE_PX = 14, 96
Read = Callable[[int], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def video(nano: LoadedModel) -> tuple[Read, NDArray[np.uint8]]:
    clip = render_clip(900_100_006, frames=FRAMES, size=SIZE_PX)
    return (lambda index: clip.frames_thw3[index]), clip.ids_thw


def masks(truth: NDArray[np.uint8], *frames: int) -> PromptSet:
    given = tuple(FramePrompt(frame, mask_hw=truth[frame] == 2) for frame in frames)
    return prompt_set([ObjectPrompts(2, None, given)], "truth")


def reached(
    nano: LoadedModel, video: tuple[Read, NDArray[np.uint8]], prompts: PromptSet, new: set[int], rule: Stopping,
    trusted: Callable[[int], bool], *, stored: Callable[[int], NDArray[np.bool_]] | None = None, **more: object,
) -> dict[str, list[int]]:  # fmt: skip
    """The frames of each walk, by where it starts and which way it goes."""
    read, truth = video

    def there(_: int, frame: int) -> StoredMask:
        mask_hw = truth[frame] == 2 if stored is None else stored(frame)
        return StoredMask(rle.encode_mask(mask_hw).counts, None, SIZE_PX, SIZE_PX)

    walks = repropagate(
        nano.model, prompts, {2: new}, there, lambda _, frame: trusted(frame), read, (SIZE_PX, SIZE_PX), FRAMES,
        rule=rule, keep_tokens=False, **more,
    )  # fmt: skip
    return {f"{w.position} {w.direction}": [r.frame_index for (r,) in w.results] for w in walks}


def small_read(video: tuple[Read, NDArray[np.uint8]], size: int) -> tuple[Read, NDArray[np.uint8]]:
    from PIL import Image

    read, truth = video

    def resized(index: int) -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(read(index)).resize((size, size)))

    return resized, truth


@pytest.mark.parametrize(
    ("rule", "forward", "back"),
    [
        (Stopping(agree_iou=None), [5, 6, 7, 8, 9, 10, 11], [4, 3, 2, 1]),
        (Stopping(agree_iou=0.0), [5, 6, 7], [4, 3]),
        (Stopping(agree_iou=0.0, frames=2), [5, 6, 7, 8], [4, 3, 2]),
        (Stopping(agree_iou=0.5), [5, 6, 7], [4, 3]),
        (Stopping(agree_iou=1.0), [5, 6, 7, 8, 9, 10, 11], [4, 3, 2, 1]),
    ],
)
def test_a_mask_goes_to_the_next_prompt_or_to_trusted_rows_that_agree(
    nano: LoadedModel, video: tuple[Read, NDArray[np.uint8]], rule: Stopping, forward: list[int], back: list[int]
) -> None:
    """Of prompts on 0, 5 and 12 that on 5 is new; rows from 8 on and up to 2 are trusted, and true."""
    small = small_read(video, nano.image_size)
    found = reached(nano, small, masks(video[1], 0, 5, 12), {5}, rule, lambda frame: not 2 < frame < 8)
    assert found == {"5 forward": forward, "5 reverse": back}


def test_trusted_rows_that_show_something_else_are_carried_over(
    nano: LoadedModel, video: tuple[Read, NDArray[np.uint8]]
) -> None:
    small = small_read(video, nano.image_size)
    elsewhere = np.zeros((SIZE_PX, SIZE_PX), bool)
    elsewhere[:10, :10] = True
    found = reached(
        nano, small, masks(video[1], 0, 5), {5}, Stopping(), lambda _: True,
        stored=lambda frame: elsewhere if frame < 9 else video[1][frame] == 2,
    )  # fmt: skip
    assert found["5 reverse"] == [4, 3, 2, 1]
    assert found["5 forward"][:4] == [5, 6, 7, 8]
    assert len(found["5 forward"]) < FRAMES - 5


def test_what_one_mask_reached_is_not_done_again_from_the_next(
    nano: LoadedModel, video: tuple[Read, NDArray[np.uint8]]
) -> None:
    small = small_read(video, nano.image_size)
    found = reached(nano, small, masks(video[1], 4, 9), {4, 9}, Stopping(agree_iou=None), lambda _: True)
    frames = [frame for walk in found.values() for frame in walk]
    assert sorted(frames) == list(range(FRAMES))
    assert found["4 reverse"] == [3, 2, 1, 0]
    assert reached(
        nano, small, masks(video[1], 4, 9), {4}, Stopping(agree_iou=None), lambda _: True, reverse=False
    ) == {"4 forward": [4, 5, 6, 7, 8]}  # fmt: skip


def test_what_comes_out_is_what_a_fast_correction_gives(
    nano: LoadedModel, video: tuple[Read, NDArray[np.uint8]]
) -> None:
    read, truth = small_read(video, nano.image_size)
    hw, options = (SIZE_PX, SIZE_PX), {"keep_tokens": False}
    expected = {
        result.frame_index: result.logits_hw
        for results in corrected(nano.model, masks(truth, 0), masks(truth, 5), read, hw, FRAMES, fast=True, **options)
        for result in results
    }
    walks = repropagate(
        nano.model, masks(truth, 0, 5), {2: {5}}, lambda one, at: StoredMask(b"", None, *hw), lambda one, at: False,
        read, hw, FRAMES, **options,
    )  # fmt: skip
    found = {result.frame_index: result.logits_hw for walk in walks for (result,) in walk.results}
    assert found.keys() == expected.keys() == set(range(1, FRAMES))
    assert all((found[frame] == expected[frame]).all() for frame in found)
