"""What holds for every data set: order, laziness, limits, layouts, and clips that somebody rendered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usam.datasets import files
from usam.datasets.mp4 import VideoFile
from usam.datasets.registry import DATASETS, describe, open_dataset
from usam.datasets.samples import Selection
from usam.datasets.selection import refuse_shared
from usam.datasets.synthetic import Rendered
from usam.errors import DatasetError

FIRST_SPLIT = {name: next(iter(kind.markers)) for name, kind in DATASETS.items()}
NAMES = sorted(DATASETS)
LIMITS = st.none() | st.integers(1, 12)


def read_all(trees: Any, name: str, split: str) -> None:
    for sample in trees.open(name, split).samples():
        sample.mask()
        sample.image()


def keys(dataset: Any) -> list[tuple[Any, ...]]:
    return [(s.dataset, s.split, s.video_id, s.frame_index, s.object_id) for s in dataset.samples()]


@pytest.mark.parametrize("name", NAMES)
def test_samples_come_video_by_video_in_order_and_the_same_every_time(trees: Any, name: str) -> None:
    dataset = trees.open(name, FIRST_SPLIT[name])
    found = keys(dataset)
    assert found == keys(dataset) == keys(trees.open(name, FIRST_SPLIT[name]))
    assert len(set(found)) == len(found)
    assert list(dict.fromkeys(key[2] for key in found)) == list(dataset.video_ids)
    by_video = [[key[3:] for key in found if key[2] == video] for video in dataset.video_ids]
    assert by_video == [sorted(rows) for rows in by_video]
    assert {key[:2] for key in found} == {(name, FIRST_SPLIT[name])}
    for sample in dataset.samples():
        image_hw3, mask_hw = sample.image(), sample.mask()
        assert (image_hw3.dtype, mask_hw.dtype) == (np.uint8, bool)
        assert image_hw3.shape == (*mask_hw.shape, 3)
        assert mask_hw.any()
        image_hw3[:], mask_hw[:] = 0, False  # the caller's own
    assert any(sample.image().any() and sample.mask().any() for sample in dataset.samples())


@pytest.mark.parametrize("name", NAMES)
def test_images_are_decoded_only_when_asked_for_and_once_per_frame(trees: Any, name: str, monkeypatch: Any) -> None:
    opened: Counter[str] = Counter()
    convert, decode = files.pillow.Image.convert, VideoFile._decode
    monkeypatch.setattr(
        files.pillow.Image, "convert", lambda self, mode: (opened.update([str(id(self))]), convert(self, mode))[1]
    )
    monkeypatch.setattr(VideoFile, "_decode", lambda self: (opened.update([str(self.path)]), decode(self))[1])
    dataset = trees.open(name, FIRST_SPLIT[name])
    for sample in dataset.samples():
        sample.mask()
    assert not opened
    frames = 0
    for frame in dataset.frames():
        frames += 1
        for sample in frame.samples():
            sample.image()
    videos = len(dataset)
    assert sum(opened.values()) <= (videos if name == "sav" else frames)


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_takes_the_first_and_a_seed_a_repeatable_choice(trees: Any, name: str) -> None:
    split = FIRST_SPLIT[name]
    whole = keys(trees.open(name, split))
    some = keys(trees.open(name, split, selection=Selection(max_videos=1, max_frames=1)))
    assert some == [key for key in whole if key[2:4] == whole[0][2:4]]
    for seed in range(3):
        limits = Selection(max_videos=2, max_frames=2, seed=seed)
        drawn = keys(trees.open(name, split, selection=limits))
        assert drawn == keys(trees.open(name, split, selection=limits)) == [key for key in whole if key in drawn]
        frames = {key[2:4] for key in drawn}
        assert max(Counter(video for video, _ in frames).values()) <= 2


@settings(max_examples=40, deadline=None)
@given(
    videos=st.lists(st.text(min_size=1), unique=True, max_size=20), limit=LIMITS, seed=st.none() | st.integers(0, 99)
)
def test_a_larger_limit_keeps_what_a_smaller_one_chose(videos: list[str], limit: int | None, seed: int | None) -> None:
    chosen = Selection(limit, limit, seed).videos(videos)
    assert chosen == [video for video in videos if video in chosen]
    assert len(chosen) == min(len(videos), len(videos) if limit is None else limit)
    larger = Selection(None if limit is None else limit + 1, None, seed).videos(videos)
    assert set(chosen) <= set(larger)
    frames = Selection(None, limit, seed).frames("v", range(0, 4 * len(videos), 4))
    assert frames == sorted(set(frames))


def test_seeds_differ() -> None:
    videos = [str(i) for i in range(50)]
    assert len({tuple(Selection(5, None, seed).videos(videos)) for seed in range(20)}) > 15


@pytest.mark.parametrize("limits", [{"max_videos": 0}, {"max_frames": -1}])
def test_a_limit_below_one_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(DatasetError, match="at least 1"):
        Selection(**limits)


def test_a_video_in_two_splits_is_refused_by_name() -> None:
    refuse_shared("mine", {"a": ["x", "y"], "b": ["z"], "c": []})
    with pytest.raises(DatasetError, match="2 in a and in c, such as x"):
        refuse_shared("mine", {"a": ["x", "y"], "b": ["z"], "c": ["y", "x"]})


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_is_recognised_with_its_splits(trees: Any, name: str) -> None:
    layout = describe(trees.root(name))
    assert (layout.name, layout.splits) == (name, tuple(s for s in DATASETS[name].markers if s != "all"))
    for split in layout.splits:
        assert open_dataset(layout.name, layout.root, split).video_ids


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_is_found_one_folder_below(trees: Any, name: str) -> None:
    layout = describe(trees.root(name).parent)
    assert layout.name == name
    assert open_dataset(layout.name, layout.root, layout.splits[0]).video_ids


def test_a_layout_that_is_not_whole_is_named_with_what_it_lacks(trees: Any, tmp_path: Path) -> None:
    root = trees.root("davis2017")
    for path in (root / "ImageSets" / "2017").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"nearest davis2017 train, got .* without ImageSets/2017/train\.txt"):
        describe(root)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="none of them"):
        describe(tmp_path / "empty")
    with pytest.raises(DatasetError, match="no folder"):
        describe(tmp_path / "nowhere")


def test_an_unknown_name_split_or_folder_is_named(trees: Any, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"'davis'; did you mean davis2017\?"):
        open_dataset("davis", tmp_path, "val")
    with pytest.raises(DatasetError, match="training, validation, got 'val'"):
        trees.open("ade20k", "val")
    with pytest.raises(DatasetError, match="no folder"):
        open_dataset("coco", tmp_path / "nowhere", "val2017")


def test_synthetic_clips_come_from_every_way_to_store_them(trees: Any, make: Any) -> None:
    for split, exact in (("train", "c1"), ("val", ""), ("test", "c3")):
        for frame in trees.open("synthetic", split).frames():
            assert frame.object_ids() == (1, 2)
            assert np.array_equal(frame.mask(2), make.ids(0, 1, shift=frame.frame_index) == 1)
            error = abs(frame.image().astype(int) - make.picture(frame.frame_index)).max()
            assert error < (1 if frame.video_id == exact else 12)


def test_clips_without_splits_are_one_split(trees: Any) -> None:
    layout = describe(trees.root("synthetic") / "train")
    assert (layout.name, layout.splits) == ("synthetic", ("all",))
    assert open_dataset("synthetic", layout.root, "all").video_ids == ("c0", "c1")


SYNTHETIC: dict[str, tuple[str, Any, str]] = {
    "no truth": ("train", lambda root: (root / "train/c1.truth.npz").unlink(), "the truth of a clip .* none of c1"),
    "no frames": ("train", lambda root: (root / "train/c0.mp4").unlink(), "the frames of a clip .* none of c0"),
    "no array": ("train", lambda root: np.savez(root / "train/c0.truth.npz", masks=np.zeros(3)), "npz with ids_thw"),
    "no npz": ("train", lambda root: (root / "train/c0.truth.npz").write_bytes(b"no"), "npz with ids_thw"),
    "ids that are no bytes": (
        "train",
        lambda root: np.savez(root / "train/c0.truth.npz", ids_thw=np.zeros((3, 4, 4))),
        r"ids_thw \(T, H, W\) uint8, got float64",
    ),
    "truth of another size": (
        "train",
        lambda root: np.savez(root / "train/c0.truth.npz", ids_thw=np.ones((3, 4, 4), np.uint8)),
        "4x4 .*got 52x36",
    ),
    "a frame too few": ("test", lambda root: (root / "test/c3/00001.png").unlink(), r"no .*c3/00001\.png"),
    "a mask too few": ("test", lambda root: (root / "test/c3.truth/00001.png").unlink(), r"no .*truth/00001\.png"),
    "a video too short": (
        "train",
        lambda root: np.savez(root / "train/c0.truth.npz", ids_thw=np.ones((9, 36, 52), np.uint8)),
        r"frame 3 in .*c0\.mp4, got 3 frames",
    ),
    "a clip in two splits": (
        "val",
        lambda root: [(root / f"test/c3{end}").rename(root / f"test/c2{end}") for end in ("", ".truth")],
        "in val and in test, such as c2",
    ),
    "no split": ("val", lambda root: (root / "val").rename(root / "elsewhere"), "videos in synthetic val, got none"),
}


@pytest.mark.parametrize("damage", list(SYNTHETIC))
def test_damage_to_clips_is_named(trees: Any, damage: str) -> None:
    split, harm, message = SYNTHETIC[damage]
    assert keys(trees.open("synthetic", split))
    harm(trees.root("synthetic"))
    with pytest.raises(DatasetError, match=message):
        read_all(trees, "synthetic", split)


def test_a_callable_renders_clips_one_by_one(make: Any) -> None:
    asked: list[str] = []

    def render(video_id: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        asked.append(video_id)
        return np.stack([make.picture(t) for t in range(3)]), np.stack([make.ids(5, shift=t) for t in range(3)])

    dataset = Rendered(render, ["seed 1", "seed 2"], "train", Selection(max_frames=2))
    assert asked == []
    samples = dataset.samples()
    first = next(samples)
    assert asked == ["seed 1"]
    assert np.array_equal(first.image(), make.picture(0))
    assert np.array_equal(first.mask(), make.ids(5) > 0)
    assert [(s.video_id, s.frame_index) for s in samples] == [("seed 1", 1), ("seed 2", 0), ("seed 2", 1)]
    with pytest.raises(DatasetError, match=r"frames \(T, H, W, 3\)"):
        list(Rendered(lambda _: (make.picture(0), make.ids(1)), ["x"]).frames())
    with pytest.raises(DatasetError, match="got none in the list of clips"):
        Rendered(render, [])
