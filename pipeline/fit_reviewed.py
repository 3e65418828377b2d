"""Rows to fit heads on, from masks that a person judged and the tokens that `masksieve label` kept of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import rle
from pipeline.checkpoints import model_size
from pipeline.errors import HeadError, StorageError
from pipeline.ledger import Commit, Ledger
from pipeline.models import LoadedModel
from pipeline.records import read_metadata
from pipeline.review.as_made import as_made, outdated
from pipeline.storage.manifest import VIDEO_ID
from pipeline.storage.objects import ObjectStore
from pipeline.tokens import token_offset
from usam.datasets.rle import Runs
from usam.errors import DatasetError
from usam.shard import Plan, Shard, ShardWriter

log = logging.getLogger(__name__)

KEYS = ("video_id", "frame_index", "object_id")
_TRUE_MASK = ("rle", "height", "width")
_FACTS = ("frame_index", "object_id", "height", "width", "rle", "area_px", "visibility", "prompted", "sam_score")
Judged = dict[tuple[int, int], dict[str, Any]]


def read_reviewed(path: Path) -> dict[str, Judged]:
    """Rows that a person judged, by video.

    Args:    path: a Parquet file, or a folder of them: video_id, frame_index, object_id, and either `iou` (of the
             predicted mask with the truth) or the true mask as COCO counts `rle` with `height` and `width`. Where both
             are there `iou` counts, for `rle` may still be the prediction.
    Returns: by video_id, then (frame_index, object_id): the row. Rows that say nothing (null or NaN) are left out.
    Raises:  HeadError for a missing or unreadable file, missing columns, an IoU outside of [0, 1], a row that comes
             twice and differs, or no row that says anything.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise HeadError(f"reviewed rows as Parquet at {path}", "none", "give a Parquet file or a folder of them")
    found: dict[str, Judged] = {}
    silent = 0
    for file in files:
        for row in _read(file):
            value = row["iou"] if "iou" in row else row["rle"]
            if value is None or value != value:  # NaN is no judgement either
                silent += 1
                continue
            where = f"video {row['video_id'][:12]}, frame {row['frame_index']}, object {row['object_id']}"
            if "iou" in row and not 0 <= value <= 1:
                raise HeadError("iou in [0, 1]", f"{value:g} for {where} in {file}", "give it as a share, not percent")
            key = (row["frame_index"], row["object_id"])
            before = found.setdefault(row["video_id"], {}).setdefault(key, row)
            if before != row:
                step = "keep one row each; of an output of masksieve give one layer"
                raise HeadError("each reviewed row once", f"two that differ for {where}", step)
    if silent:
        log.warning("left out %d reviewed rows whose iou or rle is empty", silent)
    if not found:
        raise HeadError(f"reviewed rows in {path}", f"{silent} without iou or rle", "fill the column in")
    return found


def harvest_reviewed(
    reviewed: dict[str, Judged], labels: ObjectStore, loaded: LoadedModel, path: Path
) -> tuple[Shard, int]:
    """Pair reviewed rows with the tokens of an output; SAM2 is not run.

    Args:
        reviewed: from `read_reviewed`.
        labels: an output of `masksieve label` that was made by this model, with `output.tokens`.
        loaded: the model.
        path: the shard. Only the chosen mask's token is known; the others are 0, and `best` means nothing.
    Returns: the shard, kind "tracked", with `iou_tracked`; and the token offset that heads on it must have, that of
             the heads which the videos were labelled with.
    Raises:  HeadError for an output of another model or without tokens, a true mask of another size than its video,
             rows that match nothing, IoU that are all the same, or videos labelled with both offsets.
    """
    ledger, lost, place = Ledger(labels), 0, labels.uri("tokens")
    size, digest = model_size(loaded.name), sha256()
    found: dict[str, tuple[dict[str, list[Any]], NDArray[np.float32]]] = {}
    offsets, ious = set[int](), set[float]()
    for video_id, judged in sorted(reviewed.items()):
        commit = _judged_commit(ledger, video_id) if VIDEO_ID.fullmatch(video_id) else None
        digest.update(repr((video_id, commit and commit.work_key, sorted(judged.items()))).encode())
        if commit is None:
            lost += len(judged)
            continue
        columns, tokens, offset = _video_rows(judged, labels, commit, loaded)
        lost += len(judged) - len(tokens)
        if len(tokens):
            found[video_id] = columns | {"size": [size] * len(tokens)}, tokens
            offsets.add(offset)
            ious.update(columns["iou_chosen"])
    if not found:
        step = "give the output that these rows were reviewed from (video_id is the SHA-256 of the video's bytes)"
        raise HeadError(f"reviewed rows of masks in {place}", f"{lost} that match none", step)
    if lost:
        log.warning("left out %d reviewed rows that match no scored mask in %s", lost, place)
    if len(offsets) > 1:
        step = "label the videos again with one bank of heads"
        raise HeadError("tokens of one mask_token_offset", "both 0 and 1", step)
    if len(ious) == 1:
        got = f"{ious.pop():g} in all {sum(len(judged) for judged in reviewed.values()) - lost} rows"
        raise HeadError("IoU that differ", got, "give the corrected masks as rle, or a column iou; not the predictions")
    known = {size: {"name": loaded.name, "sha256": loaded.sha256}}
    protocol = {"tokens": "of the chosen mask alone", "rows_sha256": digest.hexdigest()}
    writer = ShardWriter(path, Plan("tracked", known, size, "reviewed", "all", protocol))
    for video_id, (columns, tokens) in found.items():
        if not writer.done(video_id):
            writer.add(video_id, columns, tokens)
    return writer.finish(list(found)), offsets.pop()


def _judged_commit(ledger: Ledger, video_id: str) -> Commit | None:
    """The generation that people judged: corrections replace just those masks, and their tokens."""
    newest = ledger.newest(video_id)
    made = newest and as_made(ledger, newest)
    return newest if newest and made and outdated(made, newest) else made


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        names = set(pq.read_schema(file).names)
        truth = ("iou",) if "iou" in names else _TRUE_MASK
        missing = [name for name in (*KEYS, *truth) if name not in names]
        if missing:
            got = f"no {', '.join(missing)} in {file}"
            raise HeadError("columns video_id, frame_index, object_id, and iou or rle, height, width", got, "add them")
        table = pq.read_table(file, columns=[*KEYS, *truth], partitioning=None)
        kinds = {"video_id": pa.string(), "iou": pa.float64(), "rle": pa.binary()}
        for place, name in enumerate(table.column_names):
            column = table.column(name).cast(kinds.get(name, pa.int64()))
            if name in KEYS and column.null_count:
                raise HeadError(f"{name} in every row of {file}", "an empty one", "fill it in")
            table = table.set_column(place, name, column)
    except (OSError, pa.ArrowException) as error:
        got = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise HeadError(f"readable reviewed rows in {file}", got, "write them as Parquet") from error
    yield from table.to_pylist()


def _video_rows(
    judged: Judged, store: ObjectStore, commit: Commit, loaded: LoadedModel
) -> tuple[dict[str, list[Any]], NDArray[np.float32], int]:
    """Columns and tokens (n, 5, d) of the judged masks of a video, and the offset of its tokens."""
    facts, metadata = _layer(store, commit, "masks", _FACTS)
    made_by = (metadata.get("model") or {}).get("sha256")
    if made_by != loaded.sha256:
        got = f"{(metadata.get('model') or {}).get('name')} {str(made_by)[:12]}"
        step = "fit heads to the model that labelled them, or label them again"
        raise HeadError(f"masks by {loaded.name} {loaded.sha256[:12]} in {store.uri('masks')}", got, step)
    kept, about = _layer(store, commit, "tokens", ("frame_index", "object_id", "chosen", "tokens"))
    offset = token_offset({**metadata, **about}, loaded.bank)
    tokens_of = {(row["frame_index"], row["object_id"]): row for row in kept.to_pylist()}
    d, columns, tokens = int(loaded.model.hidden_dim), dict[str, list[Any]](), []
    for fact in facts.to_pylist():
        key = (fact["frame_index"], fact["object_id"])
        row, token = judged.get(key), tokens_of.get(key)
        if row is None or token is None:
            continue
        pair_2d = np.frombuffer(token["tokens"], "<f2").reshape(2, -1)
        if pair_2d.shape[1] != d:
            got = f"{2 * pair_2d.shape[1]} in {store.uri('tokens')}"
            raise HeadError(f"tokens of width {2 * d} for {loaded.name}", got, "label the videos again")
        lines = np.zeros((5, d), np.float32)
        lines[0], lines[1 + (token["chosen"] if offset else max(token["chosen"] - 1, 0))] = pair_2d
        tokens.append(lines)
        predicted = fact["visibility"] == "visible" and bool(fact["area_px"])
        iou, visible = _judgement(row, fact, commit.video_id, predicted=predicted)
        values = {
            "frame_index": key[0],
            "object_id": key[1],
            "prompted": fact["prompted"] is not None,
            "visible": visible,
            "predicted": predicted,
            "chosen": token["chosen"],
            "best": max(token["chosen"], 1),
            "sam_score": fact["sam_score"],
            "iou_chosen": iou,
            "iou_tracked": iou,
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return columns, np.stack(tokens) if tokens else np.zeros((0, 5, d), np.float32), offset


def _judgement(row: dict[str, Any], fact: dict[str, Any], video_id: str, *, predicted: bool) -> tuple[float, bool]:
    """IoU of the mask with the truth, and whether the truth is visible."""
    if "iou" in row:  # of an empty mask, IoU 1 says that there was nothing to see
        return row["iou"], predicted or row["iou"] < 1
    size, wanted = (row["height"], row["width"]), (fact["height"], fact["width"])
    where = f"the reviewed mask of video {video_id[:12]}, frame {row['frame_index']}, object {row['object_id']}"
    if size != wanted:
        raise HeadError(f"{wanted[1]}x{wanted[0]} for {where}", f"{size[1]}x{size[0]}", "give it at the video's size")
    try:
        runs = Runs({"size": list(size), "counts": row["rle"].decode("latin-1")}, where)
    except DatasetError as error:
        raise HeadError(error.expected, error.got, "write the mask as COCO's compressed counts") from error
    truth = rle.encode_mask(runs.mask())
    return rle.iou(fact["rle"], truth.counts, *size), truth.area_px > 0


def _layer(store: ObjectStore, commit: Commit, layer: str, columns: tuple[str, ...]) -> tuple[pa.Table, dict[str, Any]]:
    try:
        key = commit.file(layer).key
    except StorageError as error:
        step = "label the videos again with --set output.tokens=true"
        raise HeadError(f"the layer {store.uri(layer)}", f"none for {commit.video_uri}", step) from error
    with store.open(key) as file:
        table = pq.read_table(file, columns=list(columns))
        return table, read_metadata(pq.read_schema(file))
