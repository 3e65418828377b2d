"""A video taken out of a snapshot is gone from every byte of it, the others are as they were, also after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from pipeline.cli.entry import app
from pipeline.settings import Settings
from pipeline.snapshot.dataset import SnapshotDataset
from pipeline.snapshot.remove import remove_video, snapshots_with
from pipeline.snapshot.write import SnapshotOptions, write_snapshot
from pipeline.source import video_sha256
from pipeline.storage.objects import ObjectStore

KilledAfter = Callable[[int], AbstractContextManager[None]]

Objects = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def video_id(original: Path) -> str:
    return video_sha256(original / "drop/night/exit.mp4")


@pytest.fixture
def store(out: Path, settings: Settings) -> ObjectStore:
    write_snapshot(str(out), SnapshotOptions("v1", val_share=0.0), settings)
    write_snapshot(str(out), SnapshotOptions("day", drops=("day",), image_quality=None), settings)
    return ObjectStore(out)


def rows(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    found = [row for file in folder.rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    return {(row["video_id"], row["frame_index"]): row for row in found}


def assert_gone(folder: Path, video_id: str, before: dict[tuple[str, int], dict[str, Any]]) -> None:
    assert rows(folder) == {key: row for key, row in before.items() if key[0] != video_id}
    for path in folder.rglob("*.*"):
        assert video_id.encode() not in path.read_bytes()
        assert b"exit.mp4" not in path.read_bytes()
    seen = {sample["video_id"] for sample in SnapshotDataset(str(folder), shuffle=False)}
    assert seen == {key[0] for key in before} - {video_id}


def test_a_removed_video_is_in_no_byte(store: ObjectStore, out: Path, video_id: str) -> None:
    folder, before = out / "snapshots/v1", rows(out / "snapshots/v1")
    card = json.loads((folder / "card.json").read_text())
    assert snapshots_with(store, video_id) == ["v1"]
    held = sum(key[0] == video_id for key in before)
    assert remove_video(store, "v1", video_id) == held > 0
    assert_gone(folder, video_id, before)
    after = json.loads((folder / "card.json").read_text())
    assert (after["frames"], after["videos"]) == (card["frames"] - held, card["videos"] - 1)
    assert after["left_out"]["removed_later"] == 1
    assert snapshots_with(store, video_id) == []
    assert remove_video(store, "v1", video_id) == 0


def test_the_last_video_of_a_file_takes_the_file_with_it(store: ObjectStore, out: Path) -> None:
    ids = {key[0] for key in rows(out / "snapshots/day")}
    for one in ids:
        assert remove_video(store, "day", one) > 0
    assert not list((out / "snapshots/day").rglob("*.parquet"))
    assert list(SnapshotDataset(str(out / "snapshots/day"))) == []


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_a_removal_that_died_is_readable_and_ends_when_called_again(
    store: ObjectStore,
    out: Path,
    video_id: str,
    writes: int,
    killed_after: KilledAfter,
) -> None:
    folder, before = out / "snapshots/v1", rows(out / "snapshots/v1")
    with killed_after(writes):
        remove_video(store, "v1", video_id)
    assert {sample["video_id"] for sample in SnapshotDataset(str(folder))} >= {key[0] for key in before} - {video_id}
    assert snapshots_with(store, video_id) == ["v1"]
    remove_video(store, "v1", video_id)
    assert_gone(folder, video_id, before)
    assert snapshots_with(store, video_id) == []


def test_what_a_killed_run_left_is_found_and_removed(store: ObjectStore, out: Path, video_id: str) -> None:
    (out / "snapshots/v1/manifest.json").unlink()
    (out / "snapshots/v1/train/part-00009-0123456789ab.parquet").write_bytes(b"no Parquet")
    (out / f"snapshots/v1/train/.part-00000-0123456789ab.parquet.{'0' * 32}.tmp").write_bytes(b"killed while written")
    assert snapshots_with(store, video_id) == ["v1"]
    assert remove_video(store, "v1", video_id) > 0
    assert snapshots_with(store, video_id) == []
    assert not [path for path in (out / "snapshots/v1").rglob("*") if path.is_file()]


def test_a_file_that_was_killed_while_it_was_written_goes_with_any_video(
    store: ObjectStore, out: Path, video_id: str
) -> None:
    staged = out / f"snapshots/day/train/.part-00000-0123456789ab.parquet.{'0' * 32}.tmp"
    staged.write_bytes(b"perhaps it holds the video")
    assert snapshots_with(store, video_id) == ["day", "v1"]
    before = rows(out / "snapshots/day")
    assert remove_video(store, "day", video_id) == 0
    assert not staged.exists()
    assert snapshots_with(store, video_id) == ["v1"]
    assert rows(out / "snapshots/day") == before


def test_two_removals_at_once_both_count(
    store: ObjectStore, out: Path, original: Path, video_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = video_sha256(original / "drop/day/still.mp4")
    replace, rival = ObjectStore.replace, []

    def late(self: ObjectStore, *given: Any) -> bool:
        if not rival:
            rival.append(True)
            remove_video(store, "v1", other)
        return replace(self, *given)

    monkeypatch.setattr(ObjectStore, "replace", late)
    before = {key: row for key, row in rows(out / "snapshots/v1").items() if key[0] != other}
    remove_video(store, "v1", video_id)
    assert_gone(out / "snapshots/v1", video_id, before)
    assert json.loads((out / "snapshots/v1/card.json").read_text())["left_out"]["removed_later"] == 2


def test_a_bucket_holds_it_too(
    out: Path, settings: Settings, moto_s3: Any, objects_in: Objects, video_id: str, tmp_path: Path
) -> None:
    bucket, storage = moto_s3.new_bucket(), moto_s3.settings()
    remote = settings.model_copy(update={"storage": storage})
    options = SnapshotOptions("v1", val_share=0.0)
    manifest = write_snapshot(str(out), options, remote, to=bucket)
    write_snapshot(str(out), options, settings)
    store = ObjectStore(bucket, storage)
    for key, data in objects_in(out / "snapshots/v1").items():
        if not key.startswith("manifest"):
            assert store.get(f"snapshots/v1/{key}") == data
    dataset = SnapshotDataset(f"{bucket}/snapshots/v1", storage=storage)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sum(1 for _ in loader) == manifest.frames
    removed = remove_video(store, "v1", video_id)
    assert removed > 0
    assert snapshots_with(store, video_id) == []
    assert sum(1 for _ in SnapshotDataset(f"{bucket}/snapshots/v1", storage=storage)) == manifest.frames - removed


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--name", "v1", "--no-images"], 0, "uncertified"),
        (["--name", "../v1"], 1, "a name of a snapshot"),
        (["--name", "v1", "--decisions", "accept,maybe"], 1, "--decisions of"),
        (["--name", "v1", "--drop", "noon"], 1, "choose among"),
    ],
)
def test_the_command_line_says_what_happened(out: Path, words: list[str], code: int, said: str) -> None:
    result = CliRunner().invoke(app, ["snapshot", str(out), *words])
    told = f"{result.output} {result.exception or ''}"
    assert said in told
    assert bool(result.exit_code) == bool(code)
    assert (out / "snapshots/v1/manifest.json").exists() == (code == 0)
