"""The Arrow schemas of every layer: what a row of facts, of labels and of review is.

One row per video x frame x object, sorted by frame_index and object_id. `drop` is the Hive partition
(`labels/drop=NAME/...`) and therefore a column of the path, not of the file: pandas and
`pyarrow.parquet.read_table` refuse a directory whose files repeat the partition column. A file read by
itself still names its drop, in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.errors import StorageError
from usam import targets

SCHEMA_VERSION = "4"
TOKENS_VERSION = 2
"""Of the tokens sidecar alone, so that facts without tokens stay what they are. Version 1 lacks `features`."""
METADATA_PREFIX = "masksieve."

IOU_HEADS = (*targets.IOU_HEADS, targets.TRACKED_HEAD)
GAP_HEADS = targets.GAP_HEADS
HEAD_COLUMNS = (*IOU_HEADS[:-1], *GAP_HEADS, IOU_HEADS[-1])

LOW_CARDINALITY = ("video_id", "video_uri", "label", "visibility", "prompted", "direction", "score_source")
"""Columns that Parquet dictionary-encodes; their Arrow type stays plain string so that row groups can be pruned."""


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_BBOX = pa.list_(pa.field("element", pa.float32(), nullable=False))

MASKS = pa.schema(
    [
        _required("video_id", pa.string()),  # SHA-256 of the video's bytes
        _required("video_uri", pa.string()),
        _required("frame_index", pa.int32()),  # presented frame of the source, from 0, under any stride
        _required("pts_seconds", pa.float64()),
        _required("object_id", pa.int32()),
        pa.field("label", pa.string()),
        _required("height", pa.int32()),
        _required("width", pa.int32()),
        pa.field("rle", pa.binary()),  # COCO compressed counts; absent: the empty mask; untracked: null
        pa.field("area_px", pa.int64()),
        pa.field("bbox_xyxy", _BBOX),  # pixels, right and lower edge exclusive; null when there is no pixel
        _required("visibility", pa.string()),
        pa.field("prompted", pa.string()),
        pa.field("prompt_xyxy", _BBOX),  # the box that the automatic prompter put on this frame, pixels; else null
        _required("auto", pa.bool_()),  # the automatic prompter found the object, no person pointed at it
        _required("direction", pa.string()),
        pa.field("sam_score", pa.float32()),
        pa.field("object_score", pa.float32()),  # logit: above 0 the model says that the object is there
        pa.field("stability", pa.float32()),
        pa.field("entropy_bits", pa.float32()),
        *(pa.field(name, pa.float32()) for name in (*HEAD_COLUMNS, targets.STACKED)),
        pa.field("temporal_iou", pa.float32()),
        pa.field("area_change", pa.float32()),
        _required("shot_index", pa.int32()),  # scene cuts before this frame
        _required("across_cut", pa.bool_()),  # a cut lies between this row and every prompted frame of its object
        pa.field("score_source", pa.string()),  # the column that holds the predicted IoU
    ]
)
"""The facts, immutable."""

CANDIDATES = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("frame_index", pa.int32()),
        _required("object_id", pa.int32()),
        _required("candidate_index", pa.int8()),  # 0, 1, 2
        _required("height", pa.int32()),  # of the low-resolution mask
        _required("width", pa.int32()),
        _required("rle", pa.binary()),
        pa.field("sam_score", pa.float32()),
        _required("chosen", pa.bool_()),
    ]
)
"""Sidecar: the three low-resolution candidate masks, one row each."""

TOKENS = pa.schema(
    [
        _required("video_id", pa.string()),
        _required("frame_index", pa.int32()),
        _required("object_id", pa.int32()),
        _required("chosen", pa.int8()),  # the chosen mask, 0..3 as the decoder numbers them
        _required("tokens", pa.binary()),  # 2 d little-endian fp16: the IoU token, then the chosen mask's token
        _required("features", pa.binary()),  # little-endian float32, the track features that the file's metadata names
    ]
)
"""Sidecar, opt-in: what heads and stacker read, so that new ones need no propagation."""

DECISION = pa.schema(
    [
        pa.field("calibrated_iou", pa.float32()),  # null until a calibration exists
        pa.field("uncertainty", pa.float32()),  # 0..1, higher is worse; null for given, untracked and unscored rows
        _required("decision", pa.string()),
        _required("reasons", pa.list_(pa.field("element", pa.string(), nullable=False))),
        pa.field("suggested_action", pa.string()),
        _required("audit", pa.bool_()),
        _required("review_probability", pa.float32()),
        _required("weight", pa.float32()),
        _required("policy_id", pa.string()),
    ]
)
"""What a policy adds to a row of facts."""

LABELS = pa.schema([*MASKS, *DECISION])
"""Facts and decisions, every row; trainers filter on `decision` or multiply by `weight`."""

REVIEW = pa.schema(
    [
        *LABELS,
        _required("review_id", pa.string()),  # one per stretch of consecutive flagged frames of one object
        _required("representative", pa.bool_()),  # the one frame of the stretch to look at first
        pa.field("frame_uri", pa.string()),
        pa.field("overlay_uri", pa.string()),
    ]
)
"""Rows that a person should see: decision `review`, and the audited ones among the accepted."""


# What a column says in facts of an older schema, which lack it: in version 1 no object was found automatically, and no
# cut was looked for, as with `propagate.on_cut: ignore`; up to version 2 the box of an automatic prompt was not kept;
# up to version 3 no stacker scored frames.
_ADDED: dict[str, dict[str, Any]] = {
    "1": {"prompt_xyxy": None, "auto": False, "shot_index": 0, "across_cut": False, "iou_stacked": None},
    "2": {"prompt_xyxy": None, "iou_stacked": None},
    "3": {"iou_stacked": None},
}


def upgraded(facts: pa.RecordBatch, version: str) -> pa.RecordBatch:
    """Facts of an older schema with the columns of this one, in its order.

    Args:    facts: some or all columns of the MASKS of that version; columns that later versions added are filled in.
             version: `schema_version` of the file.
    Raises:  StorageError for a version that this release does not know.
    """
    if version == SCHEMA_VERSION:
        return facts
    if version not in _ADDED:
        known = ", ".join([*_ADDED, SCHEMA_VERSION])
        raise StorageError(
            f"facts of schema version {known}", f"version {version!r}", "update masksieve, or label again"
        )
    columns = dict(zip(facts.schema.names, facts.columns, strict=True))
    for name, value in _ADDED[version].items():
        columns[name] = pa.array([value] * facts.num_rows, MASKS.field(name).type)
    schema = pa.schema([field for field in MASKS if field.name in columns])
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def file_metadata(values: Mapping[str, Any]) -> dict[bytes, bytes]:
    """File metadata in one canonical form, so that equal values give equal bytes.

    Args:    values: names and JSON values: checksums, configuration, versions. Never a run id, a time or a host:
             these belong to the commit, or a second run would not be byte-identical.
    Returns: Arrow schema metadata, keys prefixed with `masksieve.` and sorted; schema_version included.
    """
    full = {"schema_version": SCHEMA_VERSION, **values}
    return {
        f"{METADATA_PREFIX}{name}".encode(): json.dumps(full[name], sort_keys=True, ensure_ascii=False).encode()
        for name in sorted(full)
    }


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """The values that `file_metadata` put on a schema, without the prefix."""
    prefix = METADATA_PREFIX.encode()
    return {
        key[len(prefix) :].decode(): json.loads(value)
        for key, value in (schema.metadata or {}).items()
        if key.startswith(prefix)
    }
