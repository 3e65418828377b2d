"""What a run leaves on the server for people: a table, how far it is, a picture of uncertainty, where to review."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.rows import Row
from pipeline.errors import MasksieveError
from pipeline.report import VideoReport
from pipeline.settings import Settings
from pipeline.storage.manifest import partition
from pipeline.storage.objects import ObjectStore
from pipeline.storage.secrets import masked

log = logging.getLogger(__name__)

T = TypeVar("T")
UPDATE_SECONDS = 5.0
EMBEDDED_BYTES = 500_000
"""A picture up to this size is put into the page: a browser reads neither this machine's files nor s3:// addresses."""
LISTED_REASONS = 20
DRAWN_ROWS = 1_000_000


def table(rows: Sequence[Row], key: str, description: str) -> None:
    """A table without its empty columns, what went wrong above it, and without keys of stores in any cell."""
    used = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)] if rows else []
    clean = [{name: _clean(row[name]) for name in used} for row in rows]
    _quietly(lambda: create_table_artifact(table=clean, key=key, description=masked(description + _reasons(rows))))


def _reasons(rows: Sequence[Row]) -> str:
    """Why videos failed, as a list: in a wide table nobody would see it."""
    wrong = [f"- {_code(row['video'])} {row['status']}: {_plain(row['error'])}" for row in rows if row.get("error")]
    more = [f"- and {len(wrong) - LISTED_REASONS} more, see the table"] if len(wrong) > LISTED_REASONS else []
    return "\n".join(["", "", *wrong[:LISTED_REASONS], *more]) if wrong else ""


def text(markdown: str, key: str, description: str | None = None) -> None:
    """A page of Markdown, without keys of stores."""
    _quietly(lambda: create_markdown_artifact(masked(markdown), key=key, description=description))


class Bar:
    """How many videos of a batch are done, told at most every few seconds."""

    def __init__(self, total: int, what: str) -> None:
        self._total, self._what = total, what
        self._told = time.monotonic()
        self._id: Any = _quietly(lambda: create_progress_artifact(0.0, description=f"0 of {total} {what}"))

    def tell(self, done: int) -> None:
        """So many are done."""
        artifact, now = self._id, time.monotonic()
        if artifact is None or (done < self._total and now - self._told < UPDATE_SECONDS):
            return
        self._told, share = now, 100.0 * done / max(1, self._total)
        description = f"{done} of {self._total} {self._what}"
        _quietly(lambda: update_progress_artifact(artifact, share, description=description))


def review_list(store: ObjectStore, drop: str) -> None:
    """Where the review list of a drop lies; no link, for no browser opens such an address."""
    where = masked(store.uri(f"review/{partition(drop)}"))
    page = f'It is Parquet in\n\n    {where}\n\nfor example\n\n    pandas.read_parquet("{where}")'
    text(page, "review-list", f"What waits for a person in drop {_code(drop)}")


def timeline(store: ObjectStore, report: VideoReport, settings: Settings) -> str | None:
    """The uncertainty of one video over time: written to the output, and shown.

    Returns: where the picture lies; None if there is nothing to draw or it could not be drawn.
    """
    if not 0 < report.rows <= DRAWN_ROWS:
        return None
    try:
        return _timeline(store, report, settings)
    except MasksieveError as error:  # a picture is a convenience
        log.info("no timeline of %s: %s", report.video, error)
        return None


def _timeline(store: ObjectStore, report: VideoReport, settings: Settings) -> str:
    import pyarrow.parquet as pq

    from pipeline.certificate import Evidence
    from pipeline.ledger import Ledger
    from pipeline.records import read_metadata
    from pipeline.render.labelled import highest, video_thresholds
    from pipeline.render.masklet import masklets
    from pipeline.render.timeline import draw_timeline
    from pipeline.scratch import scratch_folder
    from pipeline.storage.manifest import derived_key

    commit = Ledger(store).read(report.video_id, report.generation)
    names = (
        "frame_index", "pts_seconds", "object_id", "label", "visibility", "prompted", "uncertainty", "decision",
        "shot_index",
    )  # fmt: skip
    labels_key = derived_key("labels", commit.first_seen, report.video_id)
    with store.open(labels_key) as file:
        labels = pq.ParquetFile(file)
        rows = labels.read(columns=[name for name in names if name in labels.schema_arrow.names])
        by_label = video_thresholds(read_metadata(labels.schema_arrow), labels_key, rows["label"])
    name = masked(report.video).rpartition("/")[2]
    key = f"review_images/{report.video_id}/{report.generation:06d}/timeline.png"  # ends with its generation
    with scratch_folder(settings) as folder:
        picture = draw_timeline(
            masklets(rows),
            Path(folder) / "timeline.png",
            title=name,
            threshold=highest(by_label),
            by_label=by_label,
            support=Evidence(report.certified, report.evidence),
        )
        store.put_atomic(key, picture)
        data = picture.read_bytes()
    uri = masked(store.uri(key))
    page = f"    {uri}"
    if len(data) <= EMBEDDED_BYTES:  # as Markdown: an image artifact writes the whole address of its picture below it
        page = f"![uncertainty over time](data:image/png;base64,{base64.b64encode(data).decode()})\n\n{page}"
    about = f"Uncertainty of {_code(name)}, the video of this run with the most to review"
    _quietly(lambda: create_markdown_artifact(page, key="uncertainty-timeline", description=about))
    return uri


def _clean(cell: Any) -> Any:
    return masked(cell) if isinstance(cell, str) else cell


def _code(name: str) -> str:
    """A name as code: no character of it means anything to Markdown."""
    return f"`{_plain(name)}`"


def _plain(words: str) -> str:
    return " ".join(words.replace("`", "'").split())


def _quietly(create: Callable[[], T]) -> T | None:
    """The artifact's id; None if the server took none, which must not cost the run its labels."""
    try:
        return create()
    except Exception as error:  # noqa: BLE001 - see above
        log.warning("no artifact: %s", error)
        return None
