"""Following a clip: prompts come from the truth, and every mask is judged against it."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.models import LoadedModel, load_model
from pipeline.nano.clips import render_clip
from pipeline.nano.follow import first_frame_prompts, follow, innermost_pixel, tight_box


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("sam2_nano")


def test_the_innermost_pixel_of_a_ring_is_on_the_ring() -> None:
    y, x = np.mgrid[0:41, 0:41]
    distance = np.hypot(x - 20, y - 20)
    ring = (distance < 18) & (distance > 8)
    px, py = innermost_pixel(ring)
    assert ring[py, px]
    assert 10 < np.hypot(px - 20, py - 20) < 16


def test_the_innermost_pixel_is_farthest_from_the_edge() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:16, 10:21] = True
    assert innermost_pixel(mask) == (15, 10)
    mask[:] = False
    mask[7, 9] = True
    assert innermost_pixel(mask) == (9, 7)


def test_the_box_of_a_mask_is_tight_with_exclusive_edges() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2:5, 3:9] = True
    assert tight_box(mask) == (3.0, 2.0, 9.0, 5.0)


def test_rows_are_judged_against_the_truth(nano: LoadedModel) -> None:
    clip = render_clip(900_100_010, frames=4)
    prompts = first_frame_prompts(clip, "box", 60)
    assert prompts is not None
    rows = follow(nano.model, clip, prompts)
    assert len(rows) == 4 * len(prompts.objects)
    for row in rows:
        assert row.truth_px == int(clip.mask(row.object_id)[row.frame_index].sum())
        assert 0 <= row.iou <= 1
        assert (row.best_of_3 is not None) == (row.frame_index == 0)
        if row.truth_px and row.empty:
            assert row.iou == 0
    assert first_frame_prompts(clip, "click", 10**6) is None
