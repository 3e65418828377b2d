"""Rules over columns say of every row what a plain reading of the policy says of it, one row after another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policy import Policy
from pipeline.records import MASKS
from pipeline.route import decide
from pipeline.rules import FACT_COLUMNS, ruled

BASE: dict[str, Any] = {
    "video_id": "v", "video_uri": "v.mp4", "pts_seconds": 0.0, "object_id": 1, "height": 10, "width": 10,
    "direction": "forward", "auto": False, "shot_index": 0, "across_cut": False, "visibility": "visible",
    "area_px": 20, "score_source": "iou_tracked",
}  # fmt: skip


def facts(*rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{**BASE, "frame_index": i, **row} for i, row in enumerate(rows)], schema=MASKS)


def share(low: float = 0.0, high: float = 1.0) -> st.SearchStrategy[float]:
    """Values as thresholds have them, so that rows meet them exactly now and then."""
    return st.integers(round(low * 10), round(high * 10)).map(lambda tenth: tenth / 10)


maybe = st.one_of(st.none(), share(), st.just(math.nan))
rows = st.fixed_dictionaries(
    {
        "visibility": st.sampled_from(["visible"] * 4 + ["absent", "untracked"]),
        "prompted": st.sampled_from([None] * 4 + ["mask", "click", "auto", "answer", "reject"]),
        "label": st.sampled_from(["cup", "dog", None]),
        "auto": st.booleans(),
        "across_cut": st.booleans(),
        "area_px": st.integers(0, 100),
        "iou_tracked": maybe,
        "object_score": st.none() | st.integers(-6, 6).map(float),
        "score_source": st.sampled_from(["iou_tracked"] * 3 + ["object_score", None]),
        "temporal_iou": maybe,
        "area_change": st.none() | share(-1, 1),
        "model_gap": maybe,
        "prompt_gap": maybe,
        "task_gap": maybe,
    }
)
groups = st.fixed_dictionaries(
    {
        "source": st.sampled_from([None, "day", "night"]),
        "label": st.sampled_from([None, "cup", "dog"]),
        "model": st.sampled_from([None, "nano", "tiny"]),
        "max_uncertainty": st.none() | share(),
    }
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    limit = st.none() | share()
    said = {
        name: draw(limit)
        for name in ("min_temporal_iou", "max_area_change", "max_model_gap", "max_prompt_gap", "max_task_gap")
    }
    found: list[dict[str, Any]] = []
    for group in draw(st.lists(groups, max_size=3)):  # one that an earlier one hides would be refused
        names = ("source", "label", "model")
        if not any(all(one[name] in (None, group[name]) for name in names) for one in found):
            found.append(group)
    return Policy(
        **said, groups=found, max_uncertainty=draw(share()), auto_margin=draw(share(0, 0.3)),
        absent=draw(st.sampled_from(["review", "accept", "hold", "score"])),
        across_cut=draw(st.sampled_from(["review", "accept"])),
        min_object_score=draw(st.none() | st.integers(-3, 3).map(float)), min_area_px=draw(st.integers(0, 50)),
        max_area_share=draw(st.none() | share(0.1)), audit_rate=draw(share()),
        hold_above_uncertainty=draw(st.sampled_from([None, 1.0])),
        labels=draw(st.dictionaries(st.sampled_from(["cup", "dog"]), st.sampled_from(["review", "hold"]), max_size=2)),
    )  # fmt: skip


def plain_reading(row: dict[str, Any], policy: Policy) -> str:
    """What the documentation of the policy says of one row."""

    def number(name: str) -> float:
        value = row.get(name)
        return math.nan if value is None else float(np.float32(value))

    if row["visibility"] == "untracked":
        return "hold"
    if row["prompted"] in ("mask", "answer"):
        return "accept"
    to, absent = {"accept"}, row["visibility"] == "absent"
    group = next(
        (
            one
            for one in policy.groups
            if one.source in (None, "day") and one.label in (None, row["label"]) and one.model in (None, "nano")
        ),
        None,
    )
    limit = policy.max_uncertainty if group is None else group.max_uncertainty
    if limit is None:
        to.add("review")
    if absent and policy.absent != "score":
        to.add(policy.absent)
    else:
        score = math.nan if row["score_source"] is None else number(row["score_source"])
        if row["score_source"] == "object_score":
            score = 1 / (1 + math.exp(score))
        compared = float(np.float32(1 - score)) + (policy.auto_margin if row["auto"] else 0.0)
        if math.isnan(compared) or compared > (1 if limit is None else limit):
            to.add("review")
        if policy.hold_above_uncertainty is not None and compared > policy.hold_above_uncertainty:
            to.add("hold")
        for name in ("model_gap", "prompt_gap", "task_gap"):
            most = getattr(policy, f"max_{name}")
            if most is not None and not number(name) <= most:
                to.add("review")
    if not absent:
        if policy.min_object_score is not None and number("object_score") < policy.min_object_score:
            to.add("review")
        if row["prompted"] is None:
            if policy.min_temporal_iou is not None and number("temporal_iou") < policy.min_temporal_iou:
                to.add("review")
            if policy.max_area_change is not None and abs(number("area_change")) > policy.max_area_change:
                to.add("review")
        if row["area_px"] < policy.min_area_px:
            to.add("review")
        if policy.max_area_share is not None and row["area_px"] / 100 > policy.max_area_share:
            to.add("review")
    if policy.across_cut == "review" and row["across_cut"]:
        to.add("review")
    if row["label"] in policy.labels:
        to.add(policy.labels[row["label"]])
    return next(side for side in ("hold", "review", "accept") if side in to)


@settings(deadline=None, max_examples=150)
@given(table=st.lists(rows, min_size=1, max_size=20), policy=policies())
def test_columns_say_what_a_plain_reading_says_of_each_row(table: list[dict[str, Any]], policy: Policy) -> None:
    decided = decide(facts(*table), policy, source="day", model="nano")
    assert decided["decision"].to_pylist() == [plain_reading(row, policy) for row in table]
    for row in decided.to_pylist():
        assert row["decision"] == "accept" or row["reasons"]
        assert (row["weight"] > 0) <= (row["decision"] == "accept")
        assert row["audit"] <= (row["decision"] == "accept")


@settings(deadline=None, max_examples=150)
@given(table=st.lists(rows, min_size=1, max_size=20), policy=policies(), limit=share())
def test_a_threshold_on_what_the_rules_let_pass_is_the_decision(
    table: list[dict[str, Any]], policy: Policy, limit: float
) -> None:
    """So a sweep over thresholds needs the rules once."""
    batch = facts(*table)
    found = ruled(batch, policy, source="day", model="nano")
    accepted = decide(batch, policy, source="day", model="nano")["decision"].to_numpy(zero_copy_only=False) == "accept"
    under, ever = found.compared_n <= found.threshold_n, found.threshold_n > -np.inf
    assert (accepted & found.predicted_n == (found.always_n | (found.passes_n & under)) & ever).all()
    assert not (found.passes_n & found.always_n).any()
    assert not ((found.passes_n | found.always_n) & ~found.predicted_n).any()
    assert np.isnan(found.compared_n[~found.predicted_n]).all()
    other = policy.model_copy(update={"max_uncertainty": limit, "groups": (), "hold_above_uncertainty": None})
    again = decide(batch, other, source="day", model="nano")["decision"].to_numpy(zero_copy_only=False) == "accept"
    assert (again & found.predicted_n == found.always_n | (found.passes_n & (found.compared_n <= limit))).all()


@pytest.mark.parametrize("kind", ["dictionary", "table of two", "empty"])
def test_columns_may_come_as_readers_give_them(kind: str) -> None:
    table = [
        {"iou_tracked": 0.9, "label": "cup"}, {"iou_tracked": 0.5, "label": None}, {"visibility": "untracked"},
        {"prompted": "mask", "label": "dog"}, {"visibility": "absent", "score_source": "object_score"},
    ]  # fmt: skip
    policy = Policy(groups=[{"label": "cup", "max_uncertainty": 0.05}], labels={"dog": "hold"}, absent="accept")
    batch: Any = facts(*table)
    expected = ruled(batch, policy, source="", model=None)
    if kind == "dictionary":
        for name in ("label", "visibility", "prompted", "score_source", "video_id"):
            column = batch.column(name).dictionary_encode()
            batch = batch.set_column(batch.schema.get_field_index(name), name, column)
        assert decide(batch, policy).equals(decide(facts(*table), policy))
    elif kind == "table of two":
        batch = pa.Table.from_batches([batch.slice(0, 2), batch.slice(2)])
    else:
        batch = batch.slice(0, 0)
    found = ruled(batch.select([*FACT_COLUMNS, "iou_tracked"]), policy, source="", model=None)
    for name in ("compared_n", "predicted_n", "passes_n", "always_n", "group_n", "threshold_n"):
        told = getattr(expected, name)
        assert np.array_equal(
            getattr(found, name), told[:0] if kind == "empty" else told, equal_nan=told.dtype.kind == "f"
        )


def test_the_first_group_that_a_row_belongs_to_counts() -> None:
    policy = Policy(
        max_uncertainty=0.1,
        groups=[
            {"source": "night", "max_uncertainty": None},
            {"label": "cup", "model": "nano", "max_uncertainty": 0.3},
            {"label": "cup", "max_uncertainty": 0.2},
        ],
    )
    batch = facts(*({"iou_tracked": 0.75, "label": label} for label in ("cup", "dog", None)))
    for source, model, numbers in (
        ("day", "nano", [1, -1, -1]), ("day", "tiny", [2, -1, -1]), ("day", None, [2, -1, -1]),
        ("night", "nano", [0, 0, 0]),
    ):  # fmt: skip
        assert ruled(batch, policy, source=source, model=model).group_n.tolist() == numbers
    said = decide(batch, policy, source="day", model="nano").to_pylist()
    assert [row["reasons"] for row in said] == [[], ["uncertainty 0.25 > 0.10"], ["uncertainty 0.25 > 0.10"]]
    said = decide(batch, policy, source="night", model="nano").to_pylist()
    assert {(row["decision"], *row["reasons"]) for row in said} == {("review", "never accepted: source night")}


@pytest.mark.parametrize(
    ("changes", "row", "reason", "action"),
    [
        ({"max_model_gap": 0.1}, {"model_gap": 0.3}, "model gap 0.30 > 0.10", "use_larger_model"),
        ({"max_prompt_gap": 0.1}, {"prompt_gap": 0.3}, "prompt gap 0.30 > 0.10", "add_click"),
        ({"max_task_gap": 0.1}, {"task_gap": 0.3}, "task gap 0.30 > 0.10", "pick_candidate"),
        ({"max_model_gap": 0.1}, {}, "no model gap", "use_larger_model"),
        ({"max_area_share": 0.3}, {"area_px": 41}, "area share 0.41 > 0.30", "add_box"),
        ({"labels": {"cup": "review"}}, {"label": "cup"}, "label cup", "check_mask"),
        ({"labels": {"cup": "hold"}}, {"label": "cup"}, "held: label cup", "check_mask"),
    ],
)
def test_a_rule_tells_its_numbers_and_what_to_do(
    changes: dict[str, Any], row: dict[str, Any], reason: str, action: str
) -> None:
    sure = {"iou_tracked": 0.99, **row}
    assert decide(facts(sure), Policy()).to_pylist()[0]["decision"] == "accept"
    (said,) = decide(facts(sure), Policy(**changes)).to_pylist()
    assert (said["decision"], said["weight"]) == ("hold" if reason.startswith("held") else "review", 0.0)
    assert (said["reasons"], said["suggested_action"]) == ([reason], action)


@settings(deadline=None)
@given(
    values=st.lists(
        st.floats(0, 1, width=32) | st.tuples(share(0.1, 0.9), st.floats(-0.01, 0.01)).map(sum), min_size=1, max_size=40
    ),
    limit=share(0, 0.9),
)
def test_texts_made_for_many_rows_are_those_of_each_row(values: list[float], limit: float) -> None:
    policy = Policy(max_uncertainty=limit)
    batch = facts(*({"iou_tracked": value} for value in values))
    for value, said in zip(values, decide(batch, policy).to_pylist(), strict=True):
        compared = float(np.float32(1 - float(np.float32(value))))
        digits = next((count for count in range(2, 9) if round(compared, count) != round(limit, count)), 9)
        text = f"uncertainty {compared:.{digits}f} > {limit:.{digits}f}"
        assert said["reasons"] == ([text] if compared > limit else [])


def test_what_a_person_answered_is_accepted_or_held_for_good_and_is_no_prediction() -> None:
    """Not even a policy that accepts nothing, or holds the label, changes it."""
    batch = facts(
        {"prompted": "answer", "label": "dog"},
        {"prompted": "answer", "visibility": "absent", "area_px": 0},
        {"prompted": "reject", "visibility": "untracked", "area_px": None},
    )
    policy = Policy(max_uncertainty=0.0, absent="hold", labels={"dog": "hold"}, audit_rate=1.0)
    said = decide(batch, policy).to_pylist()
    assert [(row["decision"], row["reasons"]) for row in said] == [
        ("accept", ["reviewed"]), ("accept", ["reviewed"]), ("hold", ["rejected by a reviewer"])
    ]  # fmt: skip
    assert not any(row["audit"] or row["uncertainty"] is not None for row in said)
    assert not ruled(batch, policy, source="", model=None).predicted_n.any()
