"""Synthetic clips: the same seed gives the same pixels, and the truth is what one sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.nano.clips import DEFAULT_MIX, render_clip

NONE = dict.fromkeys(DEFAULT_MIX, 0.0)


def test_a_seed_decides_every_pixel() -> None:
    a, b, other = render_clip(3, frames=4), render_clip(3, frames=4), render_clip(4, frames=4)
    assert np.array_equal(a.frames_thw3, b.frames_thw3)
    assert np.array_equal(a.ids_thw, b.ids_thw)
    assert not np.array_equal(a.frames_thw3, other.frames_thw3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), size=st.sampled_from([32, 96, 128]), frames=st.integers(1, 5))
def test_any_seed_and_size_gives_a_clip_whose_truth_is_consistent(seed: int, size: int, frames: int) -> None:
    clip = render_clip(seed, frames=frames, size=size)
    assert clip.frames_thw3.shape == (frames, size, size, 3)
    assert clip.ids_thw.shape == clip.parts_thw.shape == (frames, size, size)
    assert set(np.unique(clip.ids_thw)) <= {0, *clip.object_ids}
    on_part = clip.parts_thw > 0
    assert np.array_equal(clip.parts_thw[on_part], clip.ids_thw[on_part])  # a part lies on its whole


def test_the_truth_follows_the_pixels() -> None:
    """In a still, clean scene an object's pixels differ from the same place without it."""
    for seed in range(40):
        clip = render_clip(seed, frames=1, mix=NONE)
        mask = clip.mask(clip.object_ids[0])[0]
        if mask.sum() > 400:
            inside = clip.frames_thw3[0][mask].astype(float).mean(0)
            around = clip.frames_thw3[0][clip.ids_thw[0] == 0].astype(float).mean(0)
            assert np.abs(inside - around).max() > 5
            return
    pytest.fail("no large object in 40 clips")


@pytest.mark.parametrize("tag", ["exit", "twin", "occluder"])
def test_each_difficulty_happens(tag: str) -> None:
    clips = [render_clip(seed, mix={**NONE, tag: 1.0}) for seed in range(8)]
    assert all(tag in clip.tags for clip in clips)
    if tag == "exit":
        vanish = [
            (clip.mask(o)[0].any() and not clip.mask(o).any((1, 2)).all())
            for clip in clips
            for o in clip.object_ids
            if "exit" in clip.object_tags[o]
        ]
        assert np.mean(vanish) > 0.7
    if tag == "twin":
        assert all(sum("twin" in tags for tags in clip.object_tags.values()) == 2 for clip in clips)
