"""Prompts lie on the mask, in its middle, are seeded, and repeat a pixel only where the mask is too small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from usam.errors import ShapeError
from usam.prompts import centre_point, dense_points, eroded


def rectangle(top: int, left: int, height: int, width: int, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def eroded_slowly(mask: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel: foreground whose 5x5 neighbours inside the image are all foreground."""
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        out[y, x] = mask[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].all()
    return out if out.any() else mask


MASKS = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


@given(MASKS)
def test_erosion_follows_its_definition(mask: np.ndarray) -> None:
    assert np.array_equal(eroded(mask), eroded_slowly(mask))


def test_a_mask_that_erosion_would_empty_is_kept() -> None:
    thin = rectangle(3, 3, 4, 10)
    assert np.array_equal(eroded(thin), thin)


def test_the_centre_of_a_rectangle_is_its_middle() -> None:
    assert centre_point(rectangle(4, 6, 7, 9)).tolist() == [10, 7]


def test_the_centre_of_a_ring_is_on_the_ring() -> None:
    ring = rectangle(2, 2, 15, 15)
    ring[7:12, 7:12] = False
    x, y = centre_point(ring).astype(int)
    assert ring[y, x]


@settings(deadline=None)
@given(MASKS.filter(lambda mask: bool(mask.any())), st.integers(0, 5))
def test_eight_clicks_lie_on_the_eroded_mask_and_the_first_is_nearest_to_its_centroid(
    mask: np.ndarray, seed: int
) -> None:
    inner = eroded_slowly(mask)
    points = dense_points(mask, seed)
    assert points.shape == (8, 2)
    assert points.dtype == np.float32
    assert inner[points[:, 1].astype(int), points[:, 0].astype(int)].all()
    pixels = np.argwhere(inner)[:, ::-1]
    distance = np.hypot(*(pixels - pixels.mean(0)).T)
    assert np.hypot(*(points[0] - pixels.mean(0))) == pytest.approx(distance.min(), abs=1e-5)
    assert np.array_equal(points[0], centre_point(mask))
    if len(pixels) >= 7:
        assert len(np.unique(points[1:], axis=0)) == 7


def test_a_single_pixel_is_clicked_eight_times() -> None:
    assert dense_points(rectangle(3, 5, 1, 1)).tolist() == [[5, 3]] * 8


def test_seven_pixels_are_all_clicked() -> None:
    assert sorted(dense_points(rectangle(0, 0, 1, 7))[1:, 0].tolist()) == list(range(7))


def test_the_seed_decides_the_random_clicks() -> None:
    mask = rectangle(2, 2, 14, 14)
    assert np.array_equal(dense_points(mask, (1, 2)), dense_points(mask, (1, 2)))
    assert not np.array_equal(dense_points(mask, (1, 2)), dense_points(mask, (1, 3)))


@pytest.mark.parametrize("mask", [np.zeros((4, 4), bool), np.ones((2, 4, 4), bool)])
def test_what_cannot_be_prompted_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        centre_point(mask)
