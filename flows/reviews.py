"""The flow that tells people what waits for them: stretches to look at, by drop and reason, and where they lie."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import get_run_logger

from flows import artifacts, events
from flows.open_flow import open_flow
from pipeline.settings import load_settings, refuse_secrets
from pipeline.storage.manifest import partition
from pipeline.storage.objects import ObjectStore
from pipeline.waiting import Waiting, waiting_for_people

NOTE = "Corrections are not read yet: what was looked at stays in the list until the video is labelled anew."


@open_flow(name="reviews", flow_run_name="reviews {out}", validate_parameters=False)
def reviews(
    out: str, *, drop: str | None = None, config: str | None = None, overrides: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Count what waits for people, and tell it: an artifact with links, and `frames.need_review` for each drop.

    Args:
        out: folder or s3:// prefix of the labels.
        drop: only this one.
        config, overrides: how the store is reached.
    Returns: per drop the fields of `pipeline.waiting.Waiting`, and where its list lies.
    """
    refuse_secrets(overrides)
    settings = load_settings(config, overrides)
    store = ObjectStore(out, settings.storage)
    found = waiting_for_people(store, drop)
    summary = {one.drop: {**_counts(one), "review_uri": store.uri(f"review/{partition(one.drop)}")} for one in found}
    artifacts.text(_page(out, summary), "reviews")
    for name, counts in summary.items():
        if counts["stretches"]:
            events.tell_waiting(name, counts, out)
    total = sum(one.stretches for one in found)
    get_run_logger().info("%d stretches in %d drops wait for people", total, sum(one.stretches > 0 for one in found))
    return summary


def _counts(waiting: Waiting) -> dict[str, Any]:
    fields = asdict(waiting)
    del fields["drop"]
    return {**fields, "reasons": dict(waiting.reasons.most_common())}


def _page(out: str, summary: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"# What waits for people in `{out}`", "",
        "| drop | videos | stretches | audits | rows | why | list |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for drop, counts in summary.items():
        why = ", ".join(f"{reason}: {count}" for reason, count in counts["reasons"].items())
        videos = f"{counts['videos']} of {counts['labelled']}"
        cells = (drop, videos, counts["stretches"], counts["audits"], counts["rows"], why, f"`{counts['review_uri']}`")
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", NOTE])
