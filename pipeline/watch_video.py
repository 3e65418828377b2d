"""A video as a watch reads it: what it looks like, by its labels, and which of its masks were audited."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audits import Audited
from pipeline.certificate import Certificate
from pipeline.columns import equals, given
from pipeline.errors import StorageError, UnavailableError
from pipeline.ledger import Commit, Ledger
from pipeline.mix import COLUMNS, video_features
from pipeline.records import read_metadata
from pipeline.review.as_made import as_made, decided_as_made, outdated
from pipeline.storage.manifest import derived_key
from pipeline.storage.objects import ObjectStore
from pipeline.watch_record import video_mark

AUDIT_COLUMNS = ("review_id", "frame_index", "object_id", "label", "review_probability", "area_px")


@dataclass(frozen=True)
class WatchedVideo:
    """A video that a certificate covers.

    Args:
        mark: stands for it. at: when its facts were first committed, before any correction.
        features: by `usam.drift.FEATURES`.
        audited: accepted rows that were drawn. groups: the certificate's group of each.
        scale: weight of a row: below 1 where the video has more rows than count; where videos count alike, what makes
            the rows of each weigh as much as those of any other.
    """

    mark: str
    at: datetime
    features: list[float]
    audited: list[Audited]
    groups: list[int]
    scale: float


def read_video(store: ObjectStore, commit: Commit, certificate: Certificate) -> WatchedVideo | None:
    """Read a video.

    Returns: None if its labels are not there or not decided by this certificate, or it did not hold for them: made by
             another model, heads or settings, or decided by other rules or thresholds. Also if people corrected it
             before it was labelled or scored anew.
    Raises:  UnavailableError if the store does not answer.
    """
    ledger = Ledger(store)
    try:
        with store.open(derived_key("labels", commit.first_seen, commit.video_id)) as raw:
            file = pq.ParquetFile(raw)
            metadata = read_metadata(file.schema_arrow)
            decided = (metadata.get("policy") or {}).get("certificate") == certificate.id and metadata.get("certified")
            made = as_made(ledger, commit)
            if not decided or metadata.get("generation") != commit.generation or outdated(made, commit):
                return None
            labels = file.read(columns=list(COLUMNS))
        if commit.corrects is not None:  # an audited mask that was found bad is no longer there
            labels = decided_as_made(store, ledger, commit, metadata)
            audited = _drawn(commit, labels, metadata["policy"]["audit_rate"])
        else:
            audited = _audited(store, commit) if metadata["counts"]["audit"] else []
    except UnavailableError:
        raise
    except StorageError:
        return None
    most = certificate.max_rows_per_video
    predicted = ~equals(labels, "visibility", "untracked") & ~given(labels)
    return WatchedVideo(
        mark=video_mark(commit.video_id),
        at=made.finished_at,
        features=video_features(labels, metadata.get("fps")),
        audited=audited,
        groups=[_group(certificate, commit.first_seen, row.label, metadata["model"]["name"]) for row in audited],
        scale=min(math.inf if certificate.estimand == "videos" else 1.0, most / max(1, int(predicted.sum()))),
    )


def _audited(store: ObjectStore, commit: Commit) -> list[Audited]:
    """The audited rows of the review list."""
    with store.open(derived_key("review", commit.first_seen, commit.video_id)) as raw:
        rows = pq.read_table(raw, columns=list(AUDIT_COLUMNS), filters=[("audit", "==", True)]).to_pylist()
    return [
        Audited(
            row["review_id"], commit.video_id, row["frame_index"], row["object_id"], row["label"],
            row["review_probability"], not row["area_px"],
        )
        for row in rows
    ]  # fmt: skip


def _drawn(commit: Commit, rows: pa.Table, rate: float) -> list[Audited]:
    """The rows that an audit drew among the masks as they were made."""
    drawn = rows.filter(rows["audit"]).select(["frame_index", "object_id", "label", "area_px"]).to_pylist()
    return [
        Audited("", commit.video_id, row["frame_index"], row["object_id"], row["label"], rate, not row["area_px"])
        for row in drawn
    ]


def _group(certificate: Certificate, source: str, label: str | None, model: str) -> int:
    """The first group of the certificate that a row matches; the last one matches every row."""
    for number, group in enumerate(certificate.groups):
        match = group.match
        if match.source in (None, source) and match.label in (None, label) and match.model in (None, model):
            return number
    return len(certificate.groups) - 1
