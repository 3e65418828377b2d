"""Labels to sweep: the files of an output or of any folder of them, and the few columns that a policy reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import MasksieveError, StorageError
from pipeline.ledger import Ledger
from pipeline.policy import Policy
from pipeline.records import LOW_CARDINALITY, SCHEMA_VERSION, read_metadata, upgraded
from pipeline.settings import StorageSettings
from pipeline.storage.manifest import VIDEO_ID
from pipeline.storage.objects import ObjectStore
from usam.targets import STACKED, TRACKED_HEAD

BATCH_ROWS = 1 << 17
SMALL_BYTES = 1 << 20
"""A file of this size is read in one go: asking for its columns one by one takes longer."""
DATED = 200
"""So many commits are asked for their dates: ids are hashes, so these are a fair sample."""

_RULE_COLUMNS = {
    "min_object_score": ("object_score",),
    "min_temporal_iou": ("temporal_iou",),
    "max_area_change": ("area_change",),
    "min_area_px": ("area_px",),
    "max_area_share": ("area_px", "height", "width"),
    "max_model_gap": ("model_gap",),
    "max_prompt_gap": ("prompt_gap",),
    "max_task_gap": ("task_gap",),
}
_ALWAYS = ("frame_index", "object_id", "label", "visibility", "prompted", "auto", "across_cut", "score_source")
_SCORES = ("sam_score", "object_score", TRACKED_HEAD, STACKED)


class SweepError(MasksieveError):
    """Labels, truth or a policy that no curve can be made of."""


@dataclass(frozen=True)
class LabelFile:
    """One Parquet file of labels.

    Args:
        source: the drop that its path names, "" where it names none.
        video_id: where the file is one video's, as `masksieve label` writes it; else None.
    """

    store: ObjectStore = field(compare=False)
    key: str
    source: str
    video_id: str | None

    @property
    def uri(self) -> str:
        """Where it lies."""
        return self.store.uri(self.key)


@dataclass(frozen=True)
class Labels:
    """What is swept.

    Args:
        output: whether the files are those of an output, which has commits and certificates.
    """

    store: ObjectStore
    files: tuple[LabelFile, ...]
    output: bool


def find_labels(manifest: str, storage: StorageSettings, drops: Sequence[str] = ()) -> Labels:
    """The files of labels that are meant.

    Args:
        manifest: the --out of `masksieve label`, one Parquet file of labels, or a folder of such; local or s3://.
        drops: only these, all if empty.
    Raises: SweepError if there is none, or a drop has none; StorageError.
    """
    path = PurePosixPath(manifest)
    output = False
    if path.suffix == ".parquet" and ("://" in manifest or not Path(manifest).expanduser().is_dir()):
        folder = manifest[: -len(path.name)].rstrip("/") or ("." if not manifest.startswith("/") else "/")
        store, keys = ObjectStore(folder, storage), [path.name]
        if not store.exists(path.name):
            raise SweepError(f"labels at {manifest}", "no such file", "give the --out of masksieve label")
    else:
        if "://" not in manifest and not Path(manifest).expanduser().is_dir():
            raise SweepError(f"labels in {manifest}", "no folder", "give the --out of masksieve label")
        store = ObjectStore(manifest, storage)
        keys = [key for key in store.list("labels/") if key.endswith(".parquet")]
        output = bool(keys)
        every = [] if keys else store.list()
        if any(key.startswith("commits/") for key in every):
            raise SweepError(f"labels in {manifest}", "commits without them", "let masksieve retune derive them")
        keys = keys or [key for key in every if key.endswith(".parquet")]
        if not keys:
            raise SweepError(f"labels in {manifest}", "no Parquet file", "give the --out of masksieve label")
    files = [_named(store, key) for key in keys]
    there = sorted({file.source for file in files if file.source})
    if missing := sorted(set(drops) - set(there)):
        step = f"choose among {', '.join(there)}" if there else "leave --drop out: these files name no drop"
        raise SweepError("drops that have labels", f"none in {', '.join(missing)}", step)
    return Labels(store, tuple(file for file in files if not drops or file.source in drops), output)


def _named(store: ObjectStore, key: str) -> LabelFile:
    parts = PurePosixPath(store.uri(key)).parts
    source = next((unquote(part.removeprefix("drop=")) for part in reversed(parts) if part.startswith("drop=")), "")
    stem = PurePosixPath(key).stem
    return LabelFile(store, key, source, stem if VIDEO_ID.fullmatch(stem) else None)


class Opened:
    """A file of labels that is being read.

    Attributes:
        metadata: what the file says of itself.
    """

    def __init__(self, raw: BinaryIO | pa.BufferReader, file: LabelFile) -> None:
        self._raw, self._file = raw, file
        self._parquet = pq.ParquetFile(raw)
        self.metadata: dict[str, Any] = read_metadata(self._parquet.schema_arrow)

    @property
    def model(self) -> str | None:
        """Name of the model that made the facts."""
        model = self.metadata.get("model")
        return str(model["name"]) if isinstance(model, dict) and "name" in model else None

    def batches(self, policy: Policy) -> Iterator[pa.RecordBatch]:
        """The rows with the columns that the policy reads, texts as dictionaries."""
        version = str(self.metadata.get("schema_version", SCHEMA_VERSION))
        there = set(self._parquet.schema_arrow.names)
        off = () if policy.min_area_px else ("min_area_px",)
        names = [*_ALWAYS, *(() if self._file.video_id else ("video_id",)), *self._scores(there)]
        ruling = [rule for rule in _RULE_COLUMNS if getattr(policy, rule) is not None and rule not in off]
        names += [name for rule in ruling for name in _RULE_COLUMNS[rule]]
        names = [name for name in dict.fromkeys(names) if name in there]
        parquet = self._parquet
        if version == SCHEMA_VERSION:  # `upgraded` knows plain texts
            texts = [name for name in names if name in LOW_CARDINALITY]
            parquet = pq.ParquetFile(self._raw, metadata=parquet.metadata, read_dictionary=texts)
        for batch in parquet.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
            yield upgraded(batch, version)

    def _scores(self, there: set[str]) -> list[str]:
        """The columns that `score_source` can name, from what the file says of its values."""
        known = [name for name in _SCORES if name in there]
        metadata = self._parquet.metadata
        leaf = next((i for i in range(metadata.num_columns) if metadata.schema.column(i).path == "score_source"), -1)
        if leaf < 0:
            return known
        low, high = "~", ""
        for group in range(metadata.num_row_groups):
            statistics = metadata.row_group(group).column(leaf).statistics
            if statistics is None or not statistics.has_min_max:
                if statistics is None or statistics.null_count != metadata.row_group(group).num_rows:
                    return known
                continue
            low, high = min(low, statistics.min), max(high, statistics.max)
        return [name for name in known if low <= name <= high]


@contextmanager
def opened(file: LabelFile) -> Iterator[Opened]:
    """A file of labels, for reading. Raises StorageError if it is gone or damaged."""
    with file.store.open(file.key) as raw:
        small = raw.seek(0, os.SEEK_END) <= SMALL_BYTES
        raw.seek(0)
        yield Opened(pa.BufferReader(raw.read()) if small else raw, file)


def policy_of(labels: Labels) -> Policy | None:
    """The policy that the labels were decided by, as the first file that can be read tells; None if it tells none."""
    for file in labels.files:
        try:
            with opened(file) as one:
                said = one.metadata.get("policy")
                return Policy.model_validate(said) if isinstance(said, dict) else None
        except (StorageError, ValueError):
            continue
    return None


def days_of(labels: Labels) -> int | None:
    """Calendar days (UTC) from the first to the last video's commit, both counted; None if no commits tell.

    An output where all was labelled on one day says nothing about a day's load, so this is None too.
    """
    if not labels.output:
        return None
    ids = sorted({file.video_id for file in labels.files if file.video_id})
    dates: set[date] = set()
    try:
        for commit in Ledger(labels.store).read_all(list(islice(ids, DATED))):
            dates.add(commit.finished_at.astimezone(UTC).date())
    except StorageError:
        return None
    return (max(dates) - min(dates)).days + 1 if len(dates) > 1 else None
