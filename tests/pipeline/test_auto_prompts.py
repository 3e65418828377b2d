"""Proposals on a frame: which of overlapping masks stay, and what the embedded model finds."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.auto_prompts import Proposals, overlaps, propose, suppress
from pipeline.discover import automatic_prompts
from pipeline.models import LoadedModel, build_model, load_model
from pipeline.nano.clips import Clip, render_clip
from pipeline.prompts import ObjectPrompts
from pipeline.propagate import FrameResult, Session
from pipeline.settings import AutoPromptSettings
from pipeline.steps import Features
from pipeline.video.stream import Frame

SIDE = 12
EASY = dict.fromkeys(
    ("camouflage", "low_contrast", "noise", "blur", "fast", "twin", "occluder", "flicker", "exit", "small"), 0.0
)
SEED = 920_200_002


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rectangles of any place and size (some empty, some the same, many nested), with confidences that often agree."""
    n = draw(st.integers(0, 12))
    masks = torch.zeros(n, SIDE, SIDE, dtype=torch.bool)
    for i in range(n):
        x0, y0 = draw(st.integers(0, SIDE - 1)), draw(st.integers(0, SIDE - 1))
        masks[i, y0 : y0 + draw(st.integers(0, SIDE)), x0 : x0 + draw(st.integers(0, SIDE))] = True
    return masks, torch.tensor([draw(st.integers(0, 4)) / 4 for _ in range(n)])


@given(stacks(), st.sampled_from([0.0, 0.3, 0.7, 0.95]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_stays_overlaps_no_more_than_allowed(stack: tuple[Tensor, Tensor], bound: float, of_union: bool) -> None:
    masks, confidence = stack
    kept = suppress(masks, confidence, bound, of_union=of_union)
    shares = overlaps(masks[kept], masks[kept], of_union=of_union)
    assert (shares[~torch.eye(len(kept), dtype=torch.bool)] <= bound).all()
    assert confidence[kept].tolist() == sorted(confidence[kept].tolist(), reverse=True)


@given(stacks(), st.sampled_from([0.0, 0.3, 0.7]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_goes_overlaps_something_at_least_as_confident_that_stays(
    stack: tuple[Tensor, Tensor], bound: float, of_union: bool
) -> None:
    masks, confidence = stack
    kept = suppress(masks, confidence, bound, of_union=of_union)
    shares = overlaps(masks, masks, of_union=of_union)
    for row in set(range(len(masks))) - set(kept.tolist()):
        rivals = [k for k in kept.tolist() if shares[row, k] > bound]
        assert any(confidence[k] >= confidence[row] for k in rivals)


@given(stacks(), st.randoms(use_true_random=False), st.sampled_from([0.0, 0.5]))
@settings(max_examples=150, deadline=None)
def test_the_order_of_the_input_does_not_matter(stack: tuple[Tensor, Tensor], rng: random.Random, bound: float) -> None:
    masks, confidence = stack
    order = list(range(len(masks)))
    rng.shuffle(order)
    there = suppress(masks, confidence, bound)
    here = suppress(masks[order], confidence[order], bound)
    assert torch.equal(masks[there], masks[order][here])


def test_a_part_overlaps_its_whole_fully_and_little_of_the_union() -> None:
    whole, part = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bool)
    whole[:, 1:11, 1:11] = True
    part[:, 2:5, 2:5] = True
    assert overlaps(part, whole).item() == 1
    assert overlaps(part, whole, of_union=True).item() == pytest.approx(9 / 100)
    both = torch.cat([part, whole])
    assert suppress(both, torch.tensor([0.6, 0.7]), 0.7).tolist() == [1]
    assert suppress(both, torch.tensor([0.7, 0.6]), 0.7).tolist() == [0]
    assert len(suppress(both, torch.tensor([0.6, 0.7]), 0.7, of_union=True)) == 2


def test_overlaps_are_exact_under_mixed_precision() -> None:
    masks = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = overlaps(masks, masks)
    assert torch.equal(mixed, overlaps(masks, masks))


# The embedded model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("sam2_nano")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return render_clip(SEED, frames=1, size=128, mix=EASY)


def features(model: Any, rgb_hw3: np.ndarray) -> Features:
    """What a session shows a discovery of a frame."""
    seen: list[Features] = []

    def look(index: int, feats: Features, results: list[FrameResult]) -> list[ObjectPrompts]:
        seen.append(feats)
        return []

    session = Session(model, automatic_prompts(AutoPromptSettings()), (128, 128), 1, discover=look)
    session.prepare(lambda index: rgb_hw3)
    list(session.forward([Frame(0, 0.0, rgb_hw3)]))
    return seen[0]


def best_ious(found: Proposals, clip: Clip) -> dict[int, float]:
    """Of each true object, the best IoU of a proposal on the model's grid."""
    out = {}
    for one in clip.object_ids:
        truth = torch.from_numpy(clip.mask(one)[:1].copy()).float()[None]
        low = torch.nn.functional.avg_pool2d(truth, 4)[0] > 0.5
        out[one] = overlaps(low, found.masks_nhw, of_union=True).max().item()
    return out


def test_plain_objects_are_found_and_nothing_else(nano: LoadedModel, clip: Clip) -> None:
    found = propose(nano.model, features(nano.model, clip.frames_thw3[0]), AutoPromptSettings())
    assert min(best_ious(found, clip).values()) > 0.6
    assert len(found) == len(clip.object_ids)


def test_proposals_are_the_same_every_time_and_keep_the_rules(nano: LoadedModel, clip: Clip) -> None:
    feats = features(nano.model, clip.frames_thw3[0])
    rules = AutoPromptSettings(min_score=0.3, min_stability=0.3, max_objects=3)
    once, again = propose(nano.model, feats, rules), propose(nano.model, feats, rules)
    assert torch.equal(once.boxes_n4, again.boxes_n4)
    assert torch.equal(once.masks_nhw, again.masks_nhw)
    assert 1 <= len(once) <= 3
    areas = once.masks_nhw.flatten(1).float().mean(1)
    assert areas.tolist() == sorted(areas.tolist(), reverse=True)
    assert ((areas >= rules.min_area_share) & (areas <= rules.max_area_share)).all()
    assert (once.confidence_n >= 0.3).all()
    assert (once.stability_n >= 0.3).all()
    shares = overlaps(once.masks_nhw, once.masks_nhw)
    assert (shares[~torch.eye(len(once), dtype=torch.bool)] <= rules.max_overlap).all()


def test_what_a_track_follows_is_not_proposed_again(nano: LoadedModel, clip: Clip) -> None:
    feats, rules = features(nano.model, clip.frames_thw3[0]), AutoPromptSettings()
    found = propose(nano.model, feats, rules)
    left = propose(nano.model, feats, rules, found.masks_nhw[:1])
    assert len(left) == len(found) - 1
    assert (overlaps(left.masks_nhw, found.masks_nhw[:1]) <= rules.max_overlap).all()


def test_a_frame_without_anything_has_no_proposals(nano: LoadedModel) -> None:
    found = propose(nano.model, features(nano.model, np.full((128, 128, 3), 90, np.uint8)), AutoPromptSettings())
    assert len(found) == 0
    assert found.boxes_n4.shape == (0, 4)


def test_a_model_with_other_options_serves_too() -> None:
    """Without high-resolution features, without presence scores, without several candidates."""
    options = {
        "use_high_res_features_in_sam": False, "multimask_output_in_sam": False, "pred_obj_scores": False,
        "pred_obj_scores_mlp": False, "fixed_no_obj_ptr": False, "no_obj_embed_spatial": False,
    }  # fmt: skip
    torch.manual_seed(0)
    model = build_model("sam2_nano", options)
    feats = features(model, render_clip(SEED, frames=1, size=128).frames_thw3[0])
    found = propose(model, feats, AutoPromptSettings(min_score=0, min_stability=0, points_per_side=4))
    assert torch.isfinite(found.confidence_n).all()
