"""What a run leaves on the server for people: a table, how far it is, a picture of uncertainty, where to review."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
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
"""A picture up to this size is put into the page; the server has no access to this machine's files."""
DRAWN_ROWS = 1_000_000


def table(rows: Sequence[Row], key: str, description: str) -> None:
    """A table, without keys of stores in any cell."""
    clean = [{name: masked(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows]
    _quietly(lambda: create_table_artifact(table=clean, key=key, description=masked(description)))


def text(markdown: str, key: str) -> None:
    """A page of Markdown, without keys of stores."""
    _quietly(lambda: create_markdown_artifact(masked(markdown), key=key))


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


def review_link(store: ObjectStore, drop: str) -> None:
    """Where the review list of a drop lies."""
    link = masked(store.uri(f"review/{partition(drop)}"))
    _quietly(lambda: create_link_artifact(link, link_text=f"review list of {drop}", key="review-list"))


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

    from pipeline.ledger import Ledger
    from pipeline.render.masklet import masklets
    from pipeline.render.timeline import draw_timeline
    from pipeline.scratch import scratch_folder
    from pipeline.storage.manifest import derived_key

    commit = Ledger(store).read(report.video_id, report.generation)
    names = (
        "frame_index", "pts_seconds", "object_id", "label", "visibility", "prompted", "uncertainty", "decision",
        "shot_index",
    )  # fmt: skip
    with store.open(derived_key("labels", commit.first_seen, report.video_id)) as file:
        labels = pq.ParquetFile(file)
        rows = labels.read(columns=[name for name in names if name in labels.schema_arrow.names])
    name = masked(report.video).rpartition("/")[2]
    key = f"review_images/{report.video_id}/{report.generation:06d}/timeline.png"  # ends with its generation
    with scratch_folder(settings) as folder:
        picture = draw_timeline(
            masklets(rows),
            Path(folder) / "timeline.png",
            title=name,
            threshold=settings.policy.max_uncertainty,
            certificate=None if settings.policy.certificate is None else str(settings.policy.certificate)[:12],
        )
        store.put_atomic(key, picture)
        data = picture.read_bytes()
    uri = masked(store.uri(key))
    about = f"Uncertainty of {name}, the video of this run with the most to review: {uri}"
    if store.path(key) is None:
        _quietly(lambda: create_image_artifact(image_url=uri, key="uncertainty-timeline", description=about))
    elif len(data) <= EMBEDDED_BYTES:
        text = f"{about}\n\n![timeline](data:image/png;base64,{base64.b64encode(data).decode()})"
        _quietly(lambda: create_markdown_artifact(text, key="uncertainty-timeline"))
    else:
        _quietly(lambda: create_markdown_artifact(about, key="uncertainty-timeline"))
    return uri


def _quietly(create: Callable[[], T]) -> T | None:
    """The artifact's id; None if the server took none, which must not cost the run its labels."""
    try:
        return create()
    except Exception as error:  # noqa: BLE001 - see above
        log.warning("no artifact: %s", error)
        return None
