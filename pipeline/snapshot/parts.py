"""Frames become Parquet files of about one size, each put in the store once it is full; equal frames, equal files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from pipeline.checksum import file_sha256
from pipeline.errors import StorageError
from pipeline.snapshot.manifest import FRAME, SPLITS, Part, Split
from pipeline.storage.manifest import ParquetFile
from pipeline.storage.objects import ObjectStore

log = logging.getLogger(__name__)

ROW_GROUP_FRAMES = 64
"""What a reader takes at once, and shuffles as one."""


def part_file(metadata: Mapping[str, Any], scratch_dir: Path | None) -> ParquetFile:
    """A part on scratch disk, in row groups of `ROW_GROUP_FRAMES`."""
    return ParquetFile(FRAME, metadata, row_group_rows=ROW_GROUP_FRAMES, scratch_dir=scratch_dir)


def publish_part(
    store: ObjectStore, folder: str, split: Split, number: int, file: ParquetFile, videos: Sequence[str]
) -> Part:
    """Finish a file and put it in the store under a name made from its content."""
    file.finish()
    digest = file_sha256(file.path)
    full, rest = divmod(file.rows, ROW_GROUP_FRAMES)
    part = Part(
        key=f"{split}/part-{number:05d}-{digest[:12]}.parquet", split=split, rows=file.rows,
        row_groups=(*[ROW_GROUP_FRAMES] * full, *([rest] if rest else [])), bytes=file.path.stat().st_size,
        sha256=digest, videos=tuple(videos),
    )  # fmt: skip
    store.put_atomic(f"{folder}{part.key}", file.path)
    return part


@dataclass
class _Open:
    """The part of a split that is being filled."""

    file: ParquetFile
    videos: dict[str, None] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def flush(self) -> None:
        self.file.write(pa.RecordBatch.from_pylist(self.rows, schema=FRAME))
        self.rows = []


class PartWriter:
    """Writes frames to the parts of both splits; a context manager whose scratch files end with its block.

    Two row groups and two unfinished files are held, however large the snapshot.

    Args:
        store, folder: where the parts go.
        file_bytes: a part is full once it has so many.
        metadata: of every file.

    Attributes:
        parts: what was put in the store so far.
    """

    def __init__(
        self, store: ObjectStore, folder: str, file_bytes: int, metadata: Mapping[str, Any], scratch_dir: Path
    ) -> None:
        self._store, self._folder, self._file_bytes = store, folder, file_bytes
        self._metadata, self._scratch = metadata, scratch_dir
        self._open: dict[Split, _Open] = {}
        self.parts: list[Part] = []

    def add(self, split: Split, row: dict[str, Any]) -> None:
        """Add one frame, a row of `FRAME`."""
        part = self._open.get(split)
        if part is None:
            part = self._open[split] = _Open(part_file(self._metadata, self._scratch))
        part.videos[row["video_id"]] = None
        part.rows.append(row)
        if len(part.rows) == ROW_GROUP_FRAMES:
            part.flush()
            if part.file.path.stat().st_size >= self._file_bytes:
                self._close(split)

    def finish(self) -> None:
        """Put what is waiting in the store."""
        for split in SPLITS:
            if split in self._open:
                self._close(split)
        self.parts.sort(key=lambda part: part.key)

    def discard(self, keep: Sequence[str] = ()) -> None:
        """Remove what was put in the store, but for these keys; a failure here must not hide the first one."""
        for part in self.parts:
            if part.key not in keep:
                try:
                    self._store.delete(f"{self._folder}{part.key}")
                except StorageError:
                    log.warning("left an orphan at %s", self._store.uri(f"{self._folder}{part.key}"))

    def _close(self, split: Split) -> None:
        part = self._open.pop(split)
        with part.file:
            if part.rows:
                part.flush()
            number = sum(done.split == split for done in self.parts)
            self.parts.append(publish_part(self._store, self._folder, split, number, part.file, list(part.videos)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self._open.values():
            part.file.__exit__(kind, error, trace)
        self._open = {}
