"""The manifest of a snapshot: the JSON that is written last and makes it true, naming every file with its checksum."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.certificate import UNCERTIFIED
from pipeline.errors import StorageError
from pipeline.storage.objects import ObjectStore

VERSION = 1
MANIFEST, CARD, PAGE = "manifest.json", "card.json", "card.html"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PART_KEY = r"^(train|val)/part-\d{5,}-[0-9a-f]{12}\.parquet$"

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


OBJECT = pa.struct(
    [
        _required("object_id", pa.int32()),
        pa.field("label", pa.string()),
        _required("rle", pa.binary()),  # COCO compressed counts at the image's size; no pixel: the object is absent
        _required("weight", pa.float32()),
        pa.field("calibrated_iou", pa.float32()),
        pa.field("uncertainty", pa.float32()),
        _required("given", pa.bool_()),  # a person drew this very mask
        _required("decision", pa.string()),
    ]
)

FRAME = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("drop", pa.string()),
        _required("frame_index", pa.int32()),
        _required("pts_seconds", pa.float64()),
        _required("height", pa.int32()),  # of the image and of every mask
        _required("width", pa.int32()),
        pa.field("image", pa.binary()),  # JPEG; null with --no-images
        _required("objects", pa.list_(_required("element", OBJECT))),
        _required("ignore", pa.list_(_required("element", pa.binary()))),  # masks of objects that were not accepted
        _required("unplaced", pa.int32()),  # objects that were not accepted and of which nobody knows where they are
    ]
)
"""One row of a snapshot: a frame with at least one accepted object."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Part(_Frozen):
    """One Parquet file.

    Args:
        key: relative to the snapshot's folder; its name ends in the first digits of its checksum, so that a rewritten
            part is another object and no two writers meet.
        row_groups: frames of each row group, in order.
        videos: the video_ids in it, in order.
    """

    key: str = Field(pattern=PART_KEY)
    split: Split
    rows: int
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str
    videos: tuple[str, ...]


class Look(_Frozen):
    """A frame worth a thumbnail: many objects, well to be seen."""

    frame_index: int
    objects: int
    area_px: int


class Video(_Frozen):
    """What the snapshot holds of one video, and what its labels say; all that the card adds up.

    Args:
        frames: rows of the snapshot; duplicates: frames left out because they equal the one before.
        by_decision: rows of the labels. by_label, by_source, by_origin: objects in the snapshot.
        left_out: rows of the labels that are not in, by reason.
        uncertainty: objects in the snapshot by uncertainty, `HISTOGRAM_BINS` bins over 0..1.
        made_by: names its entry of `Manifest.makers`.
        note: why not all its frames are in; None if they are.
        certified: whether evidence stood behind its thresholds when the snapshot was made; evidence: which, or why not.
    """

    video_id: str
    video_uri: str
    drop: str
    split: Split
    generation: int
    policy_id: str
    made_by: str
    frames: int = 0
    duplicates: int = 0
    by_decision: dict[str, int] = {}
    by_label: dict[str, int] = {}
    by_source: dict[str, int] = {}
    by_origin: dict[str, int] = {}
    left_out: dict[str, int] = {}
    uncertainty: tuple[int, ...] = ()
    looks: tuple[Look, ...] = ()
    note: str | None = None
    certified: bool = False
    evidence: str = UNCERTIFIED.text


class LeftOut(_Frozen):
    """A video that is not in the snapshot, and why."""

    video_id: str
    video_uri: str
    drop: str
    reason: str


class Manifest(_Frozen):
    """What a snapshot is.

    Args:
        options: what it was asked for.
        policies: by policy_id, as the labels tell them. makers: model, heads and decoder, by their hash.
        removed: videos taken out after it was published.
        cards: SHA-256 of card.json and card.html.
    """

    version: int = VERSION
    name: str
    created_at: str
    options: dict[str, Any]
    software: dict[str, str]
    parts: tuple[Part, ...]
    videos: tuple[Video, ...]
    left_out: tuple[LeftOut, ...]
    policies: dict[str, dict[str, Any]]
    makers: dict[str, dict[str, Any]]
    removed: int = 0
    cards: dict[str, str] = {}

    @property
    def frames(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts)

    def names(self, video_id: str) -> bool:
        """Whether anything in the snapshot tells of this video."""
        return video_id in self.named

    @property
    def named(self) -> frozenset[str]:
        """The video_ids of all that it tells of: videos that are in and that were left out."""
        return frozenset(one.video_id for one in self.videos) | {one.video_id for one in self.left_out}


def folder_of(name: str) -> str:
    """The key prefix of a snapshot.

    Raises: StorageError for a name that is none.
    """
    if not NAME.fullmatch(name):
        step = "use letters, digits, dots, dashes and underscores"
        raise StorageError("a name of a snapshot", repr(name), step)
    return f"snapshots/{name}/"


def read_manifest(store: ObjectStore, folder: str = "") -> Manifest:
    """The manifest of a published snapshot.

    Args:    folder: its key prefix below the store's root.
    Raises:  StorageError if there is none, or it is damaged or of a later release.
    """
    if store.version(f"{folder}{MANIFEST}") is None:
        got = "no manifest: nothing there, or a run that did not end"
        raise StorageError(f"a snapshot at {store.url}/{folder}".rstrip("/"), got, "see docs/snapshots.md")
    return parsed(store.get(f"{folder}{MANIFEST}"), store.uri(f"{folder}{MANIFEST}"))


def parsed(data: bytes, uri: str) -> Manifest:
    """A manifest from its bytes. Raises StorageError if it is damaged or of a later release."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        got = f"{uri}: {error.error_count()} wrong fields"
        raise StorageError("a readable manifest", got, "make the snapshot again") from error
    if manifest.version != VERSION:
        raise StorageError(f"a snapshot of version {VERSION}", f"{manifest.version} at {uri}", "update masksieve")
    return manifest


def as_bytes(manifest: Manifest) -> bytes:
    """A manifest as it is stored."""
    return manifest.model_dump_json(indent=1).encode()


def objects_by_name(store: ObjectStore) -> dict[str, list[str]]:
    """Every object below `snapshots/`, by the name of its snapshot, published or not."""
    found: dict[str, list[str]] = {}
    for key in store.list("snapshots/"):
        found.setdefault(key.split("/")[1], []).append(key)
    return found


def split_of(video_id: str, val_share: float) -> Split:
    """Where a video belongs, by its content alone: no other video moves it, and a larger share only adds to val.

    Args:    val_share: of the videos, 0..1.
    """
    digest = hashlib.sha256(f"masksieve split {video_id}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < val_share * 2**64 else "train"


def parts_with(manifest: Manifest, video_id: str) -> Iterator[Part]:
    """The parts that hold frames of a video."""
    return (part for part in manifest.parts if video_id in part.videos)
