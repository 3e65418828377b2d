"""From facts to decisions: accept, review or hold, each with its reasons, by a policy that is data.

A decision needs nothing but columns of the facts, so a new threshold is a Parquet query and never a model run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import StorageError
from pipeline.records import DECISION, GAP_HEADS

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FACT_COLUMNS = (
    "video_id",
    "frame_index",
    "object_id",
    "visibility",
    "prompted",
    "auto",
    "across_cut",
    "object_score",
    "area_px",
    "temporal_iou",
    "area_change",
    "score_source",
    *GAP_HEADS,
)
"""The facts that a decision reads, besides the columns that `score_source` names."""

GAP_ACTIONS = {"model_gap": "use_larger_model", "prompt_gap": "add_click", "task_gap": "pick_candidate"}


class Policy(BaseModel):
    """Which rows are trusted. The defaults are a guess and say so: `certificate` is None, "uncertified".

    Args:
        name: for people; it is part of `policy_id`.
        max_uncertainty: highest uncertainty that is accepted, 0..1.
        hold_above_uncertainty: higher than this is held back, not worth a person's time; None holds nothing.
        absent: what happens to a row whose object the model calls absent. `score`: treat it like a visible one.
        across_cut: what happens to a row that a scene cut parts from every prompted frame of its object.
        auto_margin: added to the uncertainty of automatically found objects before it meets a threshold, 0..1.
        min_object_score: lowest object logit of a visible row that is accepted; None leaves it out.
        min_temporal_iou: lowest IoU with the row before; lower is a temporal break. None leaves it out.
        max_area_change: highest |relative change of area| against the row before, 0..1; None leaves it out.
        min_area_px: smallest visible mask that is accepted, pixels.
        min_gap: a USAM gap above this names the suggested action.
        audit_rate: share of the accepted rows that a person sees all the same, drawn by `seed`.
        seed: of the audit draw.
        certificate: hash of the certificate behind the thresholds; None is uncertified.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "default"
    max_uncertainty: float = Field(default=0.25, ge=0, le=1, allow_inf_nan=False)
    hold_above_uncertainty: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    absent: Literal["review", "accept", "hold", "score"] = "review"
    across_cut: Literal["review", "accept"] = "review"
    auto_margin: float = Field(default=0.05, ge=0, le=1, allow_inf_nan=False)
    min_object_score: float | None = Field(default=None, allow_inf_nan=False)
    min_temporal_iou: float | None = Field(default=0.3, ge=0, le=1, allow_inf_nan=False)
    max_area_change: float | None = Field(default=0.7, ge=0, le=1, allow_inf_nan=False)
    min_area_px: int = Field(default=0, ge=0)
    min_gap: float = Field(default=0.1, ge=0, le=1, allow_inf_nan=False)
    audit_rate: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)
    certificate: str | None = None

    @property
    def policy_id(self) -> str:
        """Hash of everything that the policy says; equal policies have equal ids."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def certified(self) -> bool:
        """Whether evidence stands behind the thresholds."""
        return self.certificate is not None


class _Reasons:
    """Collects (row, text, action) and gives them back as columns, in the order of the rules."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._hits: list[npt.NDArray[np.intp]] = []
        self._texts: list[str] = []
        self.action = np.full(rows, None, dtype=object)

    def add(self, where: Mask, text: str | Sequence[str], action: str | None = None) -> None:
        """Note a reason on rows; `text` is one for all, or one per hit. The first action of a row stays."""
        hits = np.flatnonzero(where)
        self._hits.append(hits)
        self._texts.extend([text] * len(hits) if isinstance(text, str) else text)
        if action is not None:
            free = hits[[self.action[hit] is None for hit in hits]]
            self.action[free] = action

    def column(self) -> pa.ListArray:
        """One list of reasons per row."""
        hits = np.concatenate([*self._hits, np.zeros(0, np.intp)])
        order = np.argsort(hits, kind="stable")
        offsets = np.r_[0, np.cumsum(np.bincount(hits, minlength=self.rows))].astype(np.int32)
        texts = pa.array(self._texts, pa.string()).take(pa.array(order))
        return pa.ListArray.from_arrays(pa.array(offsets), texts, type=DECISION.field("reasons").type)


def decide(facts: pa.Table | pa.RecordBatch, policy: Policy) -> pa.RecordBatch:
    """Decide every row of a batch of facts.

    Rules, in order: an untracked row is held; a full-mask prompt is given, so accepted; an absent object, a missing
    score, a high uncertainty, a low object score, a temporal break, a jump of the area, a tiny mask or a scene cut
    since the nearest prompt send the row to review. Temporal rules leave out prompted rows (a prompt may well move the
    mask) and absent ones.

    Args:    facts: rows with `FACT_COLUMNS` and every column that `score_source` names.
             policy: the thresholds.
    Returns: the columns of `DECISION`, one row per row of facts. Uncertainty is 1 - score, null for given, untracked
             and unscored rows. Weight is 1 - uncertainty of accepted rows (1 where given or unscored), else 0.
             review_probability is 1 for review, the audit rate for accepted predictions, else 0.
    Raises:  StorageError if a column is missing.
    """
    score, unscored = _score(facts)
    uncertainty = np.clip(1.0 - score, 0.0, 1.0).astype(np.float32).astype(np.float64)
    rows = len(score)
    visibility = _strings(facts, "visibility")
    prompted = _strings(facts, "prompted")
    untracked = visibility == "untracked"
    given = (prompted == "mask") & ~untracked
    absent = (visibility == "absent") & ~given
    predicted = ~untracked & ~given
    uncertainty[~predicted] = np.nan
    scored = predicted & ~absent if policy.absent != "score" else predicted

    reasons = _Reasons(rows)
    reasons.add(untracked, "untracked", "add_prompt")
    reasons.add(given, "given")
    review = np.zeros(rows, dtype=bool)
    if policy.absent != "score":
        reasons.add(absent, "object absent", None if policy.absent == "accept" else "confirm_absent")
        review |= absent & (policy.absent == "review")

    def rule(where: Mask, text: str | Sequence[str], action: str | None) -> None:
        reasons.add(where, text, action)
        np.logical_or(review, where, out=review)

    rule(scored & unscored, "no score", "add_click")
    margin = np.where(_flags(facts, "auto"), policy.auto_margin, 0.0)
    compared = uncertainty + margin
    high = scored & (compared > policy.max_uncertainty)
    _suggest_by_gap(facts, high, policy, reasons)
    numbers = zip(compared[high], margin[high], strict=True)
    rule(high, [_versus(_uncertainty(extra), x, ">", policy.max_uncertainty) for x, extra in numbers], "add_click")
    seen = predicted & (visibility == "visible")
    if policy.min_object_score is not None:
        logit = _floats(facts, "object_score")
        low = seen & (logit < policy.min_object_score)
        rule(low, [_versus("object score", x, "<", policy.min_object_score) for x in logit[low]], "confirm_absent")
    moving = seen & (prompted == "")
    if policy.min_temporal_iou is not None:
        iou = _floats(facts, "temporal_iou")
        broken = moving & (iou < policy.min_temporal_iou)
        rule(
            broken,
            [_versus("temporal break: IoU", x, "<", policy.min_temporal_iou) for x in iou[broken]],
            "check_identity",
        )
    if policy.max_area_change is not None:
        change = _floats(facts, "area_change")
        jump = moving & (np.abs(change) > policy.max_area_change)
        rule(jump, [f"area change {x:+.2f} beyond {policy.max_area_change:g}" for x in change[jump]], "check_identity")
    if policy.min_area_px:
        area = _floats(facts, "area_px")
        tiny = seen & (area < policy.min_area_px)
        rule(tiny, [f"area {int(x)} px < {policy.min_area_px} px" for x in area[tiny]], "add_box")
    if policy.across_cut == "review":
        rule(predicted & _flags(facts, "across_cut"), "across a scene cut", "check_identity")

    hold = untracked | (absent & (policy.absent == "hold"))
    if policy.hold_above_uncertainty is not None:
        hopeless = scored & (compared > policy.hold_above_uncertainty)
        reasons.add(hopeless, f"held: uncertainty above {policy.hold_above_uncertainty:g}")
        hold |= hopeless
    accept = ~hold & ~review
    candidates = accept & predicted
    audit = candidates & (_draw(facts, policy.seed) < policy.audit_rate)
    reasons.add(audit, "audit", "check_mask")
    weight = np.where(accept, 1.0 - np.nan_to_num(uncertainty, nan=0.0), 0.0)
    review_probability = np.where(review & ~hold, 1.0, np.where(candidates, policy.audit_rate, 0.0))
    return pa.RecordBatch.from_arrays(
        [
            pa.nulls(rows, pa.float32()),  # a score is no calibrated IoU until a calibration maps it
            pa.array(uncertainty.astype(np.float32), mask=np.isnan(uncertainty)),
            pa.array(np.where(hold, "hold", np.where(review, "review", "accept")), pa.string()),
            reasons.column(),
            pa.array(reasons.action, pa.string()),
            pa.array(audit),
            pa.array(review_probability.astype(np.float32)),
            pa.array(weight.astype(np.float32)),
            pa.array([policy.policy_id] * rows, pa.string()),
        ],
        schema=DECISION,
    )


def _uncertainty(margin: float) -> str:
    """How a reason names the number that was compared."""
    return f"uncertainty with {margin:g} for an automatic prompt" if margin else "uncertainty"


def _versus(what: str, value: float, sign: str, limit: float) -> str:
    """`uncertainty 0.31 > 0.24`, with as many decimals as it takes for the two numbers to differ."""
    digits = next((count for count in range(2, 9) if round(value, count) != round(limit, count)), 9)
    return f"{what} {value:.{digits}f} {sign} {limit:.{digits}f}"


def _column(facts: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    if name not in facts.schema.names:
        raise StorageError(f"facts with a column {name!r}", f"columns {facts.schema.names}", "pass rows of masks/")
    column = facts.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _floats(facts: pa.Table | pa.RecordBatch, name: str) -> Floats:
    """A numeric column with NaN for null."""
    values: Floats = _column(facts, name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _strings(facts: pa.Table | pa.RecordBatch, name: str) -> npt.NDArray[np.object_]:
    """A string column with "" for null."""
    values: npt.NDArray[np.object_] = _column(facts, name).fill_null("").to_numpy(zero_copy_only=False).astype(object)
    return values


def _flags(facts: pa.Table | pa.RecordBatch, name: str) -> Mask:
    """A boolean column with false for null."""
    values: Mask = _column(facts, name).fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    return values


def _score(facts: pa.Table | pa.RecordBatch) -> tuple[Floats, Mask]:
    """The predicted IoU of each row, from the column that its `score_source` names; and where there is none."""
    source = _strings(facts, "score_source")
    score = np.full(len(source), np.nan)
    for name in sorted(set(source) - {""}):
        values = _floats(facts, name)
        if name == "object_score":  # a logit of presence: an absent row is right with the probability of absence
            values = 1 / (1 + np.exp(np.clip(values, -60, 60)))
        score = np.where(source == name, values, score)
    return score, ~np.isfinite(score)


def _suggest_by_gap(facts: pa.Table | pa.RecordBatch, where: Mask, policy: Policy, reasons: _Reasons) -> None:
    """Let the widest USAM gap name the remedy, where the heads were run and one is wide enough."""
    gaps = np.stack([np.nan_to_num(_floats(facts, name), nan=-np.inf) for name in GAP_HEADS])
    widest = gaps.argmax(axis=0)
    for number, name in enumerate(GAP_HEADS):
        hits = where & (widest == number) & (gaps[number] > policy.min_gap)
        reasons.action[hits] = GAP_ACTIONS[name]


def _draw(facts: pa.Table | pa.RecordBatch, seed: int) -> Floats:
    """A uniform number in [0, 1) per row that depends on seed, video, frame and object alone (SplitMix64)."""
    videos = _strings(facts, "video_id")
    keys = {
        video: int.from_bytes(hashlib.sha256(f"{seed}:{video}".encode()).digest()[:8], "big") for video in set(videos)
    }
    state = np.array([keys[video] for video in videos], dtype=np.uint64)
    with np.errstate(over="ignore"):
        for name in ("frame_index", "object_id"):
            state = state + _column(facts, name).to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64)
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    draw: Floats = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draw
