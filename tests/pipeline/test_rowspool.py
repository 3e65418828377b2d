"""Merging passes: time order, one row per frame and object, constant batches, nothing left on disk."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import rowspool
from pipeline.errors import DiskSpaceError, StorageError
from pipeline.records import CANDIDATES
from pipeline.rowspool import RowSpool

SCHEMA = pa.schema(
    [("frame_index", pa.int32()), ("object_id", pa.int32()), ("visibility", pa.string()), ("source", pa.string())]
)


def frame(index: int, source: str, **objects: str) -> list[dict[str, object]]:
    return [
        {"frame_index": index, "object_id": int(name[1:]), "visibility": visibility, "source": source}
        for name, visibility in objects.items()
    ]


def keys(batches: list[pa.RecordBatch]) -> list[tuple[int, int, str]]:
    table = pa.Table.from_batches(batches, schema=SCHEMA)
    return list(zip(*(table[name].to_pylist() for name in ("frame_index", "object_id", "source")), strict=True))


def test_a_reverse_pass_replaces_untracked_rows_and_comes_out_ascending(tmp_path: Path) -> None:
    with RowSpool(tmp_path, SCHEMA) as spool:
        forward = spool.add_pass("forward")
        for index in range(4):
            forward.append(frame(index, "f", o1="visible", o2="visible" if index >= 2 else "untracked"))
        reverse = spool.add_pass("reverse", descending=True)
        for index in (1, 0):
            reverse.append(frame(index, "r", o2="visible"))
        merged = keys(list(spool.merged()))
    assert merged == [
        (0, 1, "f"), (0, 2, "r"), (1, 1, "f"), (1, 2, "r"), (2, 1, "f"), (2, 2, "f"), (3, 1, "f"), (3, 2, "f"),
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_an_untracked_row_never_replaces_a_tracked_one(tmp_path: Path) -> None:
    with RowSpool(tmp_path, SCHEMA) as spool:
        spool.add_pass("first").append(frame(0, "first", o1="absent"))
        spool.add_pass("second").append(frame(0, "second", o1="untracked"))
        assert keys(list(spool.merged())) == [(0, 1, "first")]


def test_several_rows_of_one_key_in_one_pass_all_stay(tmp_path: Path) -> None:
    rows = [
        {"video_id": "v", "frame_index": 0, "object_id": 1, "candidate_index": k, "height": 4, "width": 4,
         "rle": b"0", "sam_score": 0.5, "chosen": k == 1}
        for k in range(3)
    ]  # fmt: skip
    with RowSpool(tmp_path, CANDIDATES) as spool:
        spool.add_pass("forward").append(rows)
        spool.add_pass("reverse", descending=True).append([{**row, "object_id": 2} for row in rows])
        (batch,) = spool.merged()
    assert batch.column("object_id").to_pylist() == [1, 1, 1, 2, 2, 2]
    assert batch.column("candidate_index").to_pylist() == [0, 1, 2, 0, 1, 2]


states = st.sampled_from(["visible", "absent", "untracked"])
video = st.lists(st.dictionaries(st.integers(1, 4), states, max_size=4), min_size=1, max_size=25)


@settings(deadline=None)
@given(forward=video, reverse=video, batch_rows=st.integers(1, 9), flush_rows=st.integers(1, 9))
def test_merging_is_the_dictionary_of_the_passes(
    forward: list[dict[int, str]], reverse: list[dict[int, str]], batch_rows: int, flush_rows: int
) -> None:
    truth: dict[tuple[int, int], str] = {}
    for source, frames in (("f", forward), ("r", reverse)):
        for index, objects in enumerate(frames):
            for object_id, visibility in objects.items():
                before = truth.get((index, object_id))
                if before is None or visibility != "untracked" or before.endswith("untracked"):
                    truth[index, object_id] = f"{source}-{visibility}"
    with pytest.MonkeyPatch.context() as patch, RowSpool(schema=SCHEMA) as spool:
        patch.setattr(rowspool, "FLUSH_ROWS", flush_rows)
        for source, frames, descending in (("f", forward, False), ("r", reverse, True)):
            writer = spool.add_pass(source, descending)
            for index in reversed(range(len(frames))) if descending else range(len(frames)):
                objects = {f"o{key}": value for key, value in frames[index].items()}
                writer.append(
                    [{**item, "source": f"{source}-{item['visibility']}"} for item in frame(index, source, **objects)]
                )
        batches = list(spool.merged(batch_rows))
    assert keys(batches) == [(*key, truth[key]) for key in sorted(truth)]
    assert all(batch.num_rows == batch_rows for batch in batches[:-1])
    assert all(0 < batch.num_rows <= batch_rows for batch in batches)


def test_frames_out_of_order_are_refused(tmp_path: Path) -> None:
    with RowSpool(tmp_path, SCHEMA) as spool:
        forward = spool.add_pass("forward")
        forward.append(frame(3, "f", o1="visible"))
        with pytest.raises(StorageError, match="ascending"):
            forward.append(frame(3, "f", o2="visible"))
        reverse = spool.add_pass("reverse", descending=True)
        reverse.append(frame(3, "r", o1="visible"))
        with pytest.raises(StorageError, match="descending"):
            reverse.append(frame(4, "r", o1="visible"))


def test_scratch_goes_away_when_the_job_dies(tmp_path: Path) -> None:
    def job() -> None:
        with RowSpool(tmp_path, SCHEMA) as spool:
            spool.add_pass("forward").append(frame(0, "f", o1="visible"))
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        job()
    assert list(tmp_path.iterdir()) == []


def test_a_pass_name_is_used_once_and_ended_passes_take_no_rows(tmp_path: Path) -> None:
    with RowSpool(tmp_path, SCHEMA) as spool:
        forward = spool.add_pass("forward")
        with pytest.raises(StorageError, match="pass name"):
            spool.add_pass("forward")
        assert list(spool.merged()) == []
        with pytest.raises(StorageError, match="closed"):
            forward.append(frame(0, "f", o1="visible"))


@settings(deadline=None)
@given(frames=video, kept=st.integers(0, 25), flush_rows=st.integers(1, 9), descending=st.booleans())
def test_a_pass_that_died_goes_on_from_its_mark(
    tmp_path_factory: pytest.TempPathFactory,
    frames: list[dict[int, str]],
    kept: int,
    flush_rows: int,
    descending: bool,
) -> None:
    order = list(enumerate(frames))[:: -1 if descending else 1]
    rows = [frame(i, "r", **{f"o{key}": value for key, value in objects.items()}) for i, objects in order]
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rowspool, "FLUSH_ROWS", flush_rows)
        with RowSpool(schema=SCHEMA) as whole:
            writer = whole.add_pass("r", descending)
            for one in rows:
                writer.append(one)
            wanted = keys(list(whole.merged()))
        died = RowSpool(schema=SCHEMA, folder=folder)
        writer = died.add_pass("r", descending)
        for one in rows[:kept]:
            writer.append(one)
        marks = died.mark()
        for one in rows[kept:]:
            writer.append(one)  # lost: never named by a mark
        writer._flush()
        with RowSpool(schema=SCHEMA, folder=folder) as spool:
            spool.restore(marks)
            writer = spool.add_pass("r", descending)
            for one in rows[kept:]:
                writer.append(one)
            assert keys(list(spool.merged())) == wanted
        assert list(folder.iterdir()) == [folder / "0.arrow"]


@pytest.mark.parametrize("damage", ["shorter", "another", "missing"])
def test_scratch_that_is_not_what_it_was_is_refused(tmp_path: Path, damage: str) -> None:
    died = RowSpool(schema=SCHEMA, folder=tmp_path)
    died.add_pass("r").append(frame(0, "r", o1="visible"))
    marks, path = died.mark(), tmp_path / "0.arrow"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "shorter" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StorageError, match="start the video over"):
        RowSpool(schema=SCHEMA, folder=tmp_path).restore(marks)


@settings(deadline=None)
@given(frames=video, kept=st.integers(0, 25), flush_rows=st.integers(1, 9), data=st.data())
def test_a_disk_that_is_full_for_a_while_costs_no_row(
    tmp_path_factory: pytest.TempPathFactory,
    frames: list[dict[int, str]],
    kept: int,
    flush_rows: int,
    data: st.DataObject,
) -> None:
    real = os.pwrite

    def sometimes_full(descriptor: int, what: Any, at: int) -> int:
        done = data.draw(st.sampled_from(["all", "all", "some", "nothing"]))
        if done == "nothing":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, what[: len(what) // 2 + 1] if done == "some" else what, at)

    rows = [frame(i, "r", **{f"o{key}": value for key, value in objects.items()}) for i, objects in enumerate(frames)]
    wanted = [(item["frame_index"], item["object_id"], "r") for one in rows for item in sorted(one, key=object_id)]
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rowspool, "FLUSH_ROWS", flush_rows)
        with RowSpool(schema=SCHEMA, folder=folder) as died:
            writer = died.add_pass("r")
            patch.setattr(os, "pwrite", sometimes_full)
            for one in rows[:kept]:
                with suppress(DiskSpaceError):
                    writer.append(one)
            patch.setattr(os, "pwrite", real)
            marks = died.mark()
            for one in rows[kept:]:
                writer.append(one)
            assert keys(list(died.merged())) == wanted
        with RowSpool(schema=SCHEMA, folder=folder) as spool:
            spool.restore(marks)
            writer = spool.add_pass("r")
            for one in rows[kept:]:
                writer.append(one)
            assert keys(list(spool.merged())) == wanted


def object_id(item: dict[str, Any]) -> int:
    return int(item["object_id"])


def test_a_disk_that_stays_full_is_said_at_the_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RowSpool(tmp_path, SCHEMA) as spool:
        spool.add_pass("r").append(frame(0, "r", o1="visible"))
        monkeypatch.setattr(os, "pwrite", full)
        for _ in range(2):
            with pytest.raises(DiskSpaceError, match="scratch_dir"):
                list(spool.merged())
            with pytest.raises(DiskSpaceError):
                spool.mark()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stays", [True, False])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, stays: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=f"at {tmp_path / 'file'}"):
        RowSpool(tmp_path / "file" / "a", SCHEMA, folder=tmp_path / "file" / "b" if stays else None)


def test_one_pass_that_does_not_close_keeps_none_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = RowSpool(tmp_path, SCHEMA)
    writers = [spool.add_pass(name) for name in ("a", "b", "c")]

    def broken() -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writers[1], "close", broken)
    with pytest.raises(OSError, match="Input"):
        spool.close()
    assert writers[0]._file.closed
    assert writers[2]._file.closed
    assert list(tmp_path.iterdir()) == []
