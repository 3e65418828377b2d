"""`watch_drop`: plans a drop and submits what nobody works on yet; called again after a crash, it is the reconciler."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterIdempotencyKey,
    FlowRunFilterStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.deployments import LABEL
from flows.open_flow import open_flow
from pipeline.names import shown
from pipeline.plan import Batch, Plan, plan_drop, write_plan
from pipeline.plan_summary import plan_rows
from pipeline.settings import load_settings, refuse_secrets
from pipeline.storage.objects import ObjectStore
from pipeline.work import started_at

if TYPE_CHECKING:
    from pipeline.settings import DropSettings
    from pipeline.work import Standing

ANSWERED = "Answered"
"""The name of the state of a run that left the plan to another one."""
SOME_FAILED = "SomeFailed"
"""The name of the state after batches that failed in this process."""
PAGE = 200
"""Flow runs that a Prefect server gives at a time."""
PENDING_SECONDS = 300.0
"""A run that is still being started after so long was left by its worker; a second one beside it would do no harm."""
LONGEST_PAUSE_SECONDS = 900.0
"""Between two tries at a video in one run lie no more, whatever the settings say."""
REPAIR_SECONDS = 60.0
"""Repairs give no signs of life; a run that makes some has so long for each."""
_MADE: ContextVar[Plan | None] = ContextVar("made", default=None)
UNDER_WAY = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


@open_flow(name="drops", flow_run_name="plan {drop}")
def watch_drop(
    drop: str,
    out: str,
    drop_name: str | None = None,
    config: str | None = None,
    overrides: dict[str, Any] | None = None,
    dry_run: bool = False,
    submit: bool = True,
) -> dict[str, Any] | State[Any]:
    """Compare a drop with what became of its videos, and have the rest labelled.

    Args:
        drop: folder or s3:// prefix, with the prompts beside the videos.
        out: folder or s3:// prefix of the labels.
        drop_name: of the drop; by its folder if None.
        config: a settings file, or the name of a shipped one.
        overrides: settings over it, dotted or nested; no secrets.
        dry_run: only say what would be done; nothing is written.
        submit: hand the batches to the deployment of `label`; False, or where there is none, works them off here.
    Returns: the plan's counts, with `submitted` (names of the flow runs), `here` (batches worked off in this process)
             and `waiting` (batches for which there was no room); a Failed state if a batch failed here; a state named
             Answered if the same plan was made since this one was due, as when many fell due while no worker was there.
    """
    refuse_secrets(overrides)
    log = get_run_logger()
    if (name := _answered_by()) is not None:
        log.info("planned already by %s, which began after this was due", name)
        return Completed(name=ANSWERED, message=f"by {name}")
    settings = load_settings(config, overrides)
    source, target = ObjectStore(drop, settings.storage), ObjectStore(out, settings.storage)
    plan = _MADE.get() or plan_drop(source, target, settings, name=drop_name)
    log.info("%s: %s", plan.drop, ", ".join(f"{count} {name}" for name, count in plan.counts.items() if count))
    summary = {"drop": plan.drop, **plan.counts, "submitted": [], "here": 0, "waiting": 0}
    if not dry_run:
        write_plan(target, plan)
        file = Path(config).expanduser() if config else None
        config = str(file.resolve()) if file is not None and file.is_file() else config  # runs start in other folders
        shared = {"out": target.url, "config": config, "overrides": overrides}
        if submit and _can_submit():
            summary |= _submit(plan, shared, settings.drops)
        else:
            summary |= _work_off(plan, shared)
    create_markdown_artifact(
        key=f"drop-{_slug(plan.drop)}", markdown=_markdown(plan), description=f"Plan of {plan.root}"
    )
    if failed := summary.pop("failed", 0):
        return Failed(name=SOME_FAILED, message=f"{failed} of {summary['here']} batches have videos that failed")
    return summary


@contextmanager
def already(plan: Plan) -> Iterator[None]:
    """Runs of `watch_drop` in this block take this plan, which was made a moment ago, for theirs."""
    token = _MADE.set(plan)
    try:
        yield
    finally:
        _MADE.reset(token)


def _answered_by() -> str | None:
    """The run that made this very plan after this run was due, if there is one.

    A limit of one run at a time would keep plans apart too, but a server that loses track of a run whose process was
    killed holds its slot for good, and no plan runs any more.
    """
    if flow_run.id is None:
        return None
    with get_client(sync_client=True) as client:
        own = client.read_flow_run(UUID(str(flow_run.id)))
        if own.expected_start_time is None:
            return None
        others = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[watch_drop.name])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED])),
                start_time=FlowRunFilterStartTime(after_=own.expected_start_time),
            ),
            sort=FlowRunSort.START_TIME_DESC,
            limit=PAGE,
        )
    return next(
        (one.name for one in others if one.id != own.id and one.parameters == own.parameters and not _answered(one)),
        None,
    )


def _answered(run: FlowRun) -> bool:
    """Whether a run planned nothing itself."""
    return run.state is not None and run.state.name == ANSWERED


def _can_submit() -> bool:
    """Whether there is a deployment to submit to."""
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(LABEL)
        except ObjectNotFound:
            get_run_logger().info("no deployment %s: working the batches off here", LABEL)
            return False
    return True


def _submit(plan: Plan, shared: dict[str, Any], settings: DropSettings) -> dict[str, Any]:
    """Hand over what no run has, as many batches as there is room for."""
    runs = [run for run in label_runs(shared["out"]) if is_under_way(run, plan.standings, settings)]
    taken = {item["plan_key"] for run in runs for item in run.parameters.get("items") or []}
    repairing = {video_id for run in runs for video_id in run.parameters.get("repairs") or []}
    left = [batch for batch in (one.without(taken, repairing) for one in plan.batches) if batch]
    room = max(0, settings.max_batches - len(runs))
    names = [_submit_batch(plan, batch, shared, settings).name for batch in left[:room]]
    get_run_logger().info(
        "submitted %d batches; %d runs were under way, %d batches wait for room", len(names), len(runs),
        len(left) - len(names),
    )  # fmt: skip
    return {"submitted": names, "waiting": len(left) - len(names)}


def _submit_batch(plan: Plan, batch: Batch, shared: dict[str, Any], settings: DropSettings) -> FlowRun:
    """Create the run of a batch, unless another planner has just done so.

    A run of the same key that ended before it could record anything is not in the way: the next number is free.
    """
    number = _last_number(batch)
    while True:
        run = run_deployment(
            LABEL,
            parameters={**_parameters(batch), **shared},
            timeout=0,
            idempotency_key=f"{batch.key}:{number}",
            flow_run_name=_run_name(plan.drop, batch),
            as_subflow=False,
        )
        assert isinstance(run, FlowRun)  # outside of an event loop
        if is_under_way(run, plan.standings, settings):
            return run
        number += 1


def _last_number(batch: Batch) -> int:
    """The number of the batch's last run, of those that one question tells; 0 if it had none."""
    keys = [f"{batch.key}:{number}" for number in range(PAGE)]
    wanted = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=keys))
    with get_client(sync_client=True) as client:
        made = {run.idempotency_key for run in client.read_flow_runs(flow_run_filter=wanted, limit=PAGE)}
    return max((number for number, key in enumerate(keys) if key in made), default=0)


def label_runs(out: str) -> Iterator[FlowRun]:
    """The label runs of an output that have not ended, as the server has them."""
    with get_client(sync_client=True) as client:
        offset = 0
        while True:
            page = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[LABEL.partition("/")[0]])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(UNDER_WAY)))
                ),
                sort=FlowRunSort.ID_DESC,
                limit=PAGE,
                offset=offset,
            )
            yield from (run for run in page if run.parameters.get("out") == out)
            if len(page) < PAGE:
                return
            offset += PAGE


def is_under_way(run: FlowRun, standings: Mapping[str, Standing], settings: DropSettings) -> bool:
    """Whether a run has begun or will: one whose process is gone may stay `Running` on the server for good.

    Args:
        standings: what is on record, by plan key. An attempt that gives signs of life speaks for its run, one of the
            run's that gives none any more against it. While there is neither, the run may be loading its model, making
            repairs, between two videos, or waiting before it tries one again.
    """
    if run.state is None or run.state.type == StateType.SCHEDULED:
        return True
    began, now = run.state.timestamp.timestamp(), time.time()
    if run.state.type == StateType.PENDING:
        return now - began < PENDING_SECONDS
    if run.state.type not in UNDER_WAY:
        return False
    keys = [item["plan_key"] for item in run.parameters.get("items") or []]
    found = [standings[key] for key in keys if key in standings]
    if any(one.live for one in found):
        return True
    if any(started_at(attempt) > began for one in found for attempt in one.lapsed):
        return False
    repairs = len(run.parameters.get("repairs") or [])
    if now - began < settings.lease_seconds + REPAIR_SECONDS * repairs:
        return True
    last = max(found, key=lambda one: one.since, default=None)
    if last is None or last.since < began:
        return False
    pause = (
        0.0
        if last.done is not None
        else min(LONGEST_PAUSE_SECONDS, settings.retry_seconds * 2 ** (settings.max_attempts - 1))
    )
    return now - last.since < settings.lease_seconds + pause


def _work_off(plan: Plan, shared: dict[str, Any]) -> dict[str, Any]:
    """All batches in this process, one after another; one that fails does not stop the others."""
    from flows.label import label_batch

    failed = 0
    for batch in plan.batches:
        run = label_batch.with_options(flow_run_name=_run_name(plan.drop, batch).replace("{", "(").replace("}", ")"))
        state: State[Any] = run(**_parameters(batch), **shared, return_state=True)
        failed += not state.is_completed()
    return {"here": len(plan.batches), "failed": failed}


def _parameters(batch: Batch) -> dict[str, Any]:
    return {"items": [asdict(item) for item in batch.items], "repairs": list(batch.repairs)}


def _run_name(drop: str, batch: Batch) -> str:
    if not batch.items:
        return shown(f"{drop}: {len(batch.repairs)} repairs")
    first = batch.items[0].video.rpartition("/")[2]
    return shown(f"{drop}: {first}" + (f" and {len(batch.items) - 1} more" if len(batch.items) > 1 else ""))


def _slug(name: str) -> str:
    """A name as keys of artifacts may be."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


def _markdown(plan: Plan) -> str:
    """The plan as a table: how many of each kind, the first names, and what is done about them."""
    lines = ["| | | first | |", "|---|---|---|---|"]
    for row in plan_rows(plan):
        first = "<br>".join(f"`{_cell(name)}`" for name in row.first)
        lines.append(f"| {row.kind} | {row.count:,} | {first} | {row.what_to_do} |")
    return f"# Drop {_cell(plan.drop)}\n`{_cell(plan.root)}`\n\n" + "\n".join(lines)


def _cell(text: str) -> str:
    """A name that cannot end its cell or its code span."""
    return shown(text).replace("`", "'").replace("|", "\\|")
