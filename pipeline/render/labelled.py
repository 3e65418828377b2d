"""Reads what was decided about one video: its rows in labels/ and review/, and the policy they were decided by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.certificate import UNCERTIFIED, Evidence, find_evidence, thresholds
from pipeline.errors import StorageError
from pipeline.policy import Policy
from pipeline.records import read_metadata
from pipeline.storage.objects import ObjectStore

if TYPE_CHECKING:
    from pipeline.settings import StorageSettings

ROW_COLUMNS = (
    "video_id", "video_uri", "frame_index", "pts_seconds", "object_id", "label", "height", "width", "rle", "bbox_xyxy",
    "visibility", "prompted", "auto", "shot_index", "score_source", "uncertainty", "decision", "reasons", "policy_id",
)  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """The decisions about one video.

    Args:
        video_id: SHA-256 of the video's bytes.
        rows: `ROW_COLUMNS` (no `shot_index` in labels that are older than it), every frame and object, sorted by
            frame_index, object_id.
        stretches: one row per review stretch (review_id, frame_index and object_id of its representative), most
            uncertain first.
        threshold: largest uncertainty that the policy accepts, None where the file does not say.
        support: what stands behind it.
        by_label: of a policy with groups, the threshold of each label in the video; None: no prediction is accepted.
        sampled: whether a stride, a rate or a range left frames out.
        auto_margin: added to the uncertainty of automatic objects before it is compared, 0..1; 0 if there are none.
    """

    video_id: str
    rows: pa.Table = field(repr=False)
    stretches: pa.Table = field(repr=False)
    threshold: float | None
    support: Evidence = UNCERTIFIED
    sampled: bool = False
    auto_margin: float = 0.0
    by_label: Mapping[str | None, float | None] = field(default_factory=dict)

    @property
    def evidence(self) -> str:
        """The threshold and what it rests on, in a few words."""
        limits = sorted({limit for limit in self.by_label.values() if limit is not None})
        threshold = "no threshold" if self.threshold is None else f"threshold {self.threshold:.2f}"
        if len(limits) > 1:
            threshold = f"thresholds {limits[0]:.2f} to {limits[-1]:.2f} by label"
        if self.threshold is not None and self.auto_margin:
            threshold += f" ({self.threshold - self.auto_margin:.2f} for automatic objects)"
        return f"{threshold}, {self.support.brief}"


def read_labelled(labels: str, video_id: str, storage: StorageSettings) -> Labelled:
    """Read the newest decisions about one video.

    Args:
        labels: the output of `masksieve label`, a folder or an s3:// prefix.
        video_id: SHA-256 of the video's bytes.
        storage: how s3:// is reached.
    Raises: StorageError if there is no such output, or it does not hold this video.
    """
    store = ObjectStore(labels, storage)
    keys, tables = _read(store, "labels", video_id, ROW_COLUMNS)
    if not tables:
        videos = {PurePosixPath(key).stem for key in store.list("labels/") if key.endswith(".parquet")}
        raise StorageError(
            f"labels of this video (sha256 {video_id[:12]}…) in {labels}",
            f"labels of {len(videos)} others" if videos else "no labels at all",
            "label it first, or show the very file that was labelled",
        )
    rows = pa.concat_tables(tables).sort_by([("frame_index", "ascending"), ("object_id", "ascending")])
    metadata = read_metadata(tables[0].schema)
    policy = _policy(metadata)
    by_label = video_thresholds(metadata, keys[0], rows["label"])
    return Labelled(
        video_id=video_id,
        rows=rows.replace_schema_metadata(None),
        stretches=_stretches(store, video_id),
        threshold=highest(by_label),
        support=find_evidence(store, policy, metadata),
        by_label=by_label,
        auto_margin=float(policy.get("auto_margin") or 0.0) if _has_automatic(tables) else 0.0,
        sampled="sampling" in (metadata.get("config") or {}),
    )


def _has_automatic(tables: list[pa.Table]) -> bool:
    """Whether any object was found by the product; facts of version 1 know of none."""
    return any("auto" in table.column_names and bool(pc.any(table["auto"]).as_py()) for table in tables)


def _stretches(store: ObjectStore, video_id: str) -> pa.Table:
    """The representative row of each review stretch, most uncertain first."""
    columns = ("review_id", "frame_index", "object_id", "uncertainty", "decision", "representative")
    _, tables = _read(store, "review", video_id, columns)
    if not tables:  # nothing was flagged
        return pa.table({name: [] for name in columns})
    table = pa.concat_tables(tables)
    table = table.filter(pc.and_(table["representative"], pc.equal(table["decision"], "review")))  # not the audits
    worst = pc.fill_null(pc.cast(table["uncertainty"], pa.float64()), 1.0)
    return table.append_column("worst", worst).sort_by(
        [("worst", "descending"), ("frame_index", "ascending"), ("object_id", "ascending")]
    )


def _read(store: ObjectStore, layer: str, video_id: str, columns: Sequence[str]) -> tuple[list[str], list[pa.Table]]:
    """The video's own file in one derived layer, wherever its drop put it, and its key; none gives empty lists."""
    keys, tables = [], []
    for key in store.list(f"{layer}/"):
        if PurePosixPath(key).name == f"{video_id}.parquet":
            keys.append(key)
            with store.open(key) as file:
                there = set(pq.read_schema(file).names)
                tables.append(pq.read_table(file, columns=[name for name in columns if name in there]))
    return keys, tables


def video_thresholds(
    metadata: Mapping[str, Any], key: str, labels: pa.Array | pa.ChunkedArray
) -> dict[str | None, float | None]:
    """The threshold that each label of a video has to meet, by the policy's groups; None: none of it is accepted.

    Args:    metadata: of its file in labels/. key: where that lies. labels: the column.
    Returns: nothing where the file carries no policy.
    """
    policy = _policy(metadata)
    try:
        groups = thresholds(Policy.model_validate(policy)) if policy else []
    except ValidationError:  # of another release
        return {None: policy.get("max_uncertainty")}
    source = unquote(PurePosixPath(key).parent.name.removeprefix("drop="))
    model = (metadata.get("model") or {}).get("name")
    return {
        label: next((limit for match, limit in groups if match.takes(source=source, label=label, model=model)), None)
        for label in pc.unique(labels).to_pylist() or [None]
    }


def highest(by_label: Mapping[str | None, float | None]) -> float | None:
    """The most lenient threshold of a video; None if nothing is accepted."""
    return max((limit for limit in by_label.values() if limit is not None), default=None)


def _policy(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The policy that a derived file carries in its metadata, empty where it carries none."""
    policy = metadata.get("policy")
    return policy if isinstance(policy, dict) else {}
