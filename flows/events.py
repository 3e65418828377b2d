"""Prefect events that others can act on: a video was labelled, corrected or quarantined, frames wait for people."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from prefect.events import emit_event

from pipeline.report import VideoReport
from pipeline.storage.secrets import masked
from pipeline.work import Item

if TYPE_CHECKING:
    from pipeline.review.corrections import Corrected

log = logging.getLogger(__name__)

LABELLED, QUARANTINED, NEED_REVIEW = "video.labelled", "video.quarantined", "frames.need_review"
CORRECTED = "video.corrected"


def tell_labelled(item: Item, report: VideoReport, out: str) -> None:
    """`video.labelled` and, if a person should look at something, `frames.need_review`; nothing if nothing changed."""
    if report.status not in ("labelled", "re-decided"):
        return
    resource = _resource(f"video.{report.video_id}", item.video)
    where = {"video_uri": item.video, "drop": item.drop, "out": out, "video_id": report.video_id}
    payload = {
        **where, "status": report.status, "generation": report.generation, "frames": report.frames,
        "objects": report.objects, "rows": report.rows, "accepted": report.accepted, "review": report.review,
        "hold": report.hold, "labels_uri": report.labels_uri, "certified": report.certified,
        "evidence": report.evidence,
    }  # fmt: skip
    _emit(LABELLED, resource, item.drop, payload)
    if report.review:
        payload = {**where, "rows": report.review, "review_uri": report.review_uri}
        _emit(NEED_REVIEW, resource, item.drop, payload)


def tell_quarantined(item: Item, error: str, out: str) -> None:
    """`video.quarantined`; a video that failed has perhaps no video_id, so its resource is the piece of work."""
    payload = {"video_uri": item.video, "drop": item.drop, "out": out, "plan_key": item.plan_key, "error": error}
    _emit(QUARANTINED, _resource(f"work.{item.plan_key}", item.video), item.drop, payload)


def tell_corrected(corrected: Corrected, out: str) -> None:
    """`video.corrected`, if answers of people were applied."""
    commit = corrected.commit
    if corrected.applied:
        payload = {
            "video_uri": commit.video_uri, "drop": commit.first_seen, "out": out, "video_id": commit.video_id,
            "generation": commit.generation, "answers": len(corrected.applied), "rows": corrected.changed,
        }  # fmt: skip
        _emit(CORRECTED, _resource(f"video.{commit.video_id}", commit.video_uri), commit.first_seen, payload)


def tell_waiting(drop: str, counts: dict[str, Any], out: str) -> None:
    """`frames.need_review` of a whole drop, with what waits there."""
    _emit(NEED_REVIEW, _resource(f"drop.{drop}", drop), None, {"drop": drop, "out": out, **counts})


def _resource(name: str, uri: str) -> dict[str, str]:
    shown = PurePosixPath(masked(uri)).name
    return {"prefect.resource.id": f"masksieve.{name}", "prefect.resource.name": shown}


def _emit(event: str, resource: dict[str, str], drop: str | None, payload: dict[str, Any]) -> None:
    related = [] if drop is None else [_resource(f"drop.{drop}", drop) | {"prefect.resource.role": "drop"}]
    clean = {key: masked(value) if isinstance(value, str) else value for key, value in payload.items()}
    try:
        emit_event(event, resource, related=related, payload=clean)
    except Exception as error:  # noqa: BLE001 - whoever listens can be told later, labels can't wait
        log.info("no event %s: %s", event, error)
