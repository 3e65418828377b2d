"""What one video is to the mix of sources that a certificate was issued for: some numbers of its masks and form."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import equals, floats, given
from pipeline.ledger import Ledger
from pipeline.records import read_metadata
from pipeline.review.as_made import answered, as_made, decided_as_made, outdated
from pipeline.storage.objects import ObjectStore
from usam.drift import FEATURES

COLUMNS = ("object_id", "visibility", "prompted", "uncertainty", "area_px", "height", "width")
MOST_VIDEOS = 300
DIGITS = 5


def video_features(labels: pa.Table, fps: float | None) -> list[float]:
    """A video by `usam.drift.FEATURES`.

    Args:    labels: all its rows, with `COLUMNS`. fps: of the file.
    Returns: NaN where it has no such number: without a scored row, a visible one, or a row at all.
    """
    predicted = ~equals(labels, "visibility", "untracked") & ~given(labels)
    visible, uncertainty = predicted & equals(labels, "visibility", "visible"), floats(labels, "uncertainty")[predicted]
    pixels = floats(labels, "height") * floats(labels, "width")
    return [
        _mean(uncertainty[np.isfinite(uncertainty)]),
        _mean(equals(labels, "visibility", "absent")[predicted].astype(float)),
        _mean(floats(labels, "area_px")[visible] / pixels[visible]),
        float(len(np.unique(floats(labels, "object_id")))),
        math.nan if fps is None else float(fps),
        _mean(pixels[:1] / 1e6),
    ]


def mix_reference(store: ObjectStore, keys: Collection[str]) -> dict[str, Any] | None:
    """The `mix` of a certificate: features of calibrating videos, without their names.

    Args:    keys: their files in `labels/`; of more than `MOST_VIDEOS` so many are taken, by a hash of the key.
    Returns: JSON values; None for fewer than two videos.
    Raises:  StorageError for labels that cannot be read.
    """
    chosen = sorted(keys, key=lambda key: hashlib.sha256(f"mix:{key}".encode()).digest())[:MOST_VIDEOS]
    ledger, videos = Ledger(store), []
    for key in chosen:
        with store.open(key) as raw:
            file = pq.ParquetFile(raw)
            metadata, labels = read_metadata(file.schema_arrow), file.read(columns=list(COLUMNS))
        if answered(labels):
            commit = ledger.read(PurePosixPath(key).stem, metadata["generation"])
            if outdated(as_made(ledger, commit), commit):
                continue
            labels = decided_as_made(store, ledger, commit, metadata)
        videos.append(video_features(labels, metadata.get("fps")))
    if len(videos) < 2:
        return None
    rows = [[None if math.isnan(value) else float(f"{value:.{DIGITS}g}") for value in video] for video in videos]
    return {"features": list(FEATURES), "videos": rows}


def reference_of(mix: dict[str, Any] | None) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """The reference as (videos, features); None if there is none of these features."""
    if mix is None or mix.get("features") != list(FEATURES):
        return None
    rows: Sequence[Sequence[float | None]] = mix["videos"]
    return np.array([[math.nan if value is None else value for value in row] for row in rows], np.float64)


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(values.mean()) if len(values) else math.nan
