"""What is left when a run ends half-way, and what is refused before it begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import pipeline.label
from pipeline.derive import derive
from pipeline.errors import DiskSpaceError, PromptError, StorageError, VideoError
from pipeline.label import label_video
from pipeline.ledger import Ledger
from pipeline.models import LoadedModel
from pipeline.settings import load_settings
from pipeline.source import LocalVideo
from pipeline.storage.objects import ObjectStore

from .conftest import FRAMES, read_rows, run_label


def test_a_failure_in_the_stages_leaves_nothing_behind(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    monkeypatch.setattr("pipeline.encode.mask_row", _fail_on_frame(7, monkeypatch))
    with pytest.raises(RuntimeError, match="frame 7"):
        run_label(drop, out, nano, load_settings(None, {"output.scratch_dir": str(scratch)}))
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
        run_label(drop, tmp_path, nano)
    assert not list(tmp_path.rglob("labels/**/*.parquet"))
    assert not list(tmp_path.rglob("review/**/*.parquet"))
    monkeypatch.undo()
    assert run_label(drop, tmp_path, nano).status == "labelled"
    assert len(read_rows(tmp_path)) == FRAMES * 3


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
    assert run_label(drop, tmp_path, nano).rows == FRAMES * 3


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

    run_label(drop, tmp_path, nano, load_settings(None, {"policy.max_uncertainty": 0.0}))
    review = read_rows(tmp_path, "review")
    first = review[review.representative]
    assert len(first) == review.review_id.nunique() > 0
    for row in first.itertuples():
        assert Image.open(row.frame_uri).size == (160, 160)
        assert Image.open(row.overlay_uri).size[0] >= 160
    assert review[~review.representative].frame_uri.isna().all()


def test_labels_do_not_wait_for_pictures(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise VideoError("a frame", "none", "try again")

    monkeypatch.setattr(pipeline.label, "write_review_images", broken)
    assert run_label(drop, tmp_path, nano).status == "labelled"
    assert len(read_rows(tmp_path)) == FRAMES * 3
    assert read_rows(tmp_path, "review").frame_uri.isna().all()


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
        run_label(drop, tmp_path, nano)
    assert not list((tmp_path / "labels").rglob("*.parquet"))
    monkeypatch.undo()
    monkeypatch.setattr(pipeline.label, "run_stages", lambda *_: pytest.fail("the model ran again"))
    assert run_label(drop, tmp_path, nano).generation == 1
    assert len(read_rows(tmp_path)) == FRAMES * 3


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
    with pytest.raises(StorageError, match=f"to write {tmp_path}/file/out, got"):
        run_label(drop, tmp_path / "file" / "out", nano)


def test_a_scratch_folder_without_its_parent_is_refused_and_not_made(
    drop: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    settings = load_settings(None, {"output.scratch_dir": str(tmp_path / "typo" / "scratch")})
    with pytest.raises(StorageError, match="typo/scratch"):
        run_label(drop, tmp_path / "out", nano, settings)
    assert not (tmp_path / "typo").exists()
    run_label(drop, tmp_path / "out", nano, load_settings(None, {"output.scratch_dir": str(tmp_path / "scratch")}))


def test_too_little_scratch_disk_is_said_before_the_work(
    drop: Path, nano: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(DiskSpaceError):
        run_label(drop, tmp_path, nano)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_damaged_facts_are_made_again_by_the_next_run(
    drop: Path, nano: LoadedModel, tmp_path: Path, damage: str
) -> None:
    first = run_label(drop, tmp_path, nano)
    (masks,) = (tmp_path / "masks").rglob("*.parquet")
    (labels,) = (tmp_path / "labels").rglob("*.parquet")
    data = bytearray(masks.read_bytes())
    data[len(data) // 2] ^= 1
    masks.write_bytes(data) if damage == "flipped" else masks.unlink()
    labels.unlink()
    with pytest.raises(StorageError, match=f"label .*{drop.name}/clip.mp4 again"):
        derive(ObjectStore(tmp_path), Ledger(ObjectStore(tmp_path)), first.video_id, load_settings().policy)
    again = run_label(drop, tmp_path, nano, keep_first=True)
    assert (again.status, again.generation, again.rows) == ("labelled", 2, first.rows)
    assert run_label(drop, tmp_path, nano).status == "unchanged"


def test_a_bucket_video_is_told_by_its_address_and_not_by_its_download(
    drop: Path, nano: LoadedModel, tmp_path: Path
) -> None:
    damaged = tmp_path / "scratch" / "source.mp4"
    damaged.parent.mkdir()
    damaged.write_bytes(b"no video")
    local = LocalVideo(damaged, "0" * 64, "s3://bucket/night/a.mp4")
    prompts = next(drop.glob("*.prompts.json"))
    with pytest.raises(VideoError, match=r"s3://bucket/night/a\.mp4") as error:
        label_video(local.uri, prompts, str(tmp_path / "out"), load_settings(), model=nano, source=nullcontext(local))
    assert str(damaged) not in str(error.value)
