"""From facts to decisions: accept, review or hold, each with its reasons, by a policy that is data.

A decision needs nothing but columns of the facts, so a new threshold is a Parquet query and never a model run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import reason_texts
from pipeline.columns import Floats, Mask, Rows, codes, column, floats
from pipeline.policy import Policy
from pipeline.records import DECISION, GAP_HEADS
from pipeline.rules import GAP_ACTIONS, Examined, Rule

CHOICES = ("accept", "review", "hold")


class Sides:
    """What a policy does with each row, without the reasons.

    Args:    facts, policy, source, model: see `pipeline.rules.ruled`.

    Attributes:
        choice_n: (n,) int8, 0 accept, 1 review, 2 hold.
        candidate_n: (n,) bool, accepted predictions, of which the audit draws.
        audit_n: (n,) bool, those that a person sees all the same.
    """

    def __init__(self, facts: Rows, policy: Policy, source: str = "", model: str | None = None) -> None:
        self.examined = Examined(facts, policy, source, model)
        self.rules = list(self.examined.rules())
        self.choice_n = np.zeros(facts.num_rows, np.int8)
        for rule in self.rules:
            to = np.int8(CHOICES.index(rule.to))
            np.maximum(self.choice_n, to, out=self.choice_n, where=rule.where_n)
        self.candidate_n: Mask = (self.choice_n == 0) & self.examined.predicted_n
        self.audit_n: Mask = np.zeros(facts.num_rows, dtype=bool)
        if policy.audit_rate > 0:
            self.audit_n = self.candidate_n & (_draw(facts, policy.seed) < policy.audit_rate)


def decide(
    facts: Rows,
    policy: Policy,
    *,
    source: str = "",
    model: str | None = None,
    unseen: Callable[[Rows, Mask], Mask] | None = None,
    calibrated: Callable[[Floats], Floats] | None = None,
) -> pa.RecordBatch:
    """Decide every row of a batch of facts.

    Rules, in order: an untracked row is held; a full-mask prompt is given, so accepted; an absent object, a missing
    score, a high uncertainty, a wide gap, a low object score, a temporal break, a jump of the area, a tiny or huge
    mask, a scene cut since the nearest prompt or the object's label send the row to review. Temporal rules leave out
    prompted rows (a prompt may well move the mask) and absent ones.

    Args:    facts: rows with `FACT_COLUMNS` and every column that `score_source` names.
             policy: the thresholds.
             source, model: the drop under which readers find the video, and the model that made the facts, for groups.
             unseen: from the rows and those to review to those of them that the review budget has no room for.
             calibrated: from predicted to calibrated IoU; None leaves that column null.
    Returns: the columns of `DECISION`, one row per row of facts. Uncertainty is 1 - score, null for given, untracked
             and unscored rows. Weight is the calibrated IoU of accepted rows, else 1 - uncertainty (1 where given or
             unscored), and 0 of others. review_probability is 1 for review, the audit rate for accepted predictions,
             else 0.
    Raises:  StorageError if a column is missing.
    """
    rows = facts.num_rows
    sides = Sides(facts, policy, source, model)
    uncertainty_n, choice_n = sides.examined.uncertainty_n, sides.choice_n
    scored_n = np.isfinite(uncertainty_n)
    reasons = _Reasons(rows)
    reasons.suggest_by_gap(facts, sides.examined.high_n, policy)
    for rule in sides.rules:
        reasons.add(rule)
    if unseen is not None and policy.review_stretches_per_video is not None:
        held_n = unseen(facts, choice_n == 1)
        text = f"held: the review budget of {policy.review_stretches_per_video} stretches is spent"
        reasons.add(Rule(held_n, "hold", reason_texts.always(text)))
        choice_n[held_n] = 2
    reasons.add(Rule(sides.audit_n, "accept", reason_texts.always("audit"), "check_mask"))
    iou_n = 1.0 - uncertainty_n
    calibrated_n = np.full(rows, np.nan) if calibrated is None else calibrated(iou_n)
    worth_n = np.where(np.isnan(calibrated_n), np.where(scored_n, iou_n, 1.0), calibrated_n)
    probability_n = np.where(choice_n == 1, 1.0, np.where(sides.candidate_n, policy.audit_rate, 0.0))
    return pa.RecordBatch.from_arrays(
        [
            pa.array(calibrated_n.astype(np.float32), mask=np.isnan(calibrated_n)),
            pa.array(uncertainty_n.astype(np.float32), mask=~scored_n),
            pa.array(CHOICES).take(pa.array(choice_n)),
            reasons.column(),
            reasons.actions(),
            pa.array(sides.audit_n),
            pa.array(probability_n.astype(np.float32)),
            pa.array(np.where(choice_n == 0, worth_n, 0.0).astype(np.float32)),
            pa.repeat(policy.policy_id, rows),
        ],
        schema=DECISION,
    )


class _Reasons:
    """Collects what rules say and gives it back as columns, in the order of the rules."""

    def __init__(self, rows: int) -> None:
        self._hits: list[npt.NDArray[np.intp]] = [np.zeros(0, np.intp)]
        self._texts: list[pa.Array] = [pa.array([], pa.string())]
        self._actions: list[str] = []
        self._action_n = np.full(rows, -1, np.int8)

    def add(self, rule: Rule) -> None:
        """Note the reasons of a rule on its rows; the first action of a row stays."""
        hits = np.flatnonzero(rule.where_n)
        if not len(hits):
            return
        self._hits.append(hits)
        self._texts.append(rule.texts(hits))
        if rule.action is not None:
            self._suggest(hits[self._action_n[hits] < 0], rule.action)

    def suggest_by_gap(self, facts: Rows, where_n: Mask, policy: Policy) -> None:
        """Let the widest USAM gap name the remedy, where the heads were run and one is wide enough."""
        gaps = np.stack([np.nan_to_num(floats(facts, name), nan=-np.inf) for name in GAP_HEADS])
        widest_n = gaps.argmax(axis=0)
        for number, name in enumerate(GAP_HEADS):
            wide_n = where_n & (widest_n == number) & (gaps[number] > policy.min_gap)
            self._suggest(np.flatnonzero(wide_n), GAP_ACTIONS[name])

    def _suggest(self, hits: npt.NDArray[np.intp], action: str) -> None:
        if action not in self._actions:
            self._actions.append(action)
        self._action_n[hits] = self._actions.index(action)

    def actions(self) -> pa.Array:
        """One suggested action per row, or null."""
        return pa.array(self._actions, pa.string()).take(pa.array(self._action_n, mask=self._action_n < 0))

    def column(self) -> pa.ListArray:
        """One list of reasons per row."""
        hits = np.concatenate(self._hits)
        order = np.argsort(hits, kind="stable")
        offsets = np.r_[0, np.cumsum(np.bincount(hits, minlength=len(self._action_n)))].astype(np.int32)
        texts = pa.concat_arrays(self._texts).take(pa.array(order))
        return pa.ListArray.from_arrays(pa.array(offsets), texts, type=DECISION.field("reasons").type)


def _draw(facts: Rows, seed: int) -> Floats:
    """A uniform number in [0, 1) per row that depends on seed, video, frame and object alone (SplitMix64)."""
    video_n, videos = codes(facts, "video_id")
    digests = [hashlib.sha256(f"{seed}:{video}".encode()).digest()[:8] for video in videos]
    state = np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint64)[video_n]
    with np.errstate(over="ignore"):
        for name in ("frame_index", "object_id"):
            state = state + column(facts, name).to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64)
            state = state + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    draw: Floats = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draw
