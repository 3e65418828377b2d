"""The rules of a policy over whole columns of facts: which rows each stops, which threshold the others have to meet.

Nothing here walks over rows in Python: ten million of them take seconds. `pipeline.route` makes decisions of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipeline import reason_texts
from pipeline.columns import Floats, Mask, Rows, codes, column, equals, flags, floats, given, score
from pipeline.policy import Policy
from pipeline.records import GAP_HEADS

FACT_COLUMNS = (
    "video_id",
    "frame_index",
    "object_id",
    "label",
    "height",
    "width",
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
"""What a wide gap says that there is to gain."""


@dataclass(frozen=True)
class Rule:
    """One rule, and the rows that it speaks of.

    Args:
        where_n: (n,) bool.
        to: where it sends them; of several rules hold wins over review, review over accept.
        texts: the reasons of some of these rows, given by number.
        action: what to do about it.
    """

    where_n: Mask
    to: Literal["accept", "review", "hold"]
    texts: reason_texts.Texts
    action: str | None = None


@dataclass(frozen=True)
class Ruled:
    """What a policy says of rows before a threshold is chosen: accepted are `always_n | passes_n & (compared_n <= t)`.

    Where t is -inf, no row is.

    Args:
        compared_n: (n,) float64, uncertainty with the margin of automatic objects; NaN where there is no score or the
            row is no prediction.
        predicted_n: (n,) bool, the model looked and nobody gave the mask.
        passes_n: (n,) bool, a scored prediction that no rule but the threshold stops.
        always_n: (n,) bool, accepted at any threshold but -inf: absent rows under `absent: accept` that no rule stops.
        held_n: (n,) bool, a prediction that is held whatever `t`, also one above `hold_above_uncertainty`.
        group_n: (n,) int64, number of the policy's group that counts for the row; -1 for none.
        threshold_n: (n,) float64, what `compared_n` may not exceed; -inf in a group that is never accepted.
    """

    compared_n: Floats
    predicted_n: Mask
    passes_n: Mask
    always_n: Mask
    held_n: Mask
    group_n: npt.NDArray[np.int64]
    threshold_n: Floats


def ruled(facts: Rows, policy: Policy, *, source: str, model: str | None) -> Ruled:
    """Apply every rule of a policy but its thresholds.

    Args:    facts: with `FACT_COLUMNS` and every column that `score_source` names.
             source: the drop under which readers find the video, or videos.
             model: name of the model that made the facts.
    Raises:  StorageError if a column is missing.
    """
    return Examined(facts, policy, source, model).ruled()


class Examined:
    """Rows of facts and all that a policy finds in them.

    Args:
        facts, policy, source, model: see `ruled`.

    Attributes:
        uncertainty_n: (n,) float64 of float32 values, 1 - score; NaN where there is none.
        scored_n: predictions whose uncertainty has to meet the threshold: not absent ones, unless `absent: score`.
        high_n: those whose uncertainty is above it.
    """

    def __init__(self, facts: Rows, policy: Policy, source: str, model: str | None) -> None:
        self._facts, self._policy = facts, policy
        untracked_n = equals(facts, "visibility", "untracked")
        self._untracked_n = untracked_n
        self._given_n = given(facts) & ~untracked_n
        self._absent_n = equals(facts, "visibility", "absent") & ~self._given_n
        self.predicted_n = ~untracked_n & ~self._given_n
        self.scored_n = self.predicted_n if policy.absent == "score" else self.predicted_n & ~self._absent_n
        uncertainty_n = np.clip(1.0 - score(facts), 0.0, 1.0).astype(np.float32).astype(np.float64)
        uncertainty_n[~self.predicted_n] = np.nan
        self.uncertainty_n: Floats = uncertainty_n
        self._margin_n = np.where(flags(facts, "auto"), policy.auto_margin, 0.0)
        self.compared_n: Floats = uncertainty_n + self._margin_n
        self.group_n = _groups(facts, policy, source, model)
        self._limits = [group.max_uncertainty for group in policy.groups]
        limits = [-np.inf if limit is None else limit for limit in (*self._limits, policy.max_uncertainty)]
        self.threshold_n: Floats = np.array(limits)[self.group_n]
        self.high_n: Mask = self.scored_n & (self.compared_n > self.threshold_n)
        self._never_n: Mask = self.predicted_n & np.isneginf(self.threshold_n)
        if policy.absent != "accept":  # other rules stop absent rows
            self._never_n &= self.scored_n

    def ruled(self) -> Ruled:
        """What no threshold changes."""
        stopped_n, held_n = np.zeros_like(self.predicted_n), np.zeros_like(self.predicted_n)
        for rule in self.rules(thresholds=False):
            if rule.to != "accept":
                stopped_n |= rule.where_n
            if rule.to == "hold":
                held_n |= rule.where_n & self.predicted_n
        held_n |= self._hopeless_n
        passes_n, always_n = self.scored_n & ~stopped_n, self.predicted_n & ~self.scored_n & ~stopped_n
        return Ruled(self.compared_n, self.predicted_n, passes_n, always_n, held_n, self.group_n, self.threshold_n)

    @property
    def _hopeless_n(self) -> Mask:
        """Rows that are not worth a person's time."""
        limit = self._policy.hold_above_uncertainty
        return self.scored_n & (self.compared_n > (np.inf if limit is None else limit))

    def rules(self, *, thresholds: bool = True) -> Iterator[Rule]:
        """Every rule in the order in which reasons are told, with or without those about the uncertainty."""
        policy, facts, always = self._policy, self._facts, reason_texts.always
        rejected_n, reviewed_n = equals(facts, "prompted", "reject"), equals(facts, "prompted", "answer")
        yield Rule(self._untracked_n & ~rejected_n, "hold", always("untracked"), "add_prompt")
        yield Rule(self._untracked_n & rejected_n, "hold", always("rejected by a reviewer"), "add_prompt")
        yield Rule(self._given_n & ~reviewed_n, "accept", always("given"))
        yield Rule(self._given_n & reviewed_n, "accept", always("reviewed"))
        if policy.absent != "score":
            action = None if policy.absent == "accept" else "confirm_absent"
            yield Rule(self._absent_n, policy.absent, always("object absent"), action)
        yield Rule(self.scored_n & np.isnan(self.uncertainty_n), "review", always("no score"), "add_click")
        if thresholds:
            yield from self._thresholds()
        yield from self._gaps()
        yield from self._masks()
        if policy.across_cut == "review":
            across_n = self.predicted_n & flags(facts, "across_cut")
            yield Rule(across_n, "review", always("across a scene cut"), "check_identity")
        for label, to in policy.labels.items():
            text = f"{'held: ' if to == 'hold' else ''}label {label}"
            yield Rule(self.predicted_n & equals(facts, "label", label), to, always(text), "check_mask")
        if thresholds and policy.hold_above_uncertainty is not None:
            yield Rule(self._hopeless_n, "hold", always(f"held: uncertainty above {policy.hold_above_uncertainty:g}"))

    def _thresholds(self) -> Iterator[Rule]:
        """One rule for each group, and for automatic objects, as the reason names the limit and the margin."""
        stopped_n = self.high_n | self._never_n
        for number in np.unique(self.group_n[stopped_n]).tolist():
            here_n = stopped_n & (self.group_n == number)
            limit = self._policy.max_uncertainty if number < 0 else self._limits[number]
            if limit is None:
                text = reason_texts.always(f"never accepted: {self._policy.groups[number]}")
                yield Rule(here_n, "review", text, "add_click")
                continue
            margin = self._policy.auto_margin
            for automatic, what in ((False, ""), (True, f" with {margin:g} for an automatic prompt")):
                where_n = here_n & ((self._margin_n > 0) == automatic)
                text = reason_texts.versus(f"uncertainty{what}", self.compared_n, ">", limit)
                yield Rule(where_n, "review", text, "add_click")

    def _gaps(self) -> Iterator[Rule]:
        """A gap that is not known is not known to be small."""
        policy = self._policy
        limits = (policy.max_model_gap, policy.max_prompt_gap, policy.max_task_gap)
        for name, limit in zip(GAP_HEADS, limits, strict=True):
            if limit is None:
                continue
            gap_n, what = floats(self._facts, name), name.replace("_", " ")
            yield Rule(self.scored_n & np.isnan(gap_n), "review", reason_texts.always(f"no {what}"), GAP_ACTIONS[name])
            text = reason_texts.versus(what, gap_n, ">", limit)
            yield Rule(self.scored_n & (gap_n > limit), "review", text, GAP_ACTIONS[name])

    def _masks(self) -> Iterator[Rule]:
        """Presence, motion and size of masks that are seen. A prompt may well move a mask."""
        policy, facts, versus = self._policy, self._facts, reason_texts.versus
        seen_n = self.predicted_n & equals(facts, "visibility", "visible")
        if (limit := policy.min_object_score) is not None:
            logit_n = floats(facts, "object_score")
            text = versus("object score", logit_n, "<", limit)
            yield Rule(seen_n & (logit_n < limit), "review", text, "confirm_absent")
        moving_n = seen_n & ~pc.is_valid(column(facts, "prompted")).to_numpy(zero_copy_only=False)
        if (limit := policy.min_temporal_iou) is not None:
            iou_n = floats(facts, "temporal_iou")
            text = versus("temporal break: IoU", iou_n, "<", limit)
            yield Rule(moving_n & (iou_n < limit), "review", text, "check_identity")
        if (limit := policy.max_area_change) is not None:
            change_n = floats(facts, "area_change")
            text = reason_texts.beyond("area change", change_n, limit)
            yield Rule(moving_n & (np.abs(change_n) > limit), "review", text, "check_identity")
        if least := policy.min_area_px:
            area_n = floats(facts, "area_px")
            text = reason_texts.each(area_n, lambda area: f"area {int(area)} px < {least} px")
            yield Rule(seen_n & (area_n < least), "review", text, "add_box")
        if (limit := policy.max_area_share) is not None:
            share_n = floats(facts, "area_px") / (floats(facts, "height") * floats(facts, "width"))
            yield Rule(seen_n & (share_n > limit), "review", versus("area share", share_n, ">", limit), "add_box")


def _groups(facts: Rows, policy: Policy, source: str, model: str | None) -> npt.NDArray[np.int64]:
    """The number of the first group of each row, -1 for none."""
    group_n = np.full(facts.num_rows, -1, np.int64)
    near = [
        (number, group.label)
        for number, group in enumerate(policy.groups)
        if group.source in (None, source) and group.model in (None, model)
    ]
    if not near:
        return group_n
    label_n, labels = codes(facts, "label")
    group_k = [next((number for number, label in near if label in (None, one)), -1) for one in labels]
    group_n[:] = np.array(group_k, np.int64)[label_n]
    return group_n
