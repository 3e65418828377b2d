"""Which videos a call means, and which prompts belong to each."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

import pytest

from pipeline.drops import drop_name, find_videos, pair_names
from pipeline.errors import PromptError
from pipeline.prompts import load_prompts
from pipeline.settings import StorageSettings
from pipeline.storage.objects import ObjectStore


class S3Server(Protocol):
    """The server of the fixture `rclone_s3`."""

    def new_bucket(self) -> str: ...
    def settings(self) -> StorageSettings: ...


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MOV", "deep/c.mkv", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "b.prompts.json").write_text("{}")
    return tmp_path


def test_a_folder_gives_its_videos_in_full_depth_with_the_prompts_beside_them(drop: Path) -> None:
    found = find_videos([str(drop)])
    assert [(one.name, one.prompts is not None) for one in found] == [
        ("a.MOV", False),
        ("b.mp4", True),
        ("c.mkv", False),
    ]


def test_what_label_and_show_wrote_into_the_folder_is_no_input(drop: Path) -> None:
    for name in (
        "commits/ab/000001.json",
        "labels/drop=x/ab.parquet",
        "review_images/ab/film.mp4",
        "show/b.overlay.mp4",
    ):
        (drop / name).parent.mkdir(parents=True)
        (drop / name).write_bytes(b"x")
    (drop / "mine.overlay.mp4").write_bytes(b"x")
    (drop / "mine.overlay.prompts.json").write_text("{}")
    assert [one.name for one in find_videos([str(drop)])] == ["a.MOV", "b.mp4", "c.mkv", "mine.overlay.mp4"]
    assert [one.name for one in find_videos([str(drop / "show" / "b.overlay.mp4")])] == ["b.overlay.mp4"]


def test_a_folder_of_labels_that_is_not_ours_is_searched(drop: Path) -> None:
    (drop / "labels").mkdir()
    (drop / "labels" / "d.mp4").write_bytes(b"x")
    assert "d.mp4" in [one.name for one in find_videos([str(drop)])]


def test_names_of_a_bucket_are_paired_like_those_of_a_folder() -> None:
    names = [
        "a.b.MP4", "a.b.prompts.json", "x/ünï 1.mkv", "x/ünï 1.prompts.json", "y/c.mov", "c.prompts.json",
        "out/commits/ab/000001.json", "out/labels/drop=x/ab.parquet", "out/masks/film.mp4", "out/own.mp4",
        "labels/labels/drop=x/ab.parquet", "labels/masks/kept.mp4", "y/f.overlay.mp4",
    ]  # fmt: skip
    assert pair_names(iter(names)) == [
        ("a.b.MP4", "a.b.prompts.json"),
        ("labels/masks/kept.mp4", None),  # nothing was committed there: no output of ours
        ("out/own.mp4", None),
        ("x/ünï 1.mkv", "x/ünï 1.prompts.json"),
        ("y/c.mov", None),
    ]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("s3://bucket/in/night/", "night"), ("s3://bucket", "bucket"), ("/drops/one two", "one two"), ("/", "default")],
)
def test_a_drop_without_a_name_is_called_like_its_folder(folder: str, name: str) -> None:
    assert drop_name(folder) == name


def test_a_glob_and_a_file_name_each_video_once(drop: Path) -> None:
    found = find_videos([str(drop / "*.mp4"), str(drop / "b.mp4"), str(drop / "a.MOV")])
    assert [one.name for one in found] == ["b.mp4", "a.MOV"]


def test_a_file_of_any_suffix_is_tried_when_named(drop: Path) -> None:
    assert [one.error for one in find_videos([str(drop / "notes.txt")])] == [None]


@pytest.mark.parametrize("item", ["nope.mp4", "*.webm", "empty"])
def test_an_input_that_leads_nowhere_is_an_error_beside_the_others(drop: Path, item: str) -> None:
    (drop / "empty").mkdir()
    lost, kept = find_videos([str(drop / item), str(drop / "b.mp4")])
    assert lost.error is not None
    assert item in str(lost.error)
    assert kept.error is None


def test_one_prompts_file_goes_with_one_video_only(drop: Path) -> None:
    assert find_videos([str(drop / "a.MOV")], prompts="x.json")[0].prompts == "x.json"
    with pytest.raises(PromptError, match="give a folder of"):
        find_videos([str(drop)], prompts="x.json")


def test_a_prompts_folder_pairs_by_stem(drop: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "a.prompts.json").write_text("{}")
    found = {one.name: one.prompts for one in find_videos([str(drop)], prompts=str(folder))}
    assert found == {f"{name}": str(folder / f"{name[0]}.prompts.json") for name in ("a.MOV", "b.mp4", "c.mkv")}
    with pytest.raises(PromptError, match=str(folder)):  # a missing one is told with the folder that was searched
        load_prompts(found["b.mp4"] or "")
    may_lack = {one.name: one.prompts for one in find_videos([str(drop)], prompts=str(folder), without_prompts=True)}
    assert may_lack == {"a.MOV": str(folder / "a.prompts.json"), "b.mp4": None, "c.mkv": None}


@pytest.mark.slow
def test_a_bucket_is_listed_like_a_folder(rclone_s3: S3Server, drop: Path) -> None:
    bucket, settings = rclone_s3.new_bucket(), rclone_s3.settings()
    store = ObjectStore(bucket, settings)
    for name in (
        "in/a.mp4",
        "in/a.prompts.json",
        "in/deep/b.mp4",
        "in/notes.txt",
        "in/show/a.overlay.mp4",
        "other/c.mp4",
    ):
        store.put_atomic(name, b"x")
    found = find_videos([f"{bucket}/in/"], storage=settings)
    assert [(one.video, one.prompts) for one in found] == [
        (f"{bucket}/in/a.mp4", f"{bucket}/in/a.prompts.json"),
        (f"{bucket}/in/deep/b.mp4", None),
    ]
    (one,) = find_videos([f"{bucket}/in/a.mp4"], storage=settings)
    assert one.prompts == f"{bucket}/in/a.prompts.json"
    (lost,) = find_videos([f"{bucket}/in/nope.mp4"], storage=settings)
    assert "expected a video or a prefix with videos" in str(lost.error)


def test_a_folder_that_cannot_be_read_is_told_and_the_others_are_searched(
    drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    *found, unread = find_videos([str(drop)])
    assert [one.name for one in found] == ["a.MOV", "b.mp4"]
    assert unread.video == str(drop / "deep")
    assert "Permission denied" in str(unread.error)
