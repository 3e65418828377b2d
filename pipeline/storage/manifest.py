"""Parquet files of a video: equal rows give equal bytes, and a file is published whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.checksum import file_sha256
from pipeline.errors import DiskSpaceError, StorageError
from pipeline.records import LOW_CARDINALITY, file_metadata
from pipeline.storage.objects import ObjectStore

log = logging.getLogger(__name__)

ROW_GROUP_ROWS = 32_768
ZSTD_LEVEL = 3
DICTIONARY_COLUMNS = frozenset((*LOW_CARDINALITY, "decision", "suggested_action", "policy_id", "review_id"))
FULL = (errno.ENOSPC, errno.EDQUOT)
VIDEO_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """One published file, as a commit names it: layer, key, rows, bytes, SHA-256 of the bytes."""

    layer: str
    key: str
    rows: int
    bytes: int
    sha256: str


def facts_key(layer: str, drop: str, video_id: str, attempt_id: str) -> str:
    """The key of facts: unique to the attempt, so that no two writers meet.

    Args:    layer: masks, candidates or tokens.
             attempt_id: for example `000002-1-0f3c...`: generation, attempt, random.
    """
    return f"{layer}/{partition(drop)}/{checked_video_id(video_id)}-{quote(attempt_id, safe='')}.parquet"


def derived_key(layer: str, drop: str, video_id: str) -> str:
    """The key of `labels` or `review`: made from the video alone, whatever the generation."""
    return f"{layer}/{partition(drop)}/{checked_video_id(video_id)}.parquet"


def partition(drop: str) -> str:
    """`drop=NAME`, percent-encoded as Hive readers expect.

    Raises: StorageError for an empty name.
    """
    if not drop:
        raise StorageError("a name of the drop", "an empty one", "pass drop='NAME'")
    return f"drop={quote(drop, safe='')}"


def checked_video_id(video_id: str) -> str:
    """The id itself. Raises StorageError if it isn't a SHA-256 in lower-case hex."""
    if not VIDEO_ID.fullmatch(video_id):
        raise StorageError("a video_id of 64 hex digits", repr(video_id), "use the SHA-256 of the video's bytes")
    return video_id


class ParquetFile:
    """Writes rows to a scratch Parquet file in row groups of one exact size; the scratch file ends with the block.

    Args:
        schema: of the rows.
        metadata: file metadata, see `records.file_metadata`.
        row_group_rows: rows per row group, whatever the size of the batches.
        scratch_dir: where the scratch file lies; None for the system's.
    """

    def __init__(
        self,
        schema: pa.Schema,
        metadata: Mapping[str, Any],
        *,
        row_group_rows: int = ROW_GROUP_ROWS,
        scratch_dir: Path | None = None,
    ) -> None:
        self.schema = schema.with_metadata(file_metadata(metadata))
        self.row_group_rows = row_group_rows
        self.rows = 0
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        if scratch_dir is not None:
            scratch_dir.mkdir(parents=True, exist_ok=True)
        with _room_at(scratch_dir or Path(tempfile.gettempdir())):
            descriptor, name = tempfile.mkstemp(prefix="masksieve-", suffix=".parquet", dir=scratch_dir)
            os.close(descriptor)
            self.path = Path(name)
            try:
                self._writer = pq.ParquetWriter(
                    self.path,
                    self.schema,
                    compression="zstd",
                    compression_level=ZSTD_LEVEL,
                    use_dictionary=_dictionary_paths(schema),
                    write_page_index=True,
                )
            except BaseException:
                self.path.unlink(missing_ok=True)
                raise

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. Raises DiskSpaceError if the scratch disk is full."""
        start = 0
        while start < batch.num_rows:
            part = batch.slice(start, self.row_group_rows - self._waiting_rows)
            self._waiting.append(part)
            self._waiting_rows += part.num_rows
            start += part.num_rows
            if self._waiting_rows == self.row_group_rows:
                self._flush()
        self.rows += batch.num_rows

    def finish(self) -> None:
        """Write what is waiting and the footer. Raises DiskSpaceError if the scratch disk is full."""
        self._flush()
        with _room_at(self.path.parent):
            self._writer.close()

    def publish(self, store: ObjectStore, layer: str, key: str) -> FileRecord:
        """Finish the file and put it in the store, replacing what was there."""
        self.finish()
        record = self.record(layer, key)
        store.put_atomic(key, self.path)
        return record

    def record(self, layer: str, key: str) -> FileRecord:
        """What a commit says about the finished file."""
        return FileRecord(layer, key, self.rows, self.path.stat().st_size, file_sha256(self.path))

    def _flush(self) -> None:
        """Write what is waiting as one row group."""
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting).combine_chunks().cast(self.schema)  # chunks would shape the pages
        with _room_at(self.path.parent):
            self._writer.write_table(table, row_group_size=self.row_group_rows)
        self._waiting, self._waiting_rows = [], 0

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with _room_at(self.path.parent):
                self._writer.close()
        finally:
            self.path.unlink(missing_ok=True)


@contextmanager
def _room_at(folder: Path) -> Iterator[None]:
    """A full disk as the error that says so; pyarrow gives it without a number at times."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL or "No space left" in str(error):
            got = f"a full disk at {folder}"
            raise DiskSpaceError("room for the rows", got, "free space or set another scratch_dir") from error
        raise


def write_facts(
    store: ObjectStore,
    layer: str,
    key: str,
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    metadata: Mapping[str, Any],
    *,
    row_group_rows: int = ROW_GROUP_ROWS,
    scratch_dir: Path | None = None,
) -> FileRecord:
    """Write one layer of a video under an attempt's own key. Nothing is true until a commit names it.

    Args:    key: from `facts_key`.
             batches: rows in order; equal rows, schema and metadata give equal bytes however they are cut.
             metadata: configuration, checksums, versions; never a run id, time or host.
    Returns: the record for the commit.
    Raises:  StorageError, DiskSpaceError; nothing is left in the store or on scratch.
    """
    with ParquetFile(schema, metadata, row_group_rows=row_group_rows, scratch_dir=scratch_dir) as file:
        for batch in batches:
            file.write(batch)
        return file.publish(store, layer, key)


def discard_facts(store: ObjectStore, files: Iterable[FileRecord]) -> None:
    """Remove facts that no commit will name; a failure here must not hide the first one."""
    for file in files:
        try:
            store.delete(file.key)
        except StorageError:
            log.warning("left an orphan at %s", store.uri(file.key))


def software_versions(*names: str) -> dict[str, str]:
    """Installed versions of distributions, for file metadata; one that is missing is left out."""
    from importlib import metadata

    found = {}
    for name in sorted({"masksieve", "pyarrow", "numpy", *names}):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _dictionary_paths(schema: pa.Schema) -> list[str]:
    """Parquet paths of the columns to dictionary-encode."""
    lists = {"reasons": "reasons.list.element"}
    return [lists.get(name, name) for name in schema.names if name in DICTIONARY_COLUMNS or name in lists]
