"""A plan as people read it: how many videos of each kind, the first names, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.names import shown
from pipeline.plan import BUCKETS, Plan

FIRST = 5
WHAT_TO_DO = {
    "wanted": "labelled next",
    "live": "under way elsewhere",
    "settling": "perhaps still being uploaded; the next plan looks again",
    "needs_prompts": "put STEM.prompts.json beside each, or set prompts.on_missing: auto",
    "quarantined": "`masksieve status` says why, `masksieve retry` tries again",
    "forgotten": "take the files out of the drop: they were forgotten on request",
    "refused": "rename them",
    "done": "nothing",
    "repairs": "labels are derived again from what is committed",
    "ahead_of_clock": "see to the clocks; they are taken as uploaded",
}


@dataclass(frozen=True)
class PlanRow:
    """One kind of video in a plan.

    Args:
        kind: in words; count: how many.
        first: the first names, relative to the drop.
        what_to_do: with them, and by whom.
    """

    kind: str
    count: int
    first: tuple[str, ...]
    what_to_do: str


def plan_rows(plan: Plan) -> Iterator[PlanRow]:
    """Each kind of which there is one at least."""
    names: dict[str, list[str]] = {bucket: [item.video for item in plan.buckets[bucket][:FIRST]] for bucket in BUCKETS}
    names |= {"repairs": list(plan.repairs[:FIRST]), "ahead_of_clock": list(plan.ahead_of_clock[:FIRST])}
    for kind, first in names.items():
        if first:
            relative = tuple(shown(name.removeprefix(f"{plan.root}/")) for name in first)
            yield PlanRow(kind.replace("_", " "), plan.counts[kind], relative, WHAT_TO_DO[kind])
