"""What the job writes: exact rows, identical bytes, a no-op second run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

import pipeline.label
from pipeline.label import label_video
from pipeline.models import LoadedModel
from pipeline.nano.clips import Clip
from pipeline.records import LABELS, MASKS, REVIEW
from pipeline.report import VideoReport
from pipeline.settings import load_settings

from .conftest import FRAMES, read_rows, run_label


def _parquet_bytes(out: Path) -> dict[str, bytes]:
    """Derived layers by key, facts by layer (their keys are unique to the attempt)."""
    found = {}
    for path in sorted(out.rglob("*.parquet")):
        layer = path.relative_to(out).parts[0]
        found[layer if layer in ("masks", "candidates", "tokens") else str(path.relative_to(out))] = path.read_bytes()
    return found


def test_every_frame_of_every_object_has_exactly_one_row(labelled: tuple[Path, VideoReport]) -> None:
    out, report = labelled
    rows = read_rows(out)
    assert report.rows == len(rows) == FRAMES * 3
    assert report.accepted + report.review + report.hold == report.rows
    keys = list(zip(rows.frame_index, rows.object_id, strict=True))
    assert keys == [(frame, one) for frame in range(FRAMES) for one in (1, 2, 3)]
    assert rows.pts_seconds.drop_duplicates().to_numpy() == pytest.approx(np.arange(FRAMES) / 25, abs=1e-3)


def test_files_have_the_schemas_of_the_records(labelled: tuple[Path, VideoReport]) -> None:
    out, _ = labelled
    for layer, schema in (("masks", MASKS), ("labels", LABELS), ("review", REVIEW)):
        for path in (out / layer).rglob("*.parquet"):
            assert pq.read_schema(path).remove_metadata().equals(schema), layer
    assert len(pq.read_table(next((out / "tokens").rglob("*.parquet")))) > 0
    candidates = pq.read_table(next((out / "candidates").rglob("*.parquet"))).to_pandas()
    assert (candidates.groupby(["frame_index", "object_id"]).size() == 3).all()


def test_a_late_object_is_reached_backwards_and_a_given_mask_is_not_scored(
    labelled: tuple[Path, VideoReport], clip: Clip
) -> None:
    rows = read_rows(labelled[0])
    late = rows[rows.object_id == 2].set_index("frame_index")
    assert (late.loc[:4].direction == "reverse").all()
    assert late.loc[5].direction == "none"
    assert late.loc[5].prompted == "box"
    assert (late.loc[6:].direction == "forward").all()
    assert (late.visibility != "untracked").all()
    given = rows[(rows.object_id == 3) & (rows.frame_index == 3)].iloc[0]
    assert given.prompted == "mask"
    stored = coco.decode({"size": [160, 160], "counts": given.rle}).astype(bool)
    assert np.array_equal(stored, clip.mask(clip.object_ids[0])[3])  # every pixel, not the model's small copy
    assert given.decision == "accept"
    assert list(given.reasons) == ["given"]
    assert pd.isna(given.sam_score)
    assert pd.isna(given.iou_tracked)
    assert pd.isna(given.uncertainty)


def test_without_a_reverse_pass_frames_before_the_prompt_are_untracked_and_held(
    drop: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    report = run_label(drop, tmp_path, nano, load_settings(None, {"propagate.reverse": False}))
    rows = read_rows(tmp_path)
    before = rows[(rows.object_id == 2) & (rows.frame_index < 5)]
    assert (before.visibility == "untracked").all()
    assert (before.decision == "hold").all()
    assert before.rle.isna().all()
    assert report.untracked == 5 + 3


def test_masks_are_coco_rle_with_true_area_and_box(labelled: tuple[Path, VideoReport]) -> None:
    for row in read_rows(labelled[0]).itertuples():
        mask = coco.decode({"size": [row.height, row.width], "counts": row.rle})
        assert mask.shape == (160, 160)
        assert int(mask.sum()) == row.area_px
        if row.area_px:
            ys, xs = np.nonzero(mask)
            assert list(row.bbox_xyxy) == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        else:
            assert row.visibility == "absent"


def test_the_same_rows_through_pandas_pyarrow_and_duckdb(labelled: tuple[Path, VideoReport]) -> None:
    duckdb = pytest.importorskip("duckdb")
    out, report = labelled
    table = ds.dataset(out / "labels", partitioning="hive").to_table()
    glob = str(out / "labels/**/*.parquet")
    counted = duckdb.sql(
        f"select count(*), count(distinct frame_index) from read_parquet('{glob}', hive_partitioning=true)"
    )
    assert counted.fetchall() == [(report.rows, FRAMES)]
    assert table.num_rows == report.rows == len(read_rows(out))
    assert set(table["drop"].to_pylist()) == {report.labels_uri.split("drop=")[1].split("/")[0]}


def test_a_second_run_is_a_no_op_and_another_place_gets_the_same_bytes(
    drop: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    first = run_label(drop, tmp_path / "a", nano)
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "a").rglob("*") if path.is_file()
    }
    again = run_label(drop, tmp_path / "a", nano)
    after = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "a").rglob("*") if path.is_file()
    }
    assert (first.status, again.status) == ("labelled", "unchanged")
    assert before == after
    run_label(drop, tmp_path / "b", nano, load_settings(None, {"decode.queue_frames": 3}))
    other = _parquet_bytes(tmp_path / "b")
    review = next(key for key in other if key.startswith("review"))
    other.pop(review)  # it names where its pictures lie
    assert other == {key: data for key, data in _parquet_bytes(tmp_path / "a").items() if key != review}


def test_new_prompts_make_a_new_generation_and_readers_see_only_it(
    drop: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    run_label(drop, tmp_path, nano)
    fewer = json.loads((drop / "clip.prompts.json").read_text())
    fewer["objects"] = fewer["objects"][:1]
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    report = label_video(str(drop / "clip.mp4"), tmp_path / "fewer.json", str(tmp_path), load_settings(), model=nano)
    assert report.generation == 2
    assert len(read_rows(tmp_path)) == FRAMES
    assert len(list((tmp_path / "masks").rglob("*.parquet"))) == 2  # facts are immutable


def test_a_new_policy_re_decides_without_the_model(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = load_settings(None, {"policy.max_uncertainty": 0.0, "policy.absent": "review"})
    run_label(drop, tmp_path, nano)
    monkeypatch.setattr(pipeline.label, "run_stages", lambda *_: pytest.fail("the model ran again"))
    report = run_label(drop, tmp_path, nano, strict)
    assert report.status == "re-decided"
    assert report.generation == 1
    assert report.accepted == 1  # the given mask alone


def test_a_mask_too_thin_for_the_model_is_still_stored_as_given(nano: LoadedModel, drop: Path, tmp_path: Path) -> None:
    pole = np.zeros((160, 160), np.uint8)
    pole[20:140, 80:83] = 1
    run = coco.encode(np.asfortranarray(pole))
    mask = {"size": run["size"], "counts": run["counts"].decode()}
    prompts = {"version": 1, "objects": [{"object_id": 1, "prompts": [{"frame_index": 0, "mask": mask}]}]}
    (tmp_path / "pole.json").write_text(json.dumps(prompts))
    label_video(str(drop / "clip.mp4"), tmp_path / "pole.json", str(tmp_path), load_settings(), model=nano)
    first = read_rows(tmp_path).iloc[0]
    assert first.visibility == "visible"
    assert first.area_px == int(pole.sum())
