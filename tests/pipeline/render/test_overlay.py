"""Masks on frames: what is painted, what is left alone, and how a decision is told."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import ShapeError
from pipeline.render.overlay import MaskView, Strip, display_scale, draw_frame
from pipeline.render.palette import DECISION_COLOURS, HOLD, REVIEW, object_colour

GREY = np.full((400, 500, 3), 90, np.uint8)


def _view(mask_hw: np.ndarray, decision: str = "accept", object_id: int = 1) -> MaskView:
    return MaskView(object_id, "cup", mask_hw, decision, "visible", 0.2)


def _square(shape: tuple[int, int] = (400, 500)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[100:200, 150:300] = True
    return mask


def test_pixels_away_from_the_mask_stay_as_they_were() -> None:
    drawn = draw_frame(GREY, [_view(_square())], scale=1, tags=False)
    assert (drawn[:90] == 90).all()
    assert (drawn[150, 225] != 90).any()


def test_the_input_frame_is_not_changed() -> None:
    draw_frame(GREY, [_view(_square())], scale=1)
    assert (GREY == 90).all()


@pytest.mark.parametrize(("decision", "edge"), [("accept", object_colour(1)), ("hold", HOLD)])
def test_the_edge_is_solid_for_accept_and_hold(decision: str, edge: tuple[int, int, int]) -> None:
    drawn = draw_frame(GREY, [_view(_square(), decision)], scale=1, tags=False)
    assert (drawn[100, 160:290] == edge).all()


def test_the_edge_of_a_review_mask_is_red_and_dashed() -> None:
    drawn = draw_frame(GREY, [_view(_square(), "review")], scale=1, tags=False)
    red = (drawn[100, 160:290] == REVIEW).all(axis=1)
    assert 0.5 < red.mean() < 0.9


def test_a_flagged_mask_lies_over_an_accepted_one() -> None:
    views = [_view(_square(), "review", 1), _view(_square(), "accept", 2)]
    drawn = draw_frame(GREY, views, scale=1, tags=False)
    assert (drawn[100, 160:290] == REVIEW).all(axis=1).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 64), (401, 503), (2160, 3840)])
def test_every_size_draws_at_its_display_scale(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, bool)
    drawn = draw_frame(np.zeros((*shape, 3), np.uint8), [_view(mask)])
    scale = display_scale(*shape)
    assert drawn.shape == (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)), 3)
    assert max(drawn.shape) <= 1280


def test_an_empty_mask_draws_nothing() -> None:
    drawn = draw_frame(GREY, [_view(np.zeros((400, 500), bool))], scale=1)
    assert np.array_equal(drawn, GREY)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected a mask of \(400, 500\), got \(10, 10\)"):
        draw_frame(GREY, [_view(np.ones((10, 10), bool))])


def test_colours_are_distinct_and_leave_red_to_review() -> None:
    colours = [object_colour(i) for i in range(1, 41)]
    assert len(set(colours)) == 40
    assert not set(colours) & set(DECISION_COLOURS.values())
    assert not [c for c in colours if c[0] > 200 and c[1] < 80 and c[2] < 80]


def test_the_strip_shows_decisions_in_time_order() -> None:
    codes = np.array([[1] * 50 + [2] * 50], np.uint8)
    strip = Strip([7], codes, 500, "threshold 0.50, uncertified")
    film = strip.draw(np.zeros((40, 500, 3), np.uint8), 75, "frame 75")
    assert film.shape == (40 + strip.height_px, 500, 3)
    lane = film[-8]
    assert (lane[100] == DECISION_COLOURS["accept"]).all()
    assert (lane[480] == DECISION_COLOURS["review"]).all()
