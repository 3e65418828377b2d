"""`label_drop`: the label job over a whole drop as a Prefect flow, one task per video, with a summary artifact.

Runs without a server: `python -c "from flows.label import label_drop; label_drop('drop/', 'labels/')"`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed
from prefect.tasks import Task

from pipeline.drops import find_videos
from pipeline.errors import MasksieveError, StorageError
from pipeline.label import label_video
from pipeline.models import LoadedModel, load_model
from pipeline.prefetch import Prefetch
from pipeline.report import VideoReport
from pipeline.settings import Settings, load_settings

RETRIES = 2
RETRY_DELAYS_SECONDS = [5.0, 30.0]


@lru_cache(maxsize=1)
def _model(name: str, device: str, cache_dir: Path | None) -> LoadedModel:
    """The model, loaded once per process (a predictor is not thread-safe, so videos run one after another)."""
    return load_model(name, device=device, cache_dir=cache_dir)


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
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def label_one(
    video: str, prompts: str | None, out: str, settings: Settings, drop: str | None, ahead: Prefetch | None = None
) -> VideoReport:
    """Label one video, downloaded ahead if it could be; one that is already labelled this way is left unchanged."""
    model = _model(settings.model.name, settings.model.device, settings.model.cache_dir)
    source = None if ahead is None else ahead.video(video)
    report = label_video(video, prompts, out, settings, drop=drop, model=model, source=source)
    get_run_logger().info("%s %s: %d frames, %d rows", report.video, report.status, report.frames, report.rows)
    return report


@flow(
    name="label-drop", flow_run_name="label {drop}", log_prints=False, persist_result=False, validate_parameters=False
)
def label_drop(
    drop: str,
    out: str,
    *,
    drop_name: str | None = None,
    config: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> list[dict[str, Any]] | State[Any]:
    """Label every video of a drop.

    Args:
        drop: a folder, file, glob or s3:// prefix; each video pairs with the prompts beside it; one without
            fails unless `prompts.on_missing` is `auto`.
        out: folder or s3:// prefix of the labels.
        drop_name: the `drop=` partition; None leaves it to the job.
        config: a settings file, or the name of a shipped one.
        overrides: settings over it, dotted or nested.
    Returns: the summary, one dict per video; a Failed state when a video failed (the others are done all the same).
    """
    settings = load_settings(config, overrides)
    rows: list[dict[str, Any]] = []
    found = find_videos([drop], storage=settings.storage)
    with Prefetch.of(found, settings) as ahead:
        for wanted in found:
            if wanted.error is not None:
                rows.append(_failed(wanted.video, str(wanted.error)))
                continue
            state = label_one(wanted.video, wanted.prompts, out, settings, drop_name, ahead, return_state=True)
            try:
                rows.append(_row(state.result()))
            except Exception as error:  # noqa: BLE001 - one video's failure is a line of the summary
                rows.append(_failed(wanted.video, f"{type(error).__name__}: {error}"))
    create_table_artifact(table=rows, key="label-drop", description=f"Labels of `{drop}` in `{out}`")
    failed = [row["video"] for row in rows if row["status"] == "failed"]
    if failed:
        return Failed(message=f"{len(failed)} of {len(rows)} videos failed: {', '.join(failed)}")
    return rows


def _row(report: VideoReport) -> dict[str, Any]:
    """One line of the summary."""
    share = {
        name: round(getattr(report, name) / report.rows, 4) if report.rows else None
        for name in ("accepted", "review", "absent")
    }
    return {
        "video": report.video,
        "status": report.status,
        "frames": report.frames,
        "objects": report.objects,
        "rows": report.rows,
        **share,
        "wall_seconds": round(report.wall_seconds, 2),
        "frames_per_second": round(report.frames_per_second, 1) if report.frames_per_second else None,
        "certified": report.certified,
        "error": report.error or "",
    }


def _failed(video: str, error: str) -> dict[str, Any]:
    """The line of a video that could not be labelled."""
    empty = dict.fromkeys(("frames", "objects", "rows", "accepted", "review", "absent", "wall_seconds"))
    return {"video": video, "status": "failed", **empty, "frames_per_second": None, "certified": False, "error": error}
