"""Track features: what they say of still, moving, absent and overlapping objects, and that they are causal."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from usam.features import FEATURES, TrackFeatures


@dataclass
class Row:
    frame_index: int
    object_id: int
    logits_hw: Tensor | None
    prompted: str | None = None
    object_score: float | None = 5.0
    sam_score: float | None = 0.8
    tokens_2d: Tensor | None = None


def square(x: int, y: int = 2, side: int = 4) -> Tensor:
    logits = torch.full((16, 16), -8.0)
    logits[y : y + side, x : x + side] = 8.0
    return logits


def named(values: list[float] | None) -> dict[str, float]:
    assert values is not None
    return dict(zip(FEATURES, values, strict=True))


def track(masks: list[Tensor | None], **more: object) -> list[dict[str, float] | None]:
    features, out = TrackFeatures(), []
    for index, logits in enumerate(masks):
        row = Row(index, 1, logits, "click" if index == 0 else None, **more)  # type: ignore[arg-type]
        values = features([row])[0]
        out.append(None if values is None else named(values))
    return out


def test_a_still_object_agrees_with_itself() -> None:
    for frames, values in enumerate(track([square(3)] * 3)):
        assert values is not None
        assert values["temporal_iou"] == values["min_temporal_iou"] == 1.0
        assert values["area_change"] == values["absent_share"] == 0.0
        assert values["area_share"] == pytest.approx(16 / 256)
        assert values["frames_since_prompt"] == pytest.approx(torch.log1p(torch.tensor(float(frames))).item())


def test_a_jump_leaves_its_mark_on_every_later_frame() -> None:
    last = track([square(0), square(0), square(10), square(10), square(10)])[-1]
    assert last is not None
    assert last["temporal_iou"] == 1.0
    assert last["min_temporal_iou"] == 0.0
    assert 0 < last["mean_temporal_iou"] < 1


def test_an_absent_frame_counts_as_a_break_and_as_absence() -> None:
    empty = torch.full((16, 16), -1024.0)
    values = track([square(3), empty, empty])
    assert [v["temporal_iou"] if v else None for v in values] == [1.0, 0.0, 1.0]
    assert values[2] is not None
    assert values[2]["absent_share"] == 1.0
    assert values[2]["entropy_bits"] == values[2]["stability"] == 0.0


def test_an_untracked_row_ends_the_history() -> None:
    values = track([square(0), None, square(10)])
    assert values[1] is None
    assert values[2] is not None
    assert values[2]["temporal_iou"] == 1.0
    assert values[2]["frames_since_prompt"] == 0.0


def test_overlap_is_with_the_objects_of_the_same_frame() -> None:
    rows = [Row(0, 1, square(0), "click"), Row(0, 2, square(2), "click"), Row(0, 3, square(11, 11), "click")]
    overlaps = [named(values)["overlap_other"] for values in TrackFeatures()(rows)]
    assert overlaps == pytest.approx([0.5, 0.5, 0.0])


def test_tokens_are_compared_with_the_prompt_and_with_the_frame_before() -> None:
    tokens = [torch.tensor([0.0, 0.0, *pair]) for pair in ((1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0))]
    features = TrackFeatures()
    rows = [Row(i, 1, square(3), None if i else "click", tokens_2d=token) for i, token in enumerate(tokens)]
    values = [named(features([row])[0]) for row in rows]
    assert [v["token_cosine_prompt"] for v in values] == pytest.approx([1, 1, 0, 0], abs=1e-6)
    assert [v["token_cosine_previous"] for v in values] == pytest.approx([1, 1, 0, 1], abs=1e-6)


def test_a_given_mask_has_no_features_but_starts_a_history() -> None:
    features = TrackFeatures()
    assert features([Row(0, 1, square(3), "mask", sam_score=None)]) == [None]
    assert named(features([Row(1, 1, square(9))])[0])["temporal_iou"] == 0.0


def test_the_reverse_pass_starts_from_the_first_prompt() -> None:
    features = TrackFeatures()
    features([Row(5, 1, square(3), "click", sam_score=0.6)])
    features([Row(6, 1, square(11), sam_score=0.1)])
    features.reverse()
    values = named(features([Row(4, 1, square(3))])[0])
    assert values["temporal_iou"] == values["min_temporal_iou"] == 1.0
    assert values["min_sam_score"] == pytest.approx(0.6)


def test_a_saved_state_goes_on_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    rows = [Row(i, 1, torch.randn(16, 16), None if i else "click", tokens_2d=torch.randn(8)) for i in range(8)]
    whole, first = TrackFeatures(), TrackFeatures()
    expected = [whole([row]) for row in rows]
    got = [first([row]) for row in rows[:4]]
    data = io.BytesIO()
    torch.save(first.state(), data)
    data.seek(0)
    second = TrackFeatures.from_state(torch.load(data, weights_only=True))
    assert got + [second([row]) for row in rows[4:]] == expected
    whole.reverse()
    second.reverse()
    assert whole([rows[0]]) == second([rows[0]])
