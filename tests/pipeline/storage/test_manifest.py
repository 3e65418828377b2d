"""Parquet of the layers: equal bytes for equal rows, plain readers, nothing half-written."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from pipeline import rle
from pipeline.errors import DiskSpaceError, StorageError
from pipeline.records import MASKS, SCHEMA_VERSION, read_metadata
from pipeline.storage.manifest import FileRecord, derived_key, facts_key, software_versions, write_facts
from pipeline.storage.objects import ObjectStore

VIDEO = "ab" * 32
METADATA = {"config": {"b": 1, "a": 2.5}, "model_sha256": "m", "drop": "d"}


def rows(count: int = 1000, video_id: str = VIDEO) -> pa.RecordBatch:
    random = np.random.default_rng(0)
    encoded = [rle.encode_mask(random.random((16, 24)) > 0.5) for _ in range(count)]
    return pa.RecordBatch.from_pylist(
        [
            {
                "video_id": video_id, "video_uri": "v.mp4", "frame_index": i // 2, "pts_seconds": i / 50,
                "object_id": 1 + i % 2, "label": "cup", "height": 16, "width": 24, "rle": mask.counts,
                "area_px": mask.area_px, "bbox_xyxy": mask.bbox_xyxy, "visibility": "visible", "direction": "forward",
                "auto": False, "shot_index": 0, "across_cut": False,
                "iou_tracked": float(random.random()), "score_source": "iou_tracked",
            }
            for i, mask in enumerate(encoded)
        ],
        schema=MASKS,
    )  # fmt: skip


def write(out: Path, step: int = 100, key: str = "masks/x.parquet") -> FileRecord:
    batch = rows()
    pieces = (batch.slice(start, step) for start in range(0, batch.num_rows, step))
    return write_facts(ObjectStore(out), "masks", key, pieces, MASKS, METADATA, row_group_rows=256)


def test_a_second_run_is_byte_identical_however_the_rows_arrive(tmp_path: Path) -> None:
    first, second, third = write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", step=73)
    assert first == second == third
    assert (tmp_path / "a/masks/x.parquet").read_bytes() == (tmp_path / "c/masks/x.parquet").read_bytes()
    assert first.bytes == (tmp_path / "a/masks/x.parquet").stat().st_size


def test_row_groups_have_one_size_and_strings_stay_plain(tmp_path: Path) -> None:
    write(tmp_path)
    meta = pq.read_metadata(tmp_path / "masks/x.parquet")
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [256, 256, 256, 232]
    schema = pq.read_schema(tmp_path / "masks/x.parquet")
    assert schema.field("video_id").type == pa.string()
    assert schema.remove_metadata().equals(MASKS)
    columns = {meta.row_group(0).column(i).path_in_schema: meta.row_group(0).column(i) for i in range(meta.num_columns)}
    assert all(column.compression == "ZSTD" for column in columns.values())
    assert "RLE_DICTIONARY" in columns["video_id"].encodings
    assert "RLE_DICTIONARY" not in columns["rle"].encodings
    assert columns["video_id"].statistics.max == VIDEO


def test_metadata_says_what_made_it_and_nothing_of_the_run(tmp_path: Path) -> None:
    write(tmp_path)
    assert read_metadata(pq.read_schema(tmp_path / "masks/x.parquet")) == {**METADATA, "schema_version": SCHEMA_VERSION}
    assert set(software_versions("torch")) >= {"pyarrow", "numpy", "torch"}


@pytest.mark.parametrize("drops", [("a", "b c"), ("2026", "a"), ("2026-11-24",), ("100%", "a=b", "é/ü")])
def test_the_usual_readers_read_the_folder_and_find_the_drop(drops: tuple[str, ...], tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    for number, drop in enumerate(drops):
        video = f"{number:064x}"
        write_facts(store, "labels", derived_key("labels", drop, video), [rows(10, video)], MASKS, {})
    folder = tmp_path / "labels"
    frames = [
        pd.read_parquet(folder),
        pq.read_table(folder).to_pandas(),
        duckdb.sql(f"SELECT * FROM read_parquet('{folder}/**/*.parquet', hive_partitioning=true)").df(),
    ]
    for frame in frames:
        assert len(frame) == 10 * len(drops)
        assert sorted({str(drop).split()[0] for drop in frame["drop"]}) == sorted(drop.split()[0] for drop in drops)
    counts, height, width = frames[0].loc[0, ["rle", "height", "width"]]
    mask = coco.decode({"size": [int(height), int(width)], "counts": counts})
    assert mask.sum() == frames[0].loc[0, "area_px"]


def test_a_job_that_dies_leaves_nothing(tmp_path: Path) -> None:
    def dying() -> Iterator[pa.RecordBatch]:
        yield rows(600)
        raise RuntimeError("boom")

    out, scratch = tmp_path / "out", tmp_path / "scratch"
    with pytest.raises(RuntimeError, match="boom"):
        write_facts(
            ObjectStore(out), "masks", "masks/x.parquet", dying(), MASKS, {}, row_group_rows=256, scratch_dir=scratch
        )
    assert list(scratch.iterdir()) == []
    assert not out.exists()


def test_a_video_without_rows_is_a_readable_file(tmp_path: Path) -> None:
    record = write_facts(ObjectStore(tmp_path), "masks", "masks/x.parquet", [], MASKS, {})
    assert record.rows == pq.read_table(tmp_path / "masks/x.parquet").num_rows == 0


def test_keys() -> None:
    assert facts_key("masks", "d 1/x", VIDEO, "000001-1-ff") == f"masks/drop=d%201%2Fx/{VIDEO}-000001-1-ff.parquet"
    assert derived_key("labels", "d", VIDEO) == f"labels/drop=d/{VIDEO}.parquet"
    with pytest.raises(StorageError, match="64 hex digits"):
        derived_key("labels", "d", "../x")
    with pytest.raises(StorageError, match="name of the drop"):
        derived_key("labels", "", VIDEO)


@pytest.mark.parametrize("when", ["made", "opened", "closed"])
def test_a_scratch_disk_that_is_full_is_said_whenever_it_is_noticed(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    where = {"made": (tempfile, "mkstemp"), "opened": (pq, "ParquetWriter"), "closed": (pq.ParquetWriter, "close")}
    monkeypatch.setattr(*where[when], full)
    with pytest.raises(DiskSpaceError, match=r"full disk at .*scratch"):
        write_facts(ObjectStore(out), "masks", "masks/x.parquet", [rows(5)], MASKS, {}, scratch_dir=scratch)
    assert list(scratch.iterdir()) == []
    assert not out.exists()
