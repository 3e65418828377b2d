"""A snapshot holds what was accepted, once, split by content, whole or not at all, and says what it left out."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import StorageError
from pipeline.ledger import Ledger, forgotten_key
from pipeline.rle import decode, encode_mask
from pipeline.settings import Settings
from pipeline.snapshot import parts as parts_module
from pipeline.snapshot import write
from pipeline.snapshot.dataset import SnapshotDataset
from pipeline.snapshot.frames import scaled_mask
from pipeline.snapshot.manifest import Manifest, split_of
from pipeline.snapshot.sources import find_candidates
from pipeline.snapshot.write import SnapshotOptions, write_snapshot
from pipeline.source import video_sha256
from pipeline.storage.objects import ObjectStore
from pipeline.video.probe import probe_video
from pipeline.video.stream import FrameStream

Objects = Callable[[Path], dict[str, bytes]]


def make(out: Path, settings: Settings, **options: Any) -> Manifest:
    return write_snapshot(str(out), SnapshotOptions(**{"name": "v1", **options}), settings)


def rows_of(out: Path, name: str = "v1") -> list[dict[str, Any]]:
    files = sorted((out / "snapshots" / name).rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def made(original: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """An output with the snapshot v1, for tests that change nothing."""
    out = tmp_path_factory.mktemp("made") / "out"
    shutil.copytree(original / "out", out)
    return out, make(out, settings, val_share=0.5)


def test_it_holds_every_accepted_mask_and_marks_the_others(original: Path, made: tuple[Path, Manifest]) -> None:
    out, _ = made
    labels = pd.read_parquet(out / "labels")
    frames = {(row["video_id"], row["frame_index"]): row for row in rows_of(out)}
    still = video_sha256(original / "drop/day/still.mp4")
    accepted = labels[(labels.decision == "accept") & ((labels.video_id != still) | (labels.frame_index == 0))]
    assert set(zip(accepted.video_id, accepted.frame_index, strict=True)) == set(frames)
    ignored = 0
    for key, row in frames.items():
        here = labels[(labels.video_id == key[0]) & (labels.frame_index == key[1])]
        kept = here[here.decision == "accept"].sort_values("object_id")
        assert [one["object_id"] for one in row["objects"]] == kept.object_id.tolist()
        assert [one["rle"] for one in row["objects"]] == kept.rle.tolist()
        assert [one["weight"] for one in row["objects"]] == kept.weight.tolist()
        others = here[here.decision != "accept"]
        assert sorted(row["ignore"]) == sorted(others[others.visibility == "visible"].rle)
        assert row["unplaced"] == int((others.visibility != "visible").sum())
        assert (row["height"], row["width"]) == (kept.height.iloc[0], kept.width.iloc[0])
        ignored += len(row["ignore"])
    assert ignored  # the clips have some, or this shows nothing


def test_the_pictures_are_the_frames_that_were_labelled(
    original: Path, made: tuple[Path, Manifest], settings: Settings
) -> None:
    out, _ = made
    video = original / "drop/night/exit.mp4"
    found = {row["frame_index"]: row for row in rows_of(out) if row["video_id"] == video_sha256(video)}
    assert len(found) > 2
    with FrameStream(probe_video(video, settings.decode), settings.decode) as stream:
        for frame in stream:
            if frame.index in found:
                stored = np.asarray(Image.open(io.BytesIO(found[frame.index]["image"])))
                assert np.abs(stored.astype(int) - frame.rgb_hw3).mean() < 3
                assert found[frame.index]["pts_seconds"] == pytest.approx(frame.pts_seconds)


def test_a_video_with_two_names_is_in_it_once_and_equal_frames_too(original: Path, made: tuple[Path, Manifest]) -> None:
    out, manifest = made
    keys = [(row["video_id"], row["frame_index"]) for row in rows_of(out)]
    assert len(keys) == len(set(keys)) == manifest.frames
    videos = {video.video_id: video for video in manifest.videos}
    assert len(videos) == len(manifest.videos) == 4
    still = videos[video_sha256(original / "drop/day/still.mp4")]
    assert (still.frames, still.duplicates) == (1, 4)


@given(st.binary(min_size=8, max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_to_validation(seed: bytes, one: float, other: float) -> None:
    video_id = (seed * 4).hex()
    small, large = sorted((one, other))
    assert split_of(video_id, small) == "train" or split_of(video_id, large) == "val"
    assert (split_of(video_id, 0), split_of(video_id, 1)) == ("train", "val")


def test_about_the_share_that_was_asked_for_is_for_validation() -> None:
    ids = [f"{number:064x}" for number in range(2000)]
    assert 0.17 < np.mean([split_of(one, 0.2) == "val" for one in ids]) < 0.23


def test_equal_labels_give_equal_bytes(
    made: tuple[Path, Manifest], out: Path, settings: Settings, objects_in: Objects
) -> None:
    make(out, settings, val_share=0.5)
    first, second = (objects_in(folder / "snapshots/v1") for folder in (made[0], out))
    assert first.keys() == second.keys()
    assert {key for key in first if first[key] != second[key]} == set()


def test_files_are_full_before_the_next_begins(
    made: tuple[Path, Manifest], out: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made[1]
    monkeypatch.setattr(parts_module, "ROW_GROUP_FRAMES", 2)
    manifest = make(out, settings, val_share=0.5, file_bytes=40_000)
    assert len(manifest.parts) > len(whole.parts)
    assert [(row["video_id"], row["frame_index"]) for row in rows_of(out)] == [
        (row["video_id"], row["frame_index"]) for row in rows_of(made[0])
    ]
    for split in ("train", "val"):
        parts = [part for part in manifest.parts if part.split == split]
        assert all(part.bytes >= 40_000 for part in parts[:-1])
        for part in parts:
            groups = pq.ParquetFile(out / "snapshots/v1" / part.key).metadata
            assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == list(part.row_groups)


def test_a_name_is_for_good(out: Path, settings: Settings, objects_in: Objects) -> None:
    make(out, settings, image_quality=None)
    before = objects_in(out / "snapshots/v1")
    with pytest.raises(StorageError, match="one that exists"):
        make(out, settings, image_quality=None, decisions=("accept", "review"))
    assert objects_in(out / "snapshots/v1") == before


KILLED = """
import os, signal, sys
from pipeline.settings import load_settings
from pipeline.snapshot.write import SnapshotOptions, write_snapshot
from pipeline.storage.objects import ObjectStore

left = [int(sys.argv[2])]
def dying(method):
    def call(self, *given):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return method(self, *given)
    return call

for name in ("put_atomic", "put_if_absent"):
    setattr(ObjectStore, name, dying(getattr(ObjectStore, name)))
write_snapshot(sys.argv[1], SnapshotOptions("v1", val_share=0.5, image_quality=None), load_settings())
"""


@pytest.mark.parametrize("writes", [0, 1, 2, 3, 4])
def test_a_killed_run_leaves_nothing_that_anyone_reads(
    out: Path, settings: Settings, objects_in: Objects, writes: int
) -> None:
    whole = make(out, settings, name="whole", val_share=0.5, image_quality=None)
    assert len(whole.parts) == 2  # so that the writes are: two parts, two cards, the manifest
    command = [sys.executable, "-c", KILLED, str(out), str(writes)]
    assert subprocess.run(command, cwd=Path(__file__).parents[3], check=False).returncode == -signal.SIGKILL
    folder = out / "snapshots/v1"
    assert len(list(folder.rglob("*.*")) if folder.exists() else []) >= min(writes, 1)
    with pytest.raises(StorageError, match="no manifest"):
        SnapshotDataset(str(folder))
    folder.joinpath("train").mkdir(parents=True, exist_ok=True)
    (folder / "train/part-00007-0123456789ab.parquet").write_bytes(b"of a run with other options")
    (folder / f".card.html.{'0' * 32}.tmp").write_bytes(b"killed while it was written")
    make(out, settings, val_share=0.5, image_quality=None)
    assert objects_in(folder).keys() == objects_in(out / "snapshots/whole").keys()
    parts = {key: data for key, data in objects_in(folder).items() if key.endswith("parquet")}
    assert parts == {key: data for key, data in objects_in(out / "snapshots/whole").items() if key.endswith("parquet")}


def test_of_two_writers_of_one_name_one_publishes_and_what_it_named_stays(
    out: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, rival = ObjectStore.put_if_absent, []

    def late(self: ObjectStore, key: str, data: bytes) -> bool:
        if key.endswith("manifest.json") and not rival:
            rival.append(True)
            make(out, settings, decisions=("accept", "review"), val_share=0.5, image_quality=None)
        return put(self, key, data)

    monkeypatch.setattr(ObjectStore, "put_if_absent", late)
    with pytest.raises(StorageError, match="one that exists"):
        make(out, settings, image_quality=None)
    published = SnapshotDataset(str(out / "snapshots/v1")).manifest
    assert published.options["decisions"] == ["accept", "review"]
    assert {part.key for part in published.parts} == {
        str(path.relative_to(out / "snapshots/v1")) for path in (out / "snapshots/v1").rglob("*.parquet")
    }
    for key, digest in published.cards.items():
        assert hashlib.sha256((out / "snapshots/v1" / key).read_bytes()).hexdigest() == digest


def moved(out: Path, video: str, uri: str) -> None:
    """Make the newest commit of a video say that it lay elsewhere."""
    for path in (out / "commits").rglob("*.json"):
        body = json.loads(path.read_text())
        if Path(body["video_uri"]).name == video:
            path.write_text(json.dumps({**body, "video_uri": uri}))


def test_a_video_that_is_gone_is_left_out_and_told_or_refused(
    original: Path, out: Path, settings: Settings, tmp_path: Path
) -> None:
    moved(out, "still.mp4", str(tmp_path / "gone.mp4"))
    other = tmp_path / "other.mp4"
    shutil.copy(original / "drop/day/still.mp4", other)
    moved(out, "exit.mp4", str(other))
    with pytest.raises(StorageError, match="strict"):
        make(out, settings, strict=True)
    assert not (out / "snapshots").exists() or not list((out / "snapshots").rglob("*.*"))
    manifest = make(out, settings)
    reasons = {Path(one.video_uri).name: one.reason for one in manifest.left_out}
    assert reasons.keys() == {"gone.mp4", "other.mp4"}
    assert "nothing" in reasons["gone.mp4"]
    assert "other bytes" in reasons["other.mp4"]
    assert {row["video_id"] for row in rows_of(out)}.isdisjoint(one.video_id for one in manifest.left_out)


def test_damaged_labels_cost_their_own_video_only(original: Path, out: Path, settings: Settings) -> None:
    video_id = video_sha256(original / "drop/day/still.mp4")
    (labels,) = (out / "labels").glob(f"*/{video_id}.parquet")
    labels.write_bytes(b"damaged")
    (left_out,) = make(out, settings).left_out
    assert left_out.video_id == video_id
    assert "readable labels" in left_out.reason


def test_the_same_bytes_under_another_name_do(original: Path, out: Path, settings: Settings, tmp_path: Path) -> None:
    video_id = video_sha256(original / "drop/day/still.mp4")
    record = out / f"work/drop=day/{'0' * 64}/done-{video_id}.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"video": str(original / "drop/day/still.mp4")}))
    moved(out, "still.mp4", str(tmp_path / "gone.mp4"))
    assert make(out, settings).left_out == ()


def test_without_images_no_video_is_needed(
    made: tuple[Path, Manifest], out: Path, settings: Settings, tmp_path: Path
) -> None:
    for path in (out / "commits").rglob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "video_uri": str(tmp_path / "gone.mp4")}))
    manifest = make(out, settings, image_quality=None)
    rows = rows_of(out)
    assert manifest.left_out == ()
    assert {row["image"] for row in rows} == {None}
    assert len(rows) == made[1].frames + 4  # equal frames are not looked for


def test_labels_of_an_older_generation_are_left_out(out: Path, settings: Settings) -> None:
    path = next(path for path in (out / "commits").rglob("*.json") if "still" in path.read_text())
    body = json.loads(path.read_text())
    ledger = Ledger(ObjectStore(out))
    newest = ledger.newest(body["video_id"])
    assert newest is not None
    ledger.commit(
        newest.video_id, parent=newest.generation, work_key="other", video_uri=newest.video_uri, drop=newest.drop,
        files=newest.files, run_id="x", attempt=1, started_at=newest.started_at,
    )  # fmt: skip
    manifest = make(out, settings, image_quality=None)
    assert [(one.video_id, "newest generation, 2" in one.reason) for one in manifest.left_out] == [
        (newest.video_id, True)
    ]


def test_a_forgotten_video_is_not_even_named(original: Path, out: Path, settings: Settings) -> None:
    video_id = video_sha256(original / "drop/night/exit.mp4")
    ObjectStore(out).put_atomic(forgotten_key(video_id), b"{}")
    make(out, settings, strict=True, image_quality=None)
    for path in (out / "snapshots").rglob("*.*"):
        assert video_id.encode() not in path.read_bytes()
        assert b"exit.mp4" not in path.read_bytes()


@pytest.mark.parametrize("moment", ["before it is published", "while it is published"])
def test_a_video_that_was_left_out_and_is_forgotten_is_in_no_byte(
    original: Path, out: Path, settings: Settings, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(out, "still.mp4", str(tmp_path / "gone.mp4"))
    tombstone = forgotten_key(video_sha256(original / "drop/day/still.mp4"))
    name = "put_cards" if moment == "while it is published" else "_publish"
    method = getattr(write, name)

    def late(*given: Any) -> Any:
        ObjectStore(out).put_atomic(tombstone, b"{}")
        return method(*given)

    monkeypatch.setattr(write, name, late)
    make(out, settings)
    found = [path for path in (out / "snapshots").rglob("*") if path.is_file()]
    assert found
    assert not [path for path in found if b"gone.mp4" in path.read_bytes()]


def test_a_video_that_is_forgotten_meanwhile_is_not_published(original: Path, out: Path, settings: Settings) -> None:
    video_id = video_sha256(original / "drop/night/exit.mp4")

    def forget(name: str, done: int, total: int) -> None:
        if done == total:
            ObjectStore(out).put_atomic(forgotten_key(video_id), b"{}")

    with pytest.raises(StorageError, match="forgotten"):
        write_snapshot(str(out), SnapshotOptions("v1", image_quality=None), settings, progress=forget)
    assert not list((out / "snapshots").rglob("*.*"))


def test_only_the_drops_that_were_asked_for(out: Path, settings: Settings) -> None:
    assert {video.drop for video in make(out, settings, drops=("day",), image_quality=None).videos} == {"day"}
    with pytest.raises(StorageError, match="choose among day, night"):
        make(out, settings, name="v2", drops=("noon",))


def test_nothing_accepted_is_no_snapshot(out: Path, settings: Settings) -> None:
    with pytest.raises(StorageError, match="at least one frame"):
        make(out, settings, decisions=("hold",))
    assert not list((out / "snapshots").rglob("*.*"))


def test_pictures_and_masks_shrink_together(made: tuple[Path, Manifest], out: Path, settings: Settings) -> None:
    make(out, settings, max_side=100)
    full = {(row["video_id"], row["frame_index"]): row for row in rows_of(made[0])}
    for row in rows_of(out):
        size = row["height"], row["width"]
        assert max(size) == 100
        assert Image.open(io.BytesIO(row["image"])).size == size[::-1]
        before = full[row["video_id"], row["frame_index"]]
        for small, large in zip(row["objects"], before["objects"], strict=True):
            wide = Image.fromarray(decode(small["rle"], *size)).resize((before["width"], before["height"]))
            mask = decode(large["rle"], before["height"], before["width"])
            assert (np.asarray(wide) & mask).sum() > 0.85 * mask.sum()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8), st.integers(1, 8), st.data())
def test_a_mask_with_a_pixel_keeps_one(height: int, width: int, h: int, w: int, data: st.DataObject) -> None:
    mask = np.zeros((height, width), bool)
    pixels = data.draw(st.lists(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), max_size=3))
    for y, x in pixels:
        mask[y, x] = True
    row = {"rle": encode_mask(mask).counts, "height": height, "width": width}
    assert decode(scaled_mask(row, (h, w)), h, w).any() == bool(pixels)


def test_the_card_counts_what_is_there(made: tuple[Path, Manifest]) -> None:
    out, manifest = made
    card = json.loads((out / "snapshots/v1/card.json").read_text())
    rows, labels = rows_of(out), pd.read_parquet(out / "labels")
    assert card["frames"] == len(rows) == manifest.frames
    assert card["objects"] == sum(len(row["objects"]) for row in rows) == sum(card["labels"].values())
    assert card["decisions"] == labels.decision.value_counts().to_dict()
    assert card["coverage"] == pytest.approx((labels.decision == "accept").mean())
    assert sum(card["left_out"]["rows"].values()) == (labels.decision != "accept").sum()
    assert card["left_out"]["duplicate_frames"] == 4
    assert not card["certified"]
    assert [model["model"]["name"] for model in card["models"]] == ["sam2_nano"] * len(card["models"])
    page = (out / "snapshots/v1/card.html").read_text()
    assert page.count("<figure>") == min(12, sum(len(video.looks) for video in manifest.videos)) > 4
    assert "uncertified" in page
    assert "&lt;i&gt;square&lt;/i&gt;" in page  # what people wrote is text, not HTML
    assert "<i>square" not in page


def test_candidates_cost_one_listing_of_commits(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = ObjectStore(out), []
    listed = ObjectStore.list
    monkeypatch.setattr(ObjectStore, "list", lambda self, prefix="": asked.append(prefix) or listed(self, prefix))
    candidates, left_out = find_candidates(store, Ledger(store), ())
    assert candidates
    assert not left_out
    assert sorted(asked) == ["commits/", "labels/"]
