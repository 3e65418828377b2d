"""The labels of one video as rows of a snapshot: which frames are in, their objects, and what is to be left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline.columns import GIVEN
from pipeline.records import read_metadata
from pipeline.rle import decode, empty_mask, encode_mask
from pipeline.snapshot.manifest import Look

HISTOGRAM_BINS = 20
LOOKS = 4
"""Frames of a video that may become thumbnails, one from each stretch of its length."""
BATCH_ROWS = 2048
COLUMNS = (
    "frame_index", "pts_seconds", "object_id", "label", "height", "width", "rle", "area_px", "visibility", "prompted",
    "auto", "score_source", "calibrated_iou", "uncertainty", "decision", "weight",
)  # fmt: skip

Row = dict[str, Any]


@dataclass
class Tally:
    """What was counted of one video; the fields of `manifest.Video` of the same names."""

    frames: int = 0
    duplicates: int = 0
    by_decision: Counter[str] = field(default_factory=Counter)
    by_label: Counter[str] = field(default_factory=Counter)
    by_source: Counter[str] = field(default_factory=Counter)
    by_origin: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    histogram: list[int] = field(default_factory=lambda: [0] * HISTOGRAM_BINS)
    looks: dict[int, Look] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """For `manifest.Video`; counts in one order, so that equal videos give equal bytes."""
        counters = ("by_decision", "by_label", "by_source", "by_origin", "left_out")
        return {
            "frames": self.frames, "duplicates": self.duplicates, "uncertainty": tuple(self.histogram),
            "looks": tuple(self.looks[stretch] for stretch in sorted(self.looks)),
            **{name: dict(sorted(getattr(self, name).items())) for name in counters},
        }  # fmt: skip


class VideoLabels:
    """The labels of one video in a local file.

    Args:
        path: a file of `labels/`.
        decisions: rows with one of these are objects of the snapshot.

    Attributes:
        wanted_n: (n,) int64 frame_index of the frames that have an object, ascending.
        tally: counts of the rows; `frames` and what goes with it grow as `take` is called.
    """

    def __init__(self, path: Path, decisions: Collection[str]) -> None:
        self._file, self._decisions = pq.ParquetFile(path), frozenset(decisions)
        self.metadata = read_metadata(self._file.schema_arrow)
        self.tally = Tally()
        self.wanted_n = self._survey()

    def frames(self) -> Iterator[list[Row]]:
        """The rows of each wanted frame, in order; memory does not grow with the video."""
        there = [name for name in COLUMNS if name in self._file.schema_arrow.names]
        wanted = iter(self.wanted_n.tolist())
        frame = next(wanted, None)
        rows: list[Row] = []
        for batch in self._file.iter_batches(BATCH_ROWS, columns=there):
            kept = batch.filter(pa.array(np.isin(batch.column("frame_index").to_numpy(), self.wanted_n)))
            for row in kept.to_pylist():
                if row["frame_index"] != frame:
                    yield rows
                    frame, rows = next(wanted), []
                rows.append(row)
        if rows:
            yield rows

    def is_object(self, row: Row) -> bool:
        """Whether a row is an object of the snapshot: so decided, and looked for on its frame."""
        return row["decision"] in self._decisions and row["visibility"] != "untracked"

    def take(self, rows: Iterable[Row]) -> None:
        """Count a frame that is in the snapshot."""
        objects = [row for row in rows if self.is_object(row)]
        for row in objects:
            self.tally.by_label[row["label"] or "(no label)"] += 1
            self.tally.by_source[row["score_source"] or "none: given by a person"] += 1
            self.tally.by_origin[_origin(row)] += 1
            if row["uncertainty"] is not None:
                self.tally.histogram[min(int(row["uncertainty"] * HISTOGRAM_BINS), HISTOGRAM_BINS - 1)] += 1
        self.tally.frames += 1
        frame_index = objects[0]["frame_index"]
        seen = [row for row in objects if row["visibility"] == "visible"]
        look = Look(frame_index=frame_index, objects=len(seen), area_px=sum(row["area_px"] or 0 for row in seen))
        stretch = int(np.searchsorted(self.wanted_n, frame_index)) * LOOKS // self.wanted_n.size
        best = self.tally.looks.get(stretch)
        if best is None or (best.objects, best.area_px) < (look.objects, look.area_px):
            self.tally.looks[stretch] = look

    def _survey(self) -> NDArray[np.int64]:
        """Frames that have an object, and the counts of all rows, in one pass over the light columns."""
        wanted: list[NDArray[np.int32]] = []
        names = ["frame_index", "decision", "visibility", "reasons"]
        for batch in self._file.iter_batches(BATCH_ROWS, columns=names):
            decision = batch.column("decision")
            chosen = pc.and_(
                pc.is_in(decision, pa.array(sorted(self._decisions))),
                pc.not_equal(batch.column("visibility"), "untracked"),
            )
            self.tally.by_decision.update(decision.to_pylist())
            left = batch.filter(pc.invert(chosen))
            for kind, reasons in zip(
                left.column("decision").to_pylist(), left.column("reasons").to_pylist(), strict=True
            ):
                self.tally.left_out[f"{kind}: {_kind(reasons)}"] += 1
            wanted.append(np.unique(batch.filter(chosen).column("frame_index").to_numpy()))
        return np.unique(np.concatenate([*wanted, np.zeros(0, np.int32)])).astype(np.int64)


REASONS = (
    "untracked", "rejected by a reviewer", "object absent", "no score", "uncertainty", "never accepted", "no model gap",
    "model gap", "no prompt gap", "prompt gap", "no task gap", "task gap", "object score", "temporal break",
    "area change", "area share", "area", "across a scene cut", "label", "held",
)  # fmt: skip
"""What the reasons of `pipeline.route.decide` begin with."""


def _kind(reasons: list[str] | None) -> str:
    """The first reason without its numbers."""
    first = (reasons or ["no reason"])[0]
    return next((kind for kind in REASONS if first.startswith(kind)), first)


def _origin(row: Row) -> str:
    """Where an object's mask on this frame comes from."""
    names = {"mask": "mask given by a person", "click": "prompted by a click", "box": "prompted by a box"}
    names |= {"auto": "found automatically", "answer": "confirmed or given by a reviewer"}
    if row["prompted"] is None:
        return "followed, found automatically" if row.get("auto") else "followed from a prompt"
    return names.get(row["prompted"], str(row["prompted"]))


def image_size(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """Height and width of the stored image, pixels: the video's, unless its longer side is too long."""
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return height, width
    return max(1, round(height * max_side / longest)), max(1, round(width * max_side / longest))


def frame_row(
    video_id: str, drop: str, rows: list[Row], labels: VideoLabels, size: tuple[int, int], image: bytes | None
) -> Row:
    """A row of `manifest.FRAME`.

    Args:    rows: of one frame, each object one.
             size: height and width of the image.
             image: as JPEG, None without.
    """
    objects = [row for row in rows if labels.is_object(row)]
    others = [row for row in rows if not labels.is_object(row)]
    seen = [row for row in others if row["visibility"] == "visible" and row["rle"] is not None]
    return {
        "video_id": video_id, "drop": drop, "frame_index": rows[0]["frame_index"],
        "pts_seconds": rows[0]["pts_seconds"], "height": size[0], "width": size[1], "image": image,
        "objects": [
            {
                "object_id": row["object_id"], "label": row["label"], "rle": scaled_mask(row, size),
                "weight": row["weight"], "calibrated_iou": row["calibrated_iou"], "uncertainty": row["uncertainty"],
                "given": row["prompted"] in GIVEN, "decision": row["decision"],
            }
            for row in objects
        ],
        "ignore": [scaled_mask(row, size) for row in seen],
        "unplaced": len(others) - len(seen),
    }  # fmt: skip


def scaled_mask(row: Row, size: tuple[int, int]) -> bytes:
    """The mask of a row at the image's size, as COCO compressed counts. A mask with a pixel keeps one."""
    if row["rle"] is None:
        return empty_mask(*size).counts
    if (row["height"], row["width"]) == size:
        counts: bytes = row["rle"]
        return counts
    mask_hw = decode(row["rle"], row["height"], row["width"])
    if not mask_hw.any():
        return empty_mask(*size).counts
    share = Image.fromarray(mask_hw.astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.BOX)
    share_hw = np.asarray(share)
    small_hw = share_hw >= 128
    if not small_hw.any():
        small_hw = share_hw == share_hw.max() if share_hw.any() else _at_the_middle(mask_hw, size)
    return encode_mask(small_hw).counts


def _at_the_middle(mask_hw: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """One pixel where a mask lies that is too small for any."""
    small_hw = np.zeros(size, bool)
    ys, xs = np.nonzero(mask_hw)
    middle = len(ys) // 2
    small_hw[ys[middle] * size[0] // mask_hw.shape[0], xs[middle] * size[1] // mask_hw.shape[1]] = True
    return small_hw


def same_labels(before: list[Row] | None, rows: list[Row]) -> bool:
    """Whether two frames have the same objects with the same masks and decisions."""
    names = ("object_id", "label", "rle", "visibility", "decision")
    return before is not None and [[row[name] for name in names] for row in before] == [
        [row[name] for name in names] for row in rows
    ]
