"""Items: what a person is asked about, one stretch of flagged rows or one audited row each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import StorageError, UnavailableError
from pipeline.records import GAP_HEADS, read_metadata
from pipeline.side_by_side import side_by_side
from pipeline.storage.download import Entry
from pipeline.storage.manifest import partition
from pipeline.storage.objects import ObjectStore

READERS = 8
SOURCES = (*GAP_HEADS, "sam_score", "object_score", "stability", "temporal_iou", "area_change", "visibility")
"""Columns that say where the uncertainty of a row comes from."""
_COPIED = (
    "review_id", "video_id", "video_uri", "object_id", "label", "frame_index", "height", "width", "area_px",
    "uncertainty", "suggested_action", "review_probability", "frame_uri", "overlay_uri",
)  # fmt: skip
_COLUMNS = (*_COPIED, *SOURCES, "reasons", "audit", "bbox_xyxy", "representative", "rle")
_SHOWN = ("review_id", "frame_index", "rle")
_LIST = re.compile(r"review/drop=(?P<drop>[^/]+)/(?P<video>[0-9a-f]{64})\.parquet")


@dataclass(frozen=True)
class Item:
    """One thing to look at. Two items with the same item_id show the same.

    Args:
        review_id: of the review list; the same stretch has it again after it was labelled anew.
        video_id, video_uri, generation, drop, object_id, label: whose mask.
        kind: review, or audit for one accepted row that was drawn; never shown to who answers.
        frame_index: the representative frame; first_frame, last_frame: of the stretch; rows: its frames.
        height, width, fps: of the video.
        area_px, uncertainty, reasons, suggested_action, review_probability: of the row at the representative frame.
        sources: scores of that row by column name that say where the uncertainty comes from (gaps, sam_score,
            object_score, stability, temporal_iou, area_change, visibility); None where there is none.
        gain: uncertainty summed over the rows of the stretch; an unscored row counts as 1.
        frame_uri, overlay_uri: pictures of the representative frame, where they were made.
        masks: digest of the frames and masks of the stretch.
        box_xyxy: of the mask on the representative frame, pixels, right and lower edge exclusive; None if it is empty.
    """

    review_id: str
    video_id: str
    video_uri: str
    generation: int
    drop: str
    object_id: int
    label: str | None
    kind: Literal["review", "audit"]
    frame_index: int
    first_frame: int
    last_frame: int
    rows: int
    height: int
    width: int
    fps: float | None
    area_px: int | None
    uncertainty: float | None
    reasons: tuple[str, ...]
    suggested_action: str | None
    review_probability: float
    sources: dict[str, float | str | None] = field(default_factory=dict)
    gain: float = 0.0
    frame_uri: str | None = None
    overlay_uri: str | None = None
    box_xyxy: tuple[float, ...] | None = None
    masks: str = ""

    @property
    def item_id(self) -> str:
        """Made from what is shown: when the stretch or its masks change, another item takes its place.

        A generation that changes other masks of the video leaves it what it is.
        """
        parts = (self.review_id, self.frame_index, self.last_frame, self.rows, self.masks)
        return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()[:20]


def about(item: Item) -> dict[str, object]:
    """The fields of an `Answer` that tell what was shown."""
    return {
        "item_id": item.item_id, "review_id": item.review_id, "video_id": item.video_id,
        "generation": item.generation, "object_id": item.object_id, "label": item.label,
        "first_frame": item.first_frame, "last_frame": item.last_frame, "rows": item.rows,
        "audit": item.kind == "audit", "review_probability": item.review_probability,
        "uncertainty": item.uncertainty, "reasons": item.reasons,
    }  # fmt: skip


class ReviewList(NamedTuple):
    """What waits in one video.

    Args:
        key: of the list in the output; tag: names the version that was listed, which what was read is of or newer.
        items: by object and first frame; perhaps none.
    """

    key: str
    tag: str
    video_id: str
    generation: int
    items: list[Item]


def listed(store: ObjectStore, drop: str | None = None) -> dict[str, Entry]:
    """All review lists of an output, or of a drop, by key."""
    below = "review/" if drop is None else f"review/{partition(drop)}/"
    return {entry.key: entry for entry in store.entries(below) if _LIST.fullmatch(entry.key)}


def list_tag(entry: Entry) -> str:
    """What names the version of a review list; where the store does not, size and time do."""
    return entry.tag or f"{entry.size_bytes}:{entry.modified}"


def video_of(key: str) -> str:
    """Whose review list lies at a key."""
    match = _LIST.fullmatch(key)
    assert match is not None
    return match["video"]


def read_items(
    store: ObjectStore, drop: str | None = None, known: Mapping[str, str] | None = None
) -> Iterator[ReviewList]:
    """What waits in the videos of an output, in no order; a list that vanishes or is damaged is left out.

    Args:    drop: only this one. known: tags by key of lists that need not be read again.
    Raises:  UnavailableError if the store cannot be reached.
    """
    known = known or {}
    wanted = [entry for key, entry in listed(store, drop).items() if known.get(key) != list_tag(entry)]
    for found in side_by_side(lambda entry: _read(store, entry), wanted, READERS, "items"):
        if found is not None:
            yield found


def _read(store: ObjectStore, entry: Entry) -> ReviewList | None:
    match = _LIST.fullmatch(entry.key)
    assert match is not None
    try:
        with store.open(entry.key) as file:
            parquet = pq.ParquetFile(file)
            metadata = read_metadata(parquet.schema_arrow)
            rows = parquet.read(columns=list(_COLUMNS))
    except UnavailableError:
        raise
    except StorageError:  # forgotten since it was listed; or damaged, which deriving again mends
        return None
    generation, fps = int(metadata["generation"]), metadata.get("fps")
    found = _items(rows, generation, unquote(match["drop"]), fps)
    return ReviewList(entry.key, list_tag(entry), match["video"], generation, found)


def _items(rows: pa.Table, generation: int, drop: str, fps: float | None) -> list[Item]:
    """One item for each review_id among rows of REVIEW."""
    gain = pc.fill_null(rows.column("uncertainty").cast(pa.float64()), 1.0)
    grouped = rows.append_column("gain", gain).group_by("review_id")
    kinds = [("frame_index", "min"), ("frame_index", "max"), ("frame_index", "count"), ("gain", "sum")]
    sums = {row["review_id"]: row for row in grouped.aggregate(kinds).to_pylist()}
    masks: dict[str, Any] = {}
    for review_id, frame, mask in zip(*(rows.column(name).to_pylist() for name in _SHOWN), strict=True):
        masks.setdefault(review_id, hashlib.sha256()).update(b"%d:%b;" % (frame, mask or b""))
    seen = rows.filter(rows.column("representative")).to_pylist()
    found = [_item(row, sums[row["review_id"]], generation, drop, fps) for row in seen]
    found = [replace(one, masks=masks[one.review_id].hexdigest()[:20]) for one in found]
    return sorted(found, key=lambda one: (one.object_id, one.first_frame))


def _item(row: dict[str, Any], sums: dict[str, Any], generation: int, drop: str, fps: float | None) -> Item:
    return Item(
        **{name: row[name] for name in _COPIED},
        generation=generation, drop=drop, fps=fps, kind="audit" if row["audit"] else "review",
        first_frame=sums["frame_index_min"], last_frame=sums["frame_index_max"], rows=sums["frame_index_count"],
        gain=sums["gain_sum"], reasons=tuple(row["reasons"]), sources={name: row[name] for name in SOURCES},
        box_xyxy=None if row["bbox_xyxy"] is None else tuple(row["bbox_xyxy"]),
    )  # fmt: skip
