"""Routing: every decision has its reasons, and a threshold is data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import StorageError
from pipeline.policy import Policy
from pipeline.records import DECISION, MASKS
from pipeline.route import decide


def facts(*rows: dict[str, Any]) -> pa.RecordBatch:
    base = {
        "video_id": "v", "video_uri": "v.mp4", "pts_seconds": 0.0, "object_id": 1, "height": 8, "width": 8,
        "visibility": "visible", "direction": "forward", "area_px": 20, "score_source": "iou_tracked",
        "auto": False, "across_cut": False,
    }  # fmt: skip
    return pa.RecordBatch.from_pylist([{**base, "frame_index": i, **row} for i, row in enumerate(rows)], schema=MASKS)


def one(policy: Policy | None = None, **row: Any) -> dict[str, Any]:
    (decision,) = decide(facts(row), policy or Policy()).to_pylist()
    return decision


def test_a_confident_mask_is_accepted_with_its_weight() -> None:
    decision = one(iou_tracked=0.9)
    assert decision["decision"] == "accept"
    assert decision["uncertainty"] == decision["weight"] * -1 + 1 == pytest.approx(0.1)
    assert decision["reasons"] == []
    assert decision["suggested_action"] is None
    assert decision["calibrated_iou"] is None
    assert decision["policy_id"] == Policy().policy_id


def test_a_high_uncertainty_goes_to_review_with_its_number() -> None:
    decision = one(Policy(max_uncertainty=0.24), iou_tracked=0.69)
    assert decision["decision"] == "review"
    assert decision["reasons"] == ["uncertainty 0.31 > 0.24"]
    assert (decision["suggested_action"], decision["weight"], decision["review_probability"]) == ("add_click", 0.0, 1.0)


def test_numbers_that_round_to_the_threshold_get_more_decimals() -> None:
    assert one(iou_tracked=0.7496)["reasons"] == ["uncertainty 0.2504 > 0.2500"]


def test_the_score_is_the_column_that_score_source_names() -> None:
    rows = facts(
        {"iou_tracked": 0.9, "sam_score": 0.1}, {"iou_tracked": 0.9, "sam_score": 0.1, "score_source": "sam_score"}
    )
    assert decide(rows, Policy())["decision"].to_pylist() == ["accept", "review"]


def test_a_missing_or_nan_score_is_never_accepted() -> None:
    for row in ({}, {"iou_tracked": float("nan")}, {"score_source": None}):
        decision = one(Policy(max_uncertainty=1.0), **row)
        assert (decision["decision"], decision["reasons"], decision["uncertainty"]) == ("review", ["no score"], None)


def test_given_masks_are_accepted_and_are_no_prediction() -> None:
    decision = one(Policy(max_uncertainty=0.0, audit_rate=1.0), prompted="mask", score_source=None)
    assert decision["decision"] == "accept"
    assert decision["reasons"] == ["given"]
    assert decision["uncertainty"] is None
    assert (decision["weight"], decision["audit"], decision["review_probability"]) == (1.0, False, 0.0)


@settings(deadline=None)
@given(
    prompted=st.sampled_from([None, "click", "box", "mask", "auto"]),
    absent=st.sampled_from(["review", "accept", "hold", "score"]),
    score=st.none() | st.floats(0, 1),
)
def test_untracked_rows_are_held_whatever_else_they_say(prompted: str | None, absent: Any, score: float | None) -> None:
    policy = Policy(absent=absent, max_uncertainty=1.0, audit_rate=1.0)
    decision = one(policy, visibility="untracked", prompted=prompted, iou_tracked=score)
    assert decision["decision"] == "hold"
    assert decision["weight"] == decision["review_probability"] == 0.0


@pytest.mark.parametrize(
    ("absent", "expected"), [("review", "review"), ("accept", "accept"), ("hold", "hold"), ("score", "accept")]
)
def test_the_policy_says_what_an_absent_object_means(absent: Any, expected: str) -> None:
    decision = one(Policy(absent=absent), visibility="absent", iou_tracked=0.9, temporal_iou=0.0)
    assert decision["decision"] == expected
    assert decision["reasons"] == ([] if absent == "score" else ["object absent"])


def test_a_temporal_break_and_an_area_jump_go_to_review() -> None:
    decision = one(iou_tracked=0.95, temporal_iou=0.12, area_change=-0.9)
    assert decision["decision"] == "review"
    assert decision["reasons"] == ["temporal break: IoU 0.12 < 0.30", "area change -0.90 beyond 0.7"]
    assert decision["suggested_action"] == "check_identity"


def test_a_prompted_frame_may_jump() -> None:
    assert one(iou_tracked=0.95, temporal_iou=0.0, prompted="click")["decision"] == "accept"


def test_several_reasons_keep_the_order_of_the_rules_on_their_own_row() -> None:
    rows = facts(
        {"iou_tracked": 0.9},
        {"iou_tracked": 0.5, "temporal_iou": 0.1},
        {"iou_tracked": 0.2},
        {"visibility": "untracked"},
    )
    assert decide(rows, Policy())["reasons"].to_pylist() == [
        [], ["uncertainty 0.50 > 0.25", "temporal break: IoU 0.10 < 0.30"], ["uncertainty 0.80 > 0.25"], ["untracked"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gaps", "action"),
    [
        ({"model_gap": 0.4, "prompt_gap": 0.2, "task_gap": 0.0}, "use_larger_model"),
        ({"model_gap": 0.1, "prompt_gap": 0.2, "task_gap": 0.0}, "add_click"),
        ({"task_gap": 0.3}, "pick_candidate"),
        ({"model_gap": 0.05, "task_gap": 0.02}, "add_click"),
    ],
)
def test_the_widest_gap_names_the_remedy(gaps: dict[str, float], action: str) -> None:
    assert one(iou_tracked=0.3, **gaps)["suggested_action"] == action


def test_optional_rules_work_when_set() -> None:
    policy = Policy(min_object_score=1.0, min_area_px=30, hold_above_uncertainty=0.9)
    decision = one(policy, iou_tracked=0.95, object_score=0.5)
    assert decision["reasons"] == ["object score 0.50 < 1.00", "area 20 px < 30 px"]
    assert one(policy, iou_tracked=0.05, area_px=50, object_score=3.0)["decision"] == "hold"


def test_a_row_across_a_cut_is_reviewed_however_sure_the_model_is() -> None:
    decision = one(iou_tracked=0.99, across_cut=True)
    assert (decision["decision"], decision["reasons"]) == ("review", ["across a scene cut"])
    assert (decision["suggested_action"], decision["weight"]) == ("check_identity", 0.0)
    lenient = one(Policy(across_cut="accept"), iou_tracked=0.99, across_cut=True)
    assert (lenient["decision"], lenient["reasons"]) == ("accept", [])


def test_a_cut_says_nothing_about_given_and_untracked_rows() -> None:
    assert one(prompted="mask", across_cut=True)["reasons"] == ["given"]
    untracked = one(visibility="untracked", across_cut=True)
    assert (untracked["decision"], untracked["reasons"]) == ("hold", ["untracked"])


def test_an_object_that_nobody_pointed_at_needs_a_margin_and_the_reason_says_so() -> None:
    policy = Policy(max_uncertainty=0.25, auto_margin=0.1, hold_above_uncertainty=0.5)
    decision = one(policy, iou_tracked=0.8, auto=True)
    assert decision["decision"] == "review"
    assert decision["reasons"] == ["uncertainty with 0.1 for an automatic prompt 0.30 > 0.25"]
    assert decision["uncertainty"] == pytest.approx(0.2)
    assert one(policy, iou_tracked=0.8)["decision"] == "accept"
    assert one(policy, iou_tracked=0.9, auto=True)["decision"] == "accept"
    assert one(policy, iou_tracked=0.45, auto=True)["decision"] == "hold"


def test_the_audit_draw_is_a_share_of_the_accepted_and_does_not_depend_on_the_batch() -> None:
    rows = facts(*({"iou_tracked": 0.9 if i % 2 else 0.1, "object_id": 1 + i % 7} for i in range(8000)))
    policy = Policy(audit_rate=0.2, seed=3)
    table = decide(rows, policy)
    audit = table["audit"].to_numpy(zero_copy_only=False)
    accepted = table["decision"].to_numpy(zero_copy_only=False) == "accept"
    assert not (audit & ~accepted).any()
    assert audit[accepted].mean() == pytest.approx(0.2, abs=0.03)
    assert np.array_equal(decide(rows.slice(5000), policy)["audit"].to_numpy(zero_copy_only=False), audit[5000:])
    other = decide(rows, Policy(audit_rate=0.2, seed=4))["audit"].to_numpy(zero_copy_only=False)
    assert not np.array_equal(other, audit)
    assert sorted(set(table["review_probability"].to_pylist())) == pytest.approx([0.2, 1.0])


def test_columns_are_the_schema_and_an_empty_batch_is_no_trouble() -> None:
    assert decide(facts({"iou_tracked": 0.9}).slice(0, 0), Policy()).schema.equals(DECISION)
    assert decide(pa.Table.from_batches([facts({"iou_tracked": 0.9})] * 2), Policy()).num_rows == 2


def test_a_missing_column_is_named() -> None:
    with pytest.raises(StorageError, match="temporal_iou"):
        decide(facts({"iou_tracked": 0.9}).drop_columns(["temporal_iou"]), Policy())


def test_policies_are_told_apart_by_content() -> None:
    assert Policy().policy_id == Policy(name="default").policy_id
    assert len({Policy().policy_id, Policy(seed=1).policy_id, Policy(certificate="abc").policy_id}) == 3
    with pytest.raises(ValidationError):
        Policy(max_uncertainty=1.5)
    with pytest.raises(ValidationError):
        Policy(max_uncertainti=0.5)  # type: ignore[call-arg]
