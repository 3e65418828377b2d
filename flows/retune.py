"""The flow that decides anew by another policy: labels and review lists of a selection, no GPU, no video read."""

from __future__ import annotations

from collections import Counter
from typing import Any

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import artifacts
from flows.open_flow import open_flow
from pipeline.errors import MasksieveError
from pipeline.retune import THREADS, begin_retune, begin_undo, carry_out
from pipeline.selection import Selection
from pipeline.settings import load_settings, refuse_secrets
from pipeline.storage.objects import ObjectStore
from pipeline.storage.secrets import masked


@open_flow(name="retune", flow_run_name="retune {out}", validate_parameters=False)
def retune(
    out: str,
    *,
    drops: list[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    labels: list[str] | None = None,
    undo: bool = False,
    config: str | None = None,
    overrides: dict[str, Any] | None = None,
    threads: int = THREADS,
) -> State[dict[str, Any]]:
    """Derive labels and review lists of committed videos again; a run that was cut short goes on where it was.

    Args:
        out: folder or s3:// prefix of the labels.
        drops: only the videos that were first seen in one of them.
        since, until: only those labelled on these days or between, see `Selection.of`.
        labels: only those that have an object with one of these labels.
        undo: go back to what was before the last retune, whatever else is said.
        config: whose policy decides; a settings file on the worker, or a shipped name.
        overrides: settings over it; no secrets.
        threads: videos at a time.
    Returns: how many were written, unchanged, fenced (a newer generation came meanwhile) and failed, the policy_id
        (None for an undo), the rows by decision, and the videos by what stands behind their thresholds; a Failed state
        if one failed.
    """
    refuse_secrets(overrides)
    settings = load_settings(config, overrides)
    store = ObjectStore(out, settings.storage)
    selection = Selection.of(drops, since, until, labels)
    begun = begin_undo(store) if undo else begin_retune(store, settings.policy, selection)
    statuses: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    evidence: Counter[str] = Counter()
    errors: dict[str, str] = {}
    bar = artifacts.Bar(len(begun.policy_ids), "videos")
    for number, (video_id, derived) in enumerate(carry_out(store, begun, settings, threads=threads), 1):
        if isinstance(derived, MasksieveError):
            statuses["failed"] += 1
            errors[video_id] = masked(str(derived))
        else:
            statuses[derived.status] += 1
            evidence[derived.evidence.text] += 1
            rows.update({name: derived.counts[name] for name in ("accept", "review", "hold")})
        bar.tell(number)
    bar.tell(len(begun.policy_ids))
    counts = {name: statuses[name] for name in ("written", "unchanged", "fenced", "failed")}
    policy_id = None if undo else settings.policy.policy_id
    summary = {**counts, "rows": dict(rows), "evidence": dict(evidence), "policy_id": policy_id}
    lines = [{"videos": name, "count": count} for name, count in counts.items()]
    lines += [{"videos": f"rows: {name}", "count": count} for name, count in sorted(rows.items())]
    lines += [{"videos": text, "count": count} for text, count in sorted(evidence.items())]
    lines += [{"videos": f"failed: {video_id}", "count": error} for video_id, error in list(errors.items())[:100]]
    by = "what was before" if policy_id is None else f"policy {settings.policy.name} ({policy_id[:12]})"
    artifacts.table(lines, "retune", f"`{out}` by {by}")
    message = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing is committed"
    get_run_logger().info("%s by %s: %s", masked(out), by, message)
    if errors:
        return Failed(message=f"{message}; first: {next(iter(errors.values()))}", data=summary)
    return Completed(message=message, data=summary)
