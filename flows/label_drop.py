"""`label_drop`: a whole drop here and now as one flow run, without a plan, without records, without a server.

`python -c "from flows.label_drop import label_drop; label_drop('drop/', 'labels/')"`
"""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from prefect.tasks import Task

from flows import artifacts
from flows.open_flow import open_flow
from flows.rows import Row, line, reason, row_of
from pipeline.drops import find_videos
from pipeline.errors import MasksieveError, StorageError
from pipeline.label import label_video
from pipeline.models import LoadedModel, load_model
from pipeline.prefetch import Prefetch
from pipeline.report import VideoReport
from pipeline.settings import Settings, load_settings, refuse_secrets
from pipeline.storage.secrets import hushed

RETRY_DELAYS_SECONDS = [5.0, 30.0]


def worth_a_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: a bad video or bad prompts stay bad, a store or an unforeseen error may not."""
    try:
        state.result()
    except StorageError:
        return True
    except MasksieveError:
        return False
    except Exception:  # noqa: BLE001 - anything unforeseen gets its second chance
        return True
    return False


@task(
    name="label-video",
    task_run_name="label {video}",
    retries=len(RETRY_DELAYS_SECONDS),
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
@hushed()
def label_one(
    video: str, prompts: str | None, out: str, settings: Settings, drop: str | None, model: LoadedModel, ahead: Prefetch
) -> VideoReport:
    """Label one video, downloaded ahead if it could be; one that is already labelled this way is left unchanged."""
    report = label_video(video, prompts, out, settings, drop=drop, model=model, source=ahead.video(video))
    get_run_logger().info("%s %s: %d frames, %d rows", report.video, report.status, report.frames, report.rows)
    return report


@open_flow(name="label-drop", flow_run_name="label {drop}", validate_parameters=False)
def label_drop(
    drop: str,
    out: str,
    *,
    drop_name: str | None = None,
    config: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> list[Row] | State[Any]:
    """Label every video of a drop, whatever became of it before; nothing is put on record but the labels.

    Args:
        drop: a folder, file, glob or s3:// prefix; each video pairs with the prompts beside it; one without
            fails unless `prompts.on_missing` is `auto`.
        out: folder or s3:// prefix of the labels.
        drop_name: the `drop=` partition; None leaves it to the job.
        config: a settings file, or the name of a shipped one.
        overrides: settings over it, dotted or nested.
    Returns: the summary, one dict per video; a Failed state when a video failed (the others are done all the same).
    Raises:  ModelError if the model cannot be loaded; StorageError if the drop cannot be listed.
    """
    refuse_secrets(overrides)
    settings = load_settings(config, overrides)
    rows: list[Row] = []
    found = find_videos([drop], storage=settings.storage)
    model = load_model(settings.model.name, device=settings.model.device, cache_dir=settings.model.cache_dir)
    with Prefetch.of(found, settings) as ahead:
        for one in found:
            if one.error is not None:
                rows.append(line(one.video, "failed", str(one.error)))
                continue
            state = label_one(one.video, one.prompts, out, settings, drop_name, model, ahead, return_state=True)
            try:
                rows.append(row_of(state.result()))
            except Exception as error:  # noqa: BLE001 - one video's failure is a line of the summary
                rows.append(line(one.video, "failed", reason(error)))
    artifacts.table(rows, "label-drop", f"Labels of `{drop}` in `{out}`")
    failed = [row["video"] for row in rows if row["status"] == "failed"]
    if failed:
        return Failed(message=f"{len(failed)} of {len(rows)} videos failed: {', '.join(failed)}")
    return rows
