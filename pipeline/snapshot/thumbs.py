"""Thumbnails of a snapshot, read back from its own files: the masks that are in it solid, the ignored ones hatched."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline.render.overlay import MaskView, draw_frame
from pipeline.review_images import jpeg_bytes
from pipeline.rle import decode
from pipeline.snapshot.manifest import Look, Manifest, Video, parts_with
from pipeline.storage.objects import ObjectStore

MOST = 12
SIDE_PX = 400
QUALITY = 82
NO_IMAGE = 56  # grey of a picture that the snapshot does not hold


@dataclass(frozen=True)
class Thumb:
    """One picture of the card: a frame as JPEG, and what stands under it."""

    jpeg: bytes = field(repr=False)
    heading: str
    caption: str
    split: str


def draw_thumbs(store: ObjectStore, folder: str, manifest: Manifest) -> list[Thumb]:
    """At most `MOST` frames, from as many drops, splits and videos as there are; the same ones each time."""
    return [_draw(store, folder, manifest, video, look) for video, look in itertools.islice(_chosen(manifest), MOST)]


def _chosen(manifest: Manifest) -> Iterator[tuple[Video, Look]]:
    """Videos by turns: first one of each drop and split, then the next of each; another frame when all had a turn."""
    groups: dict[tuple[str, str], list[Video]] = {}
    for video in sorted(manifest.videos, key=lambda one: hashlib.sha256(one.video_id.encode()).digest()):
        if video.looks:
            groups.setdefault((video.drop, video.split), []).append(video)
    turns = [video for turn in itertools.zip_longest(*groups.values()) for video in turn if video is not None]
    for number in range(max((len(video.looks) for video in turns), default=0)):
        yield from ((video, video.looks[number]) for video in turns if number < len(video.looks))


def _draw(store: ObjectStore, folder: str, manifest: Manifest, video: Video, look: Look) -> Thumb:
    row = _row(store, folder, manifest, video, look.frame_index)
    size = row["height"], row["width"]
    if row["image"] is None:
        rgb_hw3: NDArray[np.uint8] = np.full((*size, 3), NO_IMAGE, np.uint8)
    else:
        rgb_hw3 = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB"))
    ignored = [
        MaskView(-1 - number, None, decode(rle, *size), "review", "visible", None)
        for number, rle in enumerate(row["ignore"])
    ]
    objects = [
        MaskView(one["object_id"], one["label"], decode(one["rle"], *size), "accept", "visible", one["uncertainty"])
        for one in row["objects"]
    ]
    picture = draw_frame(rgb_hw3, [*ignored, *objects], scale=SIDE_PX / max(size), tags=False)
    labels = sorted({one["label"] for one in row["objects"] if one["label"]})
    worst = max((one["uncertainty"] for one in row["objects"] if one["uncertainty"] is not None), default=None)
    parts = [f"frame {look.frame_index}", f"{len(objects)} in" + (f", {len(ignored)} ignored" if ignored else "")]
    if labels:
        parts.append(", ".join(labels[:3]) + (" …" if len(labels) > 3 else ""))
    if worst is not None:
        parts.append(f"uncertainty up to {worst:.2f}")
    name = PurePosixPath(video.video_uri).name
    return Thumb(jpeg_bytes(picture, QUALITY), name, " · ".join(parts), video.split)


def _row(store: ObjectStore, folder: str, manifest: Manifest, video: Video, frame_index: int) -> dict[str, Any]:
    """One frame; of a file only the row group that holds it is read."""
    wanted = [("video_id", "==", video.video_id), ("frame_index", "==", frame_index)]
    for part in parts_with(manifest, video.video_id):
        with store.open(f"{folder}{part.key}") as file:
            rows: list[dict[str, Any]] = pq.read_table(file, filters=wanted).to_pylist()
        if rows:
            return rows[0]
    raise AssertionError(f"frame {frame_index} of {video.video_id} was written and is not there")
