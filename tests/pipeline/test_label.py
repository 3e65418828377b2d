"""The main job, whole: exact rows, a no-op second run, identical bytes, nothing left by a run that ends half-way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

import pipeline.label
from pipeline.errors import DiskSpaceError, PromptError, StorageError, VideoError
from pipeline.label import VideoReport, label_video
from pipeline.models import LoadedModel, load_model
from pipeline.nano.clips import Clip, render_clip
from pipeline.records import LABELS, MASKS, REVIEW
from pipeline.render.film import FilmWriter
from pipeline.settings import Settings, load_settings

FRAMES = 12
SEED = 900_100_006


@pytest.fixture(scope="module")
def nano() -> LoadedModel:
    return load_model("sam2_nano")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return render_clip(SEED, frames=FRAMES, size=160)


@pytest.fixture(scope="module")
def drop(tmp_path_factory: pytest.TempPathFactory, clip: Clip) -> Path:
    """A folder with one video whose objects start on frame 0 (a click), 5 (a box) and 3 (a full mask)."""
    folder = tmp_path_factory.mktemp("night")
    with FilmWriter(folder / "clip.mp4", 25.0, quality=8) as film:
        for frame in clip.frames_thw3:
            film.append(frame)
    ids = clip.object_ids
    ys, xs = np.nonzero(clip.mask(ids[0])[0])
    box_ys, box_xs = np.nonzero(clip.mask(ids[1 % len(ids)])[5])
    given = coco.encode(np.asfortranarray(clip.mask(ids[0])[3].astype(np.uint8)))
    objects = [
        {"object_id": 1, "label": "thing", "prompts": [{"frame_index": 0, "points": [[int(xs[0]), int(ys[0]), 1]]}]},
        {"object_id": 2, "prompts": [{"frame_index": 5, "box": [
            int(box_xs.min()), int(box_ys.min()), int(box_xs.max()) + 1, int(box_ys.max()) + 1]}]},
        {"object_id": 3, "prompts": [
            {"frame_index": 3, "mask": {"size": given["size"], "counts": given["counts"].decode()}}]},
    ]  # fmt: skip
    (folder / "clip.prompts.json").write_text(json.dumps({"version": 1, "objects": objects}))
    return folder


def _label(
    drop: Path, out: Path | str, model: LoadedModel, settings: Settings | None = None, **more: Any
) -> VideoReport:
    return label_video(
        str(drop / "clip.mp4"), drop / "clip.prompts.json", str(out), settings or load_settings(), model=model, **more
    )


@pytest.fixture(scope="module")
def labelled(drop: Path, nano: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoReport]:
    out = tmp_path_factory.mktemp("out")
    return out, _label(drop, out, nano, load_settings(None, {"output.candidates": True, "output.tokens": True}))


def _rows(out: Path, layer: str = "labels") -> pd.DataFrame:
    return pd.read_parquet(out / layer)


def _parquet_bytes(out: Path) -> dict[str, bytes]:
    """Derived layers by key, facts by layer (their keys are unique to the attempt)."""
    found = {}
    for path in sorted(out.rglob("*.parquet")):
        layer = path.relative_to(out).parts[0]
        found[layer if layer in ("masks", "candidates", "tokens") else str(path.relative_to(out))] = path.read_bytes()
    return found


def test_every_frame_of_every_object_has_exactly_one_row(labelled: tuple[Path, VideoReport]) -> None:
    out, report = labelled
    rows = _rows(out)
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
    rows = _rows(labelled[0])
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
    report = _label(drop, tmp_path, nano, load_settings(None, {"propagate.reverse": False}))
    rows = _rows(tmp_path)
    before = rows[(rows.object_id == 2) & (rows.frame_index < 5)]
    assert (before.visibility == "untracked").all()
    assert (before.decision == "hold").all()
    assert before.rle.isna().all()
    assert report.untracked == 5 + 3


def test_masks_are_coco_rle_with_true_area_and_box(labelled: tuple[Path, VideoReport]) -> None:
    for row in _rows(labelled[0]).itertuples():
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
    assert table.num_rows == report.rows == len(_rows(out))
    assert set(table["drop"].to_pylist()) == {report.labels_uri.split("drop=")[1].split("/")[0]}


def test_a_second_run_is_a_no_op_and_another_place_gets_the_same_bytes(
    drop: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    first = _label(drop, tmp_path / "a", nano)
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "a").rglob("*") if path.is_file()
    }
    again = _label(drop, tmp_path / "a", nano)
    after = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "a").rglob("*") if path.is_file()
    }
    assert (first.status, again.status) == ("labelled", "unchanged")
    assert before == after
    _label(drop, tmp_path / "b", nano, load_settings(None, {"decode.queue_frames": 3}))
    other = _parquet_bytes(tmp_path / "b")
    review = next(key for key in other if key.startswith("review"))
    other.pop(review)  # it names where its pictures lie
    assert other == {key: data for key, data in _parquet_bytes(tmp_path / "a").items() if key != review}


def test_new_prompts_make_a_new_generation_and_readers_see_only_it(
    drop: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    _label(drop, tmp_path, nano)
    fewer = json.loads((drop / "clip.prompts.json").read_text())
    fewer["objects"] = fewer["objects"][:1]
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    report = label_video(str(drop / "clip.mp4"), tmp_path / "fewer.json", str(tmp_path), load_settings(), model=nano)
    assert report.generation == 2
    assert len(_rows(tmp_path)) == FRAMES
    assert len(list((tmp_path / "masks").rglob("*.parquet"))) == 2  # facts are immutable


def test_a_new_policy_re_decides_without_the_model(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = load_settings(None, {"policy.max_uncertainty": 0.0, "policy.absent": "review"})
    _label(drop, tmp_path, nano)
    monkeypatch.setattr(pipeline.label, "run_stages", lambda *_: pytest.fail("the model ran again"))
    report = _label(drop, tmp_path, nano, strict)
    assert report.status == "labelled"
    assert report.generation == 1
    assert report.accepted == 1  # the given mask alone


def test_a_failure_in_the_stages_leaves_nothing_behind(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    monkeypatch.setattr("pipeline.encode.mask_row", _fail_on_frame(7, monkeypatch))
    with pytest.raises(RuntimeError, match="frame 7"):
        _label(drop, out, nano, load_settings(None, {"output.scratch_dir": str(scratch)}))
    assert [path for path in out.rglob("*") if path.is_file()] == []
    assert list(scratch.iterdir()) == []


def _fail_on_frame(index: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    from pipeline.encode import mask_row

    def failing(context: Any, pts: float, scored: Any) -> dict[str, Any]:
        if scored.result.frame_index == index:
            raise RuntimeError(f"frame {index}")
        return mask_row(context, pts, scored)

    return failing


def test_an_orphan_that_could_not_commit_shows_no_reader_anything(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise StorageError("a store that answers", "silence", "try again")

    monkeypatch.setattr("pipeline.ledger.Ledger.commit", die)
    with pytest.raises(StorageError):
        _label(drop, tmp_path, nano)
    assert not list(tmp_path.rglob("labels/**/*.parquet"))
    assert not list(tmp_path.rglob("review/**/*.parquet"))
    monkeypatch.undo()
    assert _label(drop, tmp_path, nano).status == "labelled"
    assert len(_rows(tmp_path)) == FRAMES * 3


@pytest.mark.slow
def test_a_killed_run_leaves_no_label_and_the_next_run_completes(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline.label import label_video; from pipeline.settings import load_settings\n"
        "label_video(sys.argv[1], sys.argv[2], sys.argv[3], load_settings(), progress=lambda p: print(p, flush=True))"
    )
    words = [sys.executable, "-c", code, str(drop / "clip.mp4"), str(drop / "clip.prompts.json"), str(tmp_path)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert child.stdout is not None
    for line in child.stdout:
        if "'propagate', done=6" in line:
            child.send_signal(signal.SIGKILL)
            break
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    assert not list(tmp_path.rglob("*.parquet"))
    _wait_until(lambda: not _decoders_of(child.pid))
    assert _label(drop, tmp_path, nano).rows == FRAMES * 3


def _decoders_of(parent: int) -> list[str]:
    """Processes that still name the dead parent in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "pipeline.video.child" in words and f"{parent})" in words:
            found.append(words)
    return found


def _wait_until(done: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "a decoder outlived its parent"
        time.sleep(0.1)


def test_review_rows_point_to_pictures_of_their_worst_frame(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    from PIL import Image

    _label(drop, tmp_path, nano, load_settings(None, {"policy.max_uncertainty": 0.0}))
    review = _rows(tmp_path, "review")
    first = review[review.representative]
    assert len(first) == review.review_id.nunique() > 0
    for row in first.itertuples():
        assert Image.open(row.frame_uri).size == (160, 160)
        assert Image.open(row.overlay_uri).size[0] >= 160
    assert review[~review.representative].frame_uri.isna().all()


def test_a_mask_too_thin_for_the_model_is_still_stored_as_given(nano: LoadedModel, drop: Path, tmp_path: Path) -> None:
    pole = np.zeros((160, 160), np.uint8)
    pole[20:140, 80:83] = 1
    run = coco.encode(np.asfortranarray(pole))
    mask = {"size": run["size"], "counts": run["counts"].decode()}
    prompts = {"version": 1, "objects": [{"object_id": 1, "prompts": [{"frame_index": 0, "mask": mask}]}]}
    (tmp_path / "pole.json").write_text(json.dumps(prompts))
    label_video(str(drop / "clip.mp4"), tmp_path / "pole.json", str(tmp_path), load_settings(), model=nano)
    first = _rows(tmp_path).iloc[0]
    assert first.visibility == "visible"
    assert first.area_px == int(pole.sum())


def test_labels_do_not_wait_for_pictures(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise VideoError("a frame", "none", "try again")

    monkeypatch.setattr(pipeline.label, "write_review_images", broken)
    assert _label(drop, tmp_path, nano).status == "labelled"
    assert len(_rows(tmp_path)) == FRAMES * 3
    assert _rows(tmp_path, "review").frame_uri.isna().all()


@pytest.mark.parametrize("die_in", ["review", "labels"])
def test_a_death_between_commit_and_labels_is_repaired_by_the_next_run(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_in: str
) -> None:
    from pipeline.derive import Plan

    publish = Plan._publish_layer

    def dying(self: Plan, ledger: Any, layer: str) -> bool:
        if layer == die_in:
            raise KeyboardInterrupt
        return publish(self, ledger, layer)

    monkeypatch.setattr(Plan, "_publish_layer", dying)
    with pytest.raises(KeyboardInterrupt):
        _label(drop, tmp_path, nano)
    assert not list((tmp_path / "labels").rglob("*.parquet"))
    monkeypatch.undo()
    monkeypatch.setattr(pipeline.label, "run_stages", lambda *_: pytest.fail("the model ran again"))
    assert _label(drop, tmp_path, nano).generation == 1
    assert len(_rows(tmp_path)) == FRAMES * 3


@pytest.mark.parametrize(
    ("prompts", "says"),
    [(None, "clip.prompts.json beside it"), ("missing.json", "missing.json")],
)
def test_missing_prompts_are_refused_with_the_next_step(
    drop: Path, nano: LoadedModel, tmp_path: Path, prompts: str | None, says: str
) -> None:
    with pytest.raises(PromptError, match=says):
        label_video(str(drop / "clip.mp4"), prompts, str(tmp_path), load_settings(), model=nano)


def test_an_output_that_cannot_be_written_is_found_before_the_work(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(pipeline.label, "run_stages", lambda *_: pytest.fail("worked for nothing"))
    with pytest.raises(StorageError):
        _label(drop, tmp_path / "file" / "out", nano)


def test_too_little_scratch_disk_is_said_before_the_work(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(DiskSpaceError):
        _label(drop, tmp_path, nano)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_model_without_heads_is_scored_by_its_own_score(drop: Path, nano: LoadedModel, tmp_path: Path) -> None:
    import dataclasses

    report = _label(drop, tmp_path, dataclasses.replace(nano, bank=None))
    rows = _rows(tmp_path)
    scored = rows[(rows.score_source == "sam_score") & (rows.visibility == "visible")]
    assert report.score_source == "sam_score"
    assert not report.certified
    assert len(scored)
    assert scored.uncertainty.to_numpy() == pytest.approx(1 - scored.sam_score.to_numpy(), abs=1e-6)


@pytest.mark.slow
def test_a_real_size_model_without_heads_runs_and_says_how_to_get_them(
    drop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights in the place of a downloaded checkpoint: the architecture, the cache and the job are real."""
    import torch

    from pipeline.checkpoints import model_spec, weights_path
    from pipeline.cli import main
    from pipeline.models import build_model

    torch.manual_seed(0)
    place = weights_path(model_spec("sam2.1_hiera_tiny"), tmp_path / "cache")
    place.parent.mkdir(parents=True)
    torch.save({"model": build_model("sam2.1_hiera_tiny").state_dict()}, place)
    clip = render_clip(SEED, frames=3, size=160)
    with FilmWriter(tmp_path / "short.mp4", 25.0, quality=8) as film:
        for frame in clip.frames_thw3:
            film.append(frame)
    prompts = {"version": 1, "objects": [{"object_id": 1, "prompts": [{"frame_index": 0, "points": [[80, 80, 1]]}]}]}
    (tmp_path / "short.prompts.json").write_text(json.dumps(prompts))
    words = ["label", tmp_path / "short.mp4", "--out", tmp_path / "out", "--model", "sam2.1_hiera_tiny"]
    with pytest.raises(SystemExit) as exited:
        main([*map(str, words), "--set", f"model.cache_dir={tmp_path / 'cache'}"])
    assert exited.value.code == 0
    said = capsys.readouterr().out
    assert "uncertified" in said
    assert "masksieve usam fit" in said
    rows = _rows(tmp_path / "out")
    assert len(rows) == 3
    assert set(rows.score_source) <= {"sam_score", "object_score"}


@pytest.fixture
def rclone_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MASKSIEVE_LEDGER", str(tmp_path / "ledger.sqlite"))
    return


@pytest.mark.slow
@pytest.mark.usefixtures("rclone_ledger")
def test_from_a_bucket_into_a_bucket(drop: Path, nano: LoadedModel, rclone_s3: Any, tmp_path: Path) -> None:
    import s3fs

    store = rclone_s3.settings()
    bucket = rclone_s3.new_bucket()
    files = s3fs.S3FileSystem(
        key=rclone_s3.access_key_id, secret=rclone_s3.secret_access_key, endpoint_url=rclone_s3.endpoint_url
    )
    for name in ("clip.mp4", "clip.prompts.json"):
        files.put(str(drop / name), f"{bucket.removeprefix('s3://')}/night/{name}")
    settings = load_settings().model_copy(update={"storage": store})
    words = f"{bucket}/night/clip.mp4", f"{bucket}/night/clip.prompts.json", f"{bucket}/labels-of-night", settings
    report = label_video(*words, model=nano)
    table = pq.read_table(report.labels_uri.removeprefix("s3://"), filesystem=files)
    assert table.num_rows == FRAMES * 3
    assert label_video(*words, model=nano).status == "unchanged"
    local = _label(drop, tmp_path, nano)
    facts = next(Path(tmp_path, "masks").rglob("*.parquet")).read_bytes()
    remote = files.cat(files.glob(f"{bucket.removeprefix('s3://')}/labels-of-night/masks/*/*.parquet")[0])
    assert local.rows == report.rows
    assert _without_uri(facts, tmp_path / "a.parquet") == _without_uri(remote, tmp_path / "b.parquet")


def _without_uri(data: bytes, scratch: Path) -> list[dict[str, Any]]:
    scratch.write_bytes(data)
    rows = pq.ParquetFile(scratch).read().drop_columns(["video_uri"]).to_pylist()
    return rows
