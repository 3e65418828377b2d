"""The label flow: a batch of planned videos with retries, time limits, cancellation and records."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.tasks import Task, exponential_backoff

from flows import artifacts, events
from flows.open_flow import open_flow
from flows.rows import DeviceLost, Row, SetAside, line, reason, row_of
from pipeline import metrics
from pipeline.deadline import within
from pipeline.device_slot import device_slot
from pipeline.errors import (
    DiskSpaceError,
    ForgottenError,
    MasksieveError,
    SettingsError,
    StorageError,
    TimeLimitError,
    UnavailableError,
)
from pipeline.label import Progress, label_video
from pipeline.models import LoadedModel, load_model
from pipeline.prefetch import Prefetch
from pipeline.report import VideoReport
from pipeline.retune import derive_all
from pipeline.scratch import sweep_scratch
from pipeline.settings import Settings, load_settings, refuse_secrets
from pipeline.storage.objects import ObjectStore
from pipeline.storage.secrets import hushed, masked
from pipeline.work import FORGOTTEN, Item, WorkLog
from usam.weights import load_bank

JITTER = 0.5
LONGEST_WAIT_SECONDS = 600.0
REPAIR_FAILED = "repair failed"

Slot = Callable[[], AbstractContextManager[object]]


class Batch:
    """What the videos of one run share.

    Attributes:
        records: what became of them.
        model: loaded once (a predictor is not thread-safe, so videos run one after another).
        slot: makes a job wait for its turn on the device.
        ahead: brings the next video while one is worked on.
        reports: of the videos that are done.
    """

    def __init__(self, store: ObjectStore, out: str, settings: Settings, items: Sequence[Item]) -> None:
        self.store, self.out, self.settings = store, out, settings
        self.records = WorkLog(store, settings.drops)
        self.run_id = str(flow_run.id or "without a server")
        self.model = _model(settings.model.name, settings.model.device, settings.model.cache_dir)
        self.slot = device_slot(settings)
        self.ahead = Prefetch([item.video for item in items], settings)
        self.reports: list[VideoReport] = []
        if settings.score.bank is not None:
            load_bank(settings.score.bank, model_sha256=self.model.sha256)

    @property
    def task(self) -> Task[..., Row]:
        """The task of one video, with the retries that the settings ask for."""
        tries = self.settings.drops.max_attempts
        waits = exponential_backoff(self.settings.drops.retry_seconds)(tries - 1)
        return label_item.with_options(
            retries=tries - 1, retry_delay_seconds=[min(one, LONGEST_WAIT_SECONDS) for one in waits]
        )


@lru_cache(maxsize=1)
def _model(name: str, device: str, cache_dir: Path | None) -> LoadedModel:
    """The model, loaded once per process."""
    return load_model(name, device=device, cache_dir=cache_dir)


def not_set_aside(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether another try is due: until the video is in quarantine, for its failures count, whatever they are."""
    try:
        state.result()
    except (SetAside, DeviceLost):
        return False
    except Exception:  # noqa: BLE001 - the store's faults and the video's alike
        return True
    return False


@task(
    name="label-video",
    task_run_name="label {item.video}",
    retry_condition_fn=not_set_aside,
    retry_jitter_factor=JITTER,
    cache_policy=NO_CACHE,
    persist_result=False,
)
@hushed()
def label_item(item: Item, batch: Batch) -> Row:
    """One try at one video. Returns: its line of the summary. Raises: SetAside if it failed for good."""
    logger = get_run_logger()
    attempt = batch.records.begin(item, batch.run_id)
    if attempt is None:
        return _not_begun(item, batch)
    limit = batch.settings.drops.video_seconds
    try:
        with metrics.VideoClock() as clock, attempt:

            def see(step: Progress) -> None:
                attempt.stage = step.stage
                clock.see(step)

            def work(paused: Slot) -> VideoReport:
                return label_video(
                    item.video, item.prompts, batch.out, batch.settings, drop=item.drop, model=batch.model,
                    progress=see, source=metrics.waited(batch.ahead.video(item.video), metrics.PREFETCH_WAIT),
                    slot=_waiting(batch.slot, paused),
                    attempt=attempt.number, keep_first=True,
                )  # fmt: skip

            report = within(limit, work, lambda: _late(limit, attempt.stage))
            attempt.done(report)
    except ForgottenError:
        logger.info("%s was %s", item.video, FORGOTTEN)
        return line(item.video, "forgotten", FORGOTTEN)
    except Exception as error:
        metrics.count_failure(error)
        if attempt.quarantined:
            raise SetAside(reason(error)) from error
        if not isinstance(error, MasksieveError):
            _require_device(batch.model.device, error)
        raise
    batch.reports.append(report)
    metrics.count_rows(report)
    logger.info("%s %s: %d frames, %d rows", report.video, report.status, report.frames, report.rows)
    events.tell_labelled(item, report, batch.out)
    return row_of(report)


def _not_begun(item: Item, batch: Batch) -> Row:
    """The line of a video that was not there to be taken up."""
    standing = batch.records.standing(item)
    status, error = "busy", "under way elsewhere"
    if standing.done is not None:
        status, error = "done", ""
    elif standing.forgotten:
        status, error = "forgotten", FORGOTTEN
    elif standing.quarantined:
        status, error = "quarantined", batch.records.reason(item)
    get_run_logger().info("%s not begun: %s", item.video, error or status)
    return line(item.video, status, error)


@open_flow(name="label", validate_parameters=False)  # its runs are named by who submits them
def label_batch(
    items: list[dict[str, Any]],
    out: str,
    *,
    config: str | None = None,
    overrides: dict[str, Any] | None = None,
    repairs: list[str] | None = None,
) -> State[list[Row]]:
    """Label a batch of planned videos with one loaded model, one after another, the next one downloaded meanwhile.

    What concerns all of them (settings, model, heads, an output that refuses to be written) ends the run before any
    is tried, so that it counts against none.

    Args:
        items: fields of `pipeline.work.Item`.
        out: folder or s3:// prefix of the labels.
        config: a settings file on the worker, or the name of a shipped one.
        overrides: settings over it, dotted or nested; without keys of a store, which a server would keep.
        repairs: video_ids whose labels and review list are derived again first.
    Returns: the summary, one dict per video; a Failed state without it when a video is in quarantine or its labels
        could not be repaired (the others are done all the same).
    """
    refuse_secrets(overrides)
    settings = load_settings(config, overrides)
    work = [_item(one) for one in items]
    store = ObjectStore(out, settings.storage)
    sweep_scratch(settings)  # what runs that were killed left on this machine
    rows = _repair(store, repairs or [], settings)
    if work:
        rows += _label(work, store, out, settings)
    return _finish(rows, "label", f"Labels in `{out}`")


def _label(items: Sequence[Item], store: ObjectStore, out: str, settings: Settings) -> list[Row]:
    try:
        store.probe_conditional_put()
    except UnavailableError as error:  # each video's tries wait for it
        get_run_logger().warning("%s", error)
    batch = Batch(store, out, settings, items)
    rows: list[Row] = []
    bar = artifacts.Bar(len(items), "videos")
    with ExitStack() as stack:
        stack.callback(metrics.WAITING.set, 0)
        stack.enter_context(batch.ahead)
        one_video = batch.task
        for number, item in enumerate(items):
            metrics.WAITING.set(len(items) - number - 1)
            state: Any = one_video(item, batch, return_state=True)
            rows.append(_outcome(item, state, batch))
            bar.tell(number + 1)
    try:
        batch.records.catch_up()
    except StorageError as error:
        get_run_logger().warning("some outcomes are not on record: %s", error)
    changed = [report for report in batch.reports if report.status in ("labelled", "re-decided")]
    if changed:
        artifacts.timeline(store, max(changed, key=lambda report: report.review), settings)
    for drop in sorted({item.drop for item in items}):
        artifacts.review_list(store, drop)
    return rows


def _outcome(item: Item, state: State[Row], batch: Batch) -> Row:
    """What became of a video after its last try: its line, counted and told."""
    try:
        row = state.result()
    except SetAside as error:
        row = line(item.video, "quarantined", str(error))
    except (UnavailableError, DiskSpaceError) as error:
        row = line(item.video, "unavailable", str(error))
    except DeviceLost:
        raise  # the others are left to another process
    except Exception as error:  # noqa: BLE001 - one video's failure is a line of the summary
        row = line(item.video, "failed", reason(error))
    metrics.VIDEOS.labels(row["status"]).inc()
    if item.plan_key in batch.records.set_aside:  # not where it lay in quarantine already
        metrics.QUARANTINED.inc()
        events.tell_quarantined(item, row["error"], batch.out)
    return row


def _repair(store: ObjectStore, video_ids: Sequence[str], settings: Settings) -> list[Row]:
    """Derive again what is committed and lacks its labels. A store that is away is for the next plan to wait for."""
    rows = []
    for video_id, derived in derive_all(store, video_ids, settings):
        if isinstance(derived, ForgottenError):
            rows.append(line(video_id, "forgotten", FORGOTTEN))
        elif isinstance(derived, UnavailableError | DiskSpaceError):
            rows.append(line(video_id, "unavailable", str(derived)))
        elif isinstance(derived, MasksieveError):
            get_run_logger().error("no labels of %s: %s", video_id, derived)
            rows.append(line(video_id, REPAIR_FAILED, str(derived)))
        else:
            rows.append(line(video_id, "repaired", ""))
    return rows


def _finish(rows: list[Row], key: str, description: str) -> State[list[Row]]:
    """Show the summary, and make the run's state of it."""
    artifacts.table(rows, key, description)
    counts = Counter(row["status"] for row in rows)
    message = ", ".join(f"{number} {status}" for status, number in sorted(counts.items())) or "nothing to do"
    if lost := [row["video"] for row in rows if row["status"] == "quarantined"]:
        message += f"; in quarantine: {', '.join(lost)}"
    broken = [f"{row['video'][:12]} ({row['error']})" for row in rows if row["status"] == REPAIR_FAILED]
    if broken:
        message += f"; labels missing: {', '.join(broken[:3])}" + (", ..." if broken[3:] else "")
    if lost or broken:
        return Failed(message=masked(message))
    return Completed(message=message, data=rows)


def _item(fields: dict[str, Any]) -> Item:
    """A piece of work out of a flow run's parameters."""
    expected = "the video, prompts, drop and plan_key of each item"
    try:
        item = Item(**fields)
    except TypeError as error:
        raise SettingsError(expected, masked(str(error)), "let flows.drops submit it") from error
    texts = (item.video, item.drop, item.plan_key)
    if (
        not all(isinstance(text, str) and text for text in texts)
        or not re.fullmatch("[0-9a-f]{64}", item.plan_key)
        or not isinstance(item.prompts, str | None)
    ):
        raise SettingsError(expected, masked(repr(dataclasses.asdict(item))), "let flows.drops submit it")
    return item


def _waiting(slot: Slot, paused: Slot) -> Slot:
    """The same slot; the wait for it is told, and does not count against the video's time."""

    @contextmanager
    def turn() -> Iterator[None]:
        with ExitStack() as stack:
            with paused():
                stack.enter_context(metrics.waited(slot(), metrics.SLOT_WAIT))
            yield

    return turn


def _late(limit_seconds: float | None, stage: str) -> TimeLimitError:
    return TimeLimitError(
        "a video that is labelled within its time limit",
        f"one that took longer than {limit_seconds or 0:g} s at {stage}",
        "raise drops.video_seconds, or cut the video",
    )


def _require_device(device: str, error: Exception) -> None:
    """After an error of CUDA that lasts, every other video of this process would fail too, and count.

    Raises: DeviceLost.
    """
    import torch

    try:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
            torch.zeros(1, device=device).item()
    except Exception:  # noqa: BLE001 - whatever it says, it does not work
        raise DeviceLost(f"{device} gave up in this process: {reason(error)}") from error
