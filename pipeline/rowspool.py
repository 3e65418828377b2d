"""Rows of several passes over one video, spooled to scratch disk and merged in time order.

A pass writes frames in its own order (a reverse pass descends). Each scratch batch holds whole frames, so a
descending pass is read back from its last batch, and the merge holds one batch per pass: memory does not grow with
the length of the video.

A pass's file is its batches one after another, nothing before or behind, so it can be cut off after any of them: that
is how a run that died goes on from its last checkpoint (`mark`, `restore`).
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
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

    def __init__(
        self, path: Path, schema: pa.Schema, *, descending: bool, mark: Mapping[str, Any] | None = None
    ) -> None:
        self.path, self.schema, self.descending = path, schema, descending
        self.rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = self._pending_bytes = 0
        self._last_frame: int | None = None
        self._ends = array("q")  # of each batch in the file
        self._crc = 0
        if mark is not None:
            self._go_back_to(mark)
        try:
            self._file = path.open("wb" if mark is None else "r+b", buffering=0)
        except OSError as error:
            raise _disk_error(path.parent, error) from error

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows given as dicts: missing columns become null, unknown ones are left out."""
        if rows:
            self.write(pa.RecordBatch.from_pylist([dict(row) for row in rows], schema=self.schema))

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows of one or more whole frames, in the pass's frame order.

        Raises:  StorageError if the pass is closed or frames come out of order; DiskSpaceError if the disk is full: the
                 rows then wait, and go with the next ones, or with `mark` or `end`.
        """
        if self._file.closed:
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

    def mark(self) -> dict[str, Any]:
        """Put every row on the disk for good, and say how far that is: numbers that `RowSpool.restore` takes."""
        self._flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _disk_error(self.path.parent, error) from error
        return {
            "descending": self.descending,
            "rows": self.rows,
            "last_frame": self._last_frame,
            "crc": self._crc,
            "ends": list(self._ends),
        }

    def _go_back_to(self, mark: Mapping[str, Any]) -> None:
        """Cut the file to what it held at the mark; refuse one that holds something else."""
        ends, crc, left = array("q", mark["ends"]), 0, mark["ends"][-1] if mark["ends"] else 0
        try:
            with self.path.open("r+b") as file:
                while left and (data := file.read(min(left, 1 << 20))):
                    crc, left = zlib.crc32(data, crc), left - len(data)
                if left or crc != mark["crc"]:
                    got = f"{'a shorter' if left else 'another'} {self.path.name}"
                    raise StorageError("scratch rows as they were at the checkpoint", got, "start the video over")
                file.truncate(ends[-1] if ends else 0)
        except OSError as error:
            got = f"{self.path}: {error.strerror}"
            raise StorageError("the scratch rows of a checkpoint", got, "start the video over") from error
        self.rows, self._last_frame, self._crc, self._ends = mark["rows"], mark["last_frame"], crc, ends

    def _flush(self) -> None:
        """All that waits goes to the file, or none of it: what a failed write leaves behind the last end is no row."""
        if self._pending:
            table = pa.Table.from_batches(self._pending, schema=self.schema).combine_chunks()
            ends, crc = array("q"), self._crc
            at = self._ends[-1] if self._ends else 0
            for batch in table.to_batches():
                data = memoryview(batch.serialize())
                crc = zlib.crc32(data, crc)
                try:
                    while data:
                        written = os.pwrite(self._file.fileno(), data, at)
                        data, at = data[written:], at + written
                except OSError as error:
                    raise _disk_error(self.path.parent, error) from error
                ends.append(at)
            self._ends, self._crc = self._ends + ends, crc
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0

    def end(self) -> None:
        """Write what waits and take no more rows; calling it again does nothing.

        Raises:  DiskSpaceError if the disk is full.
        """
        if not self._file.closed:
            self._flush()
            self._file.close()

    def close(self) -> None:
        """Let go of the file, without the rows that wait; calling it again does nothing."""
        self._file.close()

    def batches(self) -> Iterator[pa.Table]:
        """The rows in ascending frame order, a batch at a time, each sorted by frame and object."""
        with pa.OSFile(str(self.path), "rb") as file:
            order = range(len(self._ends))
            for number in reversed(order) if self.descending else order:
                start = self._ends[number - 1] if number else 0
                file.seek(start)
                batch = pa.ipc.read_record_batch(file.read_buffer(self._ends[number] - start), self.schema)
                yield _sorted(pa.Table.from_batches([batch]))


class RowSpool:
    """Scratch files of one video's rows, one per pass; removed on close.

    Args:    scratch_dir: where the scratch folder is made; None for the system's.
             schema: of every row; it has `frame_index` and `object_id`.
             folder: the scratch folder itself, for rows that shall outlive the process: it stays on close.
    Raises:  StorageError if the folder cannot be made.
    """

    def __init__(
        self, scratch_dir: Path | None = None, schema: pa.Schema = MASKS, *, folder: Path | None = None
    ) -> None:
        try:
            for path in (scratch_dir, folder):
                if path is not None:
                    path.mkdir(parents=True, exist_ok=True)
            self.directory = folder or Path(tempfile.mkdtemp(prefix="masksieve-rows-", dir=scratch_dir))
        except OSError as error:
            raise _disk_error(folder or scratch_dir or Path(tempfile.gettempdir()), error) from error
        self.schema = schema
        self._stays = folder is not None
        self._passes: dict[str, PassWriter] = {}
        self._restored: set[str] = set()

    def add_pass(self, name: str, descending: bool = False) -> PassWriter:
        """Start a pass, or go on with one that was restored. Its frames ascend, or descend throughout.

        Raises:  StorageError if the name is taken.
        """
        if name in self._restored:
            self._restored.remove(name)
            return self._passes[name]
        if name in self._passes:
            raise StorageError("a new pass name", f"{name!r} again", "name each pass once")
        writer = PassWriter(self.directory / f"{len(self._passes)}.arrow", self.schema, descending=descending)
        self._passes[name] = writer
        return writer

    def mark(self) -> dict[str, dict[str, Any]]:
        """Make every pass durable up to here; what `restore` takes, by pass."""
        return {name: writer.mark() for name, writer in self._passes.items()}

    def restore(self, marks: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the passes that another process left in the folder, each cut to its mark, in place of one's own.

        Raises:  StorageError if a file is missing, shorter than its mark, or not what it was then; no pass is left.
        """
        for writer in self._passes.values():
            writer.close()
        self._passes, self._restored = {}, set()
        taken: dict[str, PassWriter] = {}
        with ExitStack() as stack:
            for number, (name, mark) in enumerate(marks.items()):
                path = self.directory / f"{number}.arrow"
                taken[name] = PassWriter(path, self.schema, descending=mark["descending"], mark=mark)
                stack.callback(taken[name].close)
            stack.pop_all()
        self._passes, self._restored = taken, set(taken)

    def merged(self, batch_rows: int = 4096) -> Iterator[pa.RecordBatch]:
        """All rows by frame_index and object_id, in batches of exactly `batch_rows` (the last may be shorter).

        Where several passes have rows for one frame and object, a tracked row replaces an untracked one, then a later
        pass replaces an earlier one. Ends every pass that is still open.
        """
        if batch_rows < 1:
            raise StorageError("batch_rows of at least 1", str(batch_rows), "ask for a positive number of rows")
        for writer in self._passes.values():
            writer.end()
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
        """Remove the scratch files, unless their folder was given; calling it again does nothing."""
        with ExitStack() as stack:
            if not self._stays:
                stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for writer in self._passes.values():
                stack.callback(writer.close)

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


def _disk_error(folder: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return DiskSpaceError(
            "room for the scratch rows", f"a full disk at {folder}", "free space or set another scratch_dir"
        )
    return StorageError("a scratch folder that can be written", f"{error} at {folder}", "set another scratch_dir")
