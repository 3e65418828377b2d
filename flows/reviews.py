"""The flow between people and labels: it applies what they answered, and tells what waits for them and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows import artifacts, events
from flows.open_flow import open_flow
from pipeline.device_slot import device_slot
from pipeline.errors import ForgottenError, HeadError, ModelError
from pipeline.ledger import Ledger
from pipeline.review.answers import ReviewError
from pipeline.review.corrections import Corrected, apply_answers, unfinished
from pipeline.settings import Settings, load_settings, refuse_secrets
from pipeline.storage.manifest import partition
from pipeline.storage.objects import ObjectStore
from pipeline.storage.secrets import hushed, masked
from pipeline.waiting import Waiting, waiting_for_people

TRIES = 3
RETRY_SECONDS = 10.0


def _again(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether another try may do better: a store that did not answer, rivals, a lost device; not a wrong answer."""
    try:
        state.result()
    except (ForgottenError, ReviewError, ModelError, HeadError):
        return False
    except Exception:  # noqa: BLE001 - whatever else it was
        return True
    return False


@task(
    name="correct-video", task_run_name="correct {video_id}", retries=TRIES - 1, retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_again, cache_policy=NO_CACHE, persist_result=False,
)  # fmt: skip
@hushed()
def correct(video_id: str, store: ObjectStore, settings: Settings) -> Corrected:
    """Apply the answers on one video; a second time nothing is left to do."""
    return apply_answers(video_id, store, Ledger(store), settings, slot=device_slot(settings))


@open_flow(name="reviews", flow_run_name="reviews {out}", validate_parameters=False)
def reviews(
    out: str, *, drop: str | None = None, config: str | None = None, overrides: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Apply what people answered, then tell what waits for them.

    Each video with new answers is corrected in a task of its own, one after another with one loaded model, and told by
    `video.corrected`. Then come an artifact with links, and `frames.need_review` for each drop. One video that cannot
    be corrected stops no other; its answers wait, and the run fails once all is told.

    Args:
        out: folder or s3:// prefix of the labels.
        drop: only this one, whose videos alone are corrected.
        config, overrides: how the store is reached, and where the model runs.
    Returns: per drop the fields of `pipeline.waiting.Waiting`, and where its list lies.
    """
    refuse_secrets(overrides)
    settings = load_settings(config, overrides)
    store = ObjectStore(out, settings.storage)
    corrected, failed = _correct(store, drop, settings, out)
    found = waiting_for_people(store, drop)
    summary = {one.drop: {**_counts(one), "review_uri": store.uri(f"review/{partition(one.drop)}")} for one in found}
    artifacts.text(_page(out, summary, corrected, failed), "reviews")
    for name, counts in summary.items():
        if counts["stretches"]:
            events.tell_waiting(name, counts, out)
    total = sum(one.stretches for one in found)
    get_run_logger().info("%d stretches in %d drops wait for people", total, sum(one.stretches > 0 for one in found))
    if failed:
        got = "; ".join(f"{video_id[:12]}: {text}" for video_id, text in failed.items())
        raise ReviewError("answers that can be applied", got, "see the tasks of this run; the next one tries again")
    return summary


def _correct(
    store: ObjectStore, drop: str | None, settings: Settings, out: str
) -> tuple[list[Corrected], dict[str, str]]:
    """Correct every video that has answers which are not in its labels; why some could not be, by video."""
    done: list[Corrected] = []
    failed: dict[str, str] = {}
    ledger = Ledger(store)
    for video_id in unfinished(store, ledger):
        commit = ledger.newest(video_id)
        if commit is None or drop not in (None, commit.first_seen):
            continue
        state = correct(video_id, store, settings, return_state=True)
        try:
            corrected: Corrected = state.result()
        except ForgottenError:
            continue
        except Exception as error:  # noqa: BLE001 - told with all others in the end
            failed[video_id] = masked(str(error))
            continue
        events.tell_corrected(corrected, out)
        done.append(corrected)
    return done, failed


def _counts(waiting: Waiting) -> dict[str, Any]:
    fields = asdict(waiting)
    del fields["drop"]
    return {**fields, "reasons": dict(waiting.reasons.most_common())}


def _page(
    out: str, summary: dict[str, dict[str, Any]], corrected: Sequence[Corrected], failed: Mapping[str, str]
) -> str:
    lines = [
        f"# What waits for people in `{out}`", "",
        "| drop | videos | stretches | audits | rows | why | list |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for drop, counts in summary.items():
        why = ", ".join(f"{reason}: {count}" for reason, count in counts["reasons"].items())
        videos = f"{counts['videos']} of {counts['labelled']}"
        cells = (drop, videos, counts["stretches"], counts["audits"], counts["rows"], why, f"`{counts['review_uri']}`")
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    applied = [one for one in corrected if one.applied]
    answers, rows = sum(len(one.applied) for one in applied), sum(one.changed for one in applied)
    lines += ["", f"Applied {answers} answers on {len(applied)} videos: {rows} masks changed."]
    for one in corrected:
        if one.waiting:
            lines.append(f"- {len(one.waiting)} wait for `{masked(one.commit.video_uri)}`: {one.why}")
    lines += [f"- not applied on `{video_id[:12]}`: {text}" for video_id, text in failed.items()]
    return "\n".join(lines)
