"""Rows of several passes over one video, spooled to scratch disk and merged in time order.

A pass writes frames in its own order (a reverse pass descends). Each scratch batch holds whole frames, so a
descending pass is read back from its last batch, and the merge holds one batch per pass: memory does not grow with
the length of the video.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import DiskSpaceError, StorageError
from pipeline.records import MASKS

FLUSH_ROWS = 256  # small batches: what waits between flushes pins the heap around the large temporaries of other stages
FLUSH_BYTES = 8 * 2**20


class PassWriter:
    """Writes one pass to scratch, whole frames per batch. Made by `RowSpool.add_pass`."""

    def __init__(self, path: Path, schema: pa.Schema, *, descending: bool) -> None:
        self.path, self.schema, self.descending = path, schema, descending
        self.rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = self._pending_bytes = 0
        self._last_frame: int | None = None
        self._file = pa.OSFile(str(path), "wb")
        self._ipc: pa.RecordBatchFileWriter | None = pa.ipc.new_file(self._file, schema)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows given as dicts: missing columns become null, unknown ones are left out."""
        if rows:
            self.write(pa.RecordBatch.from_pylist([dict(row) for row in rows], schema=self.schema))

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows of one or more whole frames, in the pass's frame order.

        Raises:  StorageError if the pass is closed or frames come out of order; DiskSpaceError if the disk is full.
        """
        if self._ipc is None:
            raise StorageError("rows before the merge", "rows for a pass that is closed", "add them before merged()")
        if batch.num_rows == 0:
            return
        frames = batch.column("frame_index").to_numpy().astype(np.int64)
        ordered = -frames if self.descending else frames
        previous = self._last_frame
        if (np.diff(ordered) < 0).any() or (previous is not None and ordered[0] <= previous):
            raise StorageError(
                f"frames in {'descending' if self.descending else 'ascending'} order, whole frames at a time",
                f"frame {int(frames[0])}..{int(frames[-1])} after {None if previous is None else abs(previous)}",
                "write every object of a frame at once, in the order of the pass",
            )
        self._last_frame = int(ordered[-1])
        self._pending.append(batch)
        self._pending_rows += batch.num_rows
        self._pending_bytes += batch.nbytes
        self.rows += batch.num_rows
        if self._pending_rows >= FLUSH_ROWS or self._pending_bytes >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._pending and self._ipc is not None:
            table = pa.Table.from_batches(self._pending, schema=self.schema).combine_chunks()
            try:
                for batch in table.to_batches():
                    self._ipc.write_batch(batch)
            except OSError as error:
                raise _disk_error(self.path, error) from error
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def close(self) -> None:
        """Flush and end the pass; calling it again does nothing."""
        if self._ipc is None:
            return
        try:
            self._flush()
            self._ipc.close()
        except OSError as error:
            raise _disk_error(self.path, error) from error
        finally:
            self._ipc = None
            self._file.close()

    def batches(self) -> Iterator[pa.Table]:
        """The rows in ascending frame order, a batch at a time, each sorted by frame and object."""
        with pa.OSFile(str(self.path), "rb") as file:
            reader = pa.ipc.open_file(file)
            order = range(reader.num_record_batches)
            for number in reversed(order) if self.descending else order:
                yield _sorted(pa.Table.from_batches([reader.get_batch(number)]))


class RowSpool:
    """Scratch files of one video's rows, one per pass; removed on close.

    Args:    scratch_dir: where the scratch folder is made; None for the system's.
             schema: of every row; it has `frame_index` and `object_id`.
    """

    def __init__(self, scratch_dir: Path | None = None, schema: pa.Schema = MASKS) -> None:
        if scratch_dir is not None:
            scratch_dir.mkdir(parents=True, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="masksieve-rows-", dir=scratch_dir))
        self.schema = schema
        self._passes: dict[str, PassWriter] = {}

    def add_pass(self, name: str, descending: bool = False) -> PassWriter:
        """Start a pass. Its frames ascend, or descend throughout.

        Raises:  StorageError if the name is taken.
        """
        if name in self._passes:
            raise StorageError("a new pass name", f"{name!r} again", "name each pass once")
        writer = PassWriter(self.directory / f"{len(self._passes)}.arrow", self.schema, descending=descending)
        self._passes[name] = writer
        return writer

    def merged(self, batch_rows: int = 4096) -> Iterator[pa.RecordBatch]:
        """All rows by frame_index and object_id, in batches of exactly `batch_rows` (the last may be shorter).

        Where several passes have rows for one frame and object, a tracked row replaces an untracked one, then a later
        pass replaces an earlier one. Ends every pass that is still open.
        """
        if batch_rows < 1:
            raise StorageError("batch_rows of at least 1", str(batch_rows), "ask for a positive number of rows")
        for writer in self._passes.values():
            writer.close()
        waiting: list[pa.Table] = []
        count = 0
        for table in self._frame_runs():
            waiting.append(table)
            count += table.num_rows
            if count < batch_rows:
                continue
            full = pa.concat_tables(waiting)
            whole = count - count % batch_rows
            for start in range(0, whole, batch_rows):
                yield from full.slice(start, batch_rows).combine_chunks().to_batches()
            waiting, count = [full.slice(whole)], count - whole
        if count:
            yield from pa.concat_tables(waiting).combine_chunks().to_batches()

    def _frame_runs(self) -> Iterator[pa.Table]:
        """Sorted tables of whole frames, without doubles."""
        streams = [writer.batches() for writer in self._passes.values()]
        heads = [next(stream, None) for stream in streams]
        while any(head is not None for head in heads):
            frontier = min(int(head["frame_index"][-1].as_py()) for head in heads if head is not None)
            parts: list[tuple[int, pa.Table]] = []
            for rank, head in enumerate(heads):
                if head is None:
                    continue
                ready = int(np.searchsorted(head["frame_index"].to_numpy(), frontier, side="right"))
                if ready:
                    parts.append((rank, head.slice(0, ready)))
                heads[rank] = head.slice(ready) if ready < head.num_rows else next(streams[rank], None)
            yield parts[0][1] if len(parts) == 1 else _settle(parts)

    def close(self) -> None:
        """Remove the scratch files; calling it again does nothing."""
        try:
            for writer in self._passes.values():
                writer.close()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> RowSpool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _sorted(table: pa.Table) -> pa.Table:
    """Stable by (frame_index, object_id): rows of one key keep the order they came in."""
    frames, objects = table["frame_index"].to_numpy(), table["object_id"].to_numpy()
    order = np.lexsort((objects, frames))
    return table if (np.diff(order) == 1).all() else table.take(pa.array(order))


def _settle(parts: Sequence[tuple[int, pa.Table]]) -> pa.Table:
    """Keep, for every frame and object, the rows of the pass that wins."""
    table = pa.concat_tables([part for _, part in parts])
    rank = np.concatenate([np.full(part.num_rows, number) for number, part in parts])
    if "visibility" in table.column_names:
        tracked = pc.not_equal(table["visibility"], "untracked").to_numpy()
        rank = rank + tracked * (rank.max() + 1)
    frames, objects = table["frame_index"].to_numpy(), table["object_id"].to_numpy()
    order = np.lexsort((np.arange(len(rank)), -rank, objects, frames))
    frames, objects, rank = frames[order], objects[order], rank[order]
    new_key = np.r_[True, (np.diff(frames) != 0) | (np.diff(objects) != 0)]
    best = rank[new_key][np.cumsum(new_key) - 1]
    return table.take(pa.array(order[rank == best]))


def _disk_error(path: Path, error: OSError) -> StorageError:
    if error.errno == errno.ENOSPC or "No space left" in str(error):
        return DiskSpaceError(
            "room for the scratch rows", f"a full disk at {path.parent}", "free space or set another scratch_dir"
        )
    return StorageError("a scratch folder that can be written", f"{error} at {path.parent}", "set another scratch_dir")
