"""DAVIS 2017, MOSE and SA-V: frames, objects and masks as section by section published; each damage is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from usam.datasets.samples import Selection
from usam.errors import DatasetError


def places(dataset: Any) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(frame.video_id, frame.frame_index, frame.object_ids()) for frame in dataset.frames()]


def test_davis_gives_every_frame_in_the_order_of_its_list(trees: Any, make: Any) -> None:
    dataset = trees.open("davis2017", "train")
    objects = [(1, 2), (1,), (1, 2), (1, 2)]
    assert places(dataset) == [(video, i, objects[i]) for video in ("bear", "ant") for i in range(4)]
    frame = list(dataset.frames())[6]
    assert (frame.dataset, frame.split, frame.video_id, frame.frame_index) == ("davis2017", "train", "ant", 2)
    assert np.array_equal(frame.mask(2), make.ids(0, 1, shift=2) == 1)
    assert abs(frame.image().astype(int) - make.picture(6)).max() < 12
    assert frame.image().dtype == np.uint8


def test_an_object_that_is_not_on_a_frame_has_an_empty_mask_there(trees: Any) -> None:
    for name, split, index in (("davis2017", "train", 1), ("sav", "train", 1), ("sav", "val", 1)):
        frame = list(trees.open(name, split).frames())[index]
        gone = 2 if name == "davis2017" else 1
        assert gone not in frame.object_ids()
        mask_hw = frame.mask(gone)
        assert mask_hw.shape == frame.size_hw()
        assert not mask_hw.any()
        assert not frame.mask(99).any()


def test_davis_has_two_resolutions(trees: Any) -> None:
    small, large = (trees.open("davis2017", "val", resolution=r) for r in ("480p", "Full-Resolution"))
    assert [n * 2 for n in next(small.frames()).image().shape[:2]] == list(next(large.frames()).image().shape[:2])
    with pytest.raises(DatasetError, match="480p, Full-Resolution"):
        trees.open("davis2017", "val", resolution="1080p")


@pytest.mark.parametrize(("name", "split", "video"), [("davis2017", "test-dev", "dog"), ("mose", "valid", "2e3f")])
def test_where_only_frame_0_has_public_truth_only_it_comes(trees: Any, name: str, split: str, video: str) -> None:
    assert [(v, i) for v, i, _ in places(trees.open(name, split))] == [(video, 0)]


@pytest.mark.parametrize("meta", [True, False])
def test_mose_gives_every_frame_of_train_with_or_without_its_meta_file(trees: Any, make: Any, meta: bool) -> None:
    root = trees.folder / "mose"
    make.mose(root, meta=meta)
    assert places(trees.open("mose", "train")) == [(v, i, (3, 7)) for v in ("0a1b", "1c2d") for i in range(3)]


def test_sav_train_aligns_every_fourth_frame_with_its_run_lengths(trees: Any, make: Any) -> None:
    dataset = trees.open("sav", "train")
    videos = ("sav_000001", "sav_000002", "sav_001001")
    assert places(dataset) == [(v, i, (0,) if i == 4 else (0, 1)) for v in videos for i in (0, 4, 8)]
    for frame in dataset.frames():
        assert abs(frame.image().astype(int) - make.picture(frame.frame_index)).max() < 12
        assert np.array_equal(frame.mask(0), make.ids(1, shift=frame.frame_index // 4) > 0)


@pytest.mark.parametrize(("split", "video"), [("val", "sav_010001"), ("test", "sav_011001")])
def test_sav_pictures_have_one_folder_per_object_and_every_fourth_frame(
    trees: Any, make: Any, split: str, video: str
) -> None:
    dataset = trees.open("sav", split)
    assert places(dataset) == [(video, i, (0,) if i == 4 else (0, 1)) for i in (0, 4, 8)]
    last = list(dataset.frames())[-1]
    assert np.array_equal(last.mask(1), make.ids(0, 1) > 0)
    assert abs(last.image().astype(int) - make.picture(8)).max() < 12


def test_frames_of_a_video_file_may_be_read_late_and_backwards(trees: Any) -> None:
    frames = list(trees.open("sav", "train").frames())[:3]
    backwards = [frame.image() for frame in reversed(frames)]
    again = [frame.image() for frame in frames]
    assert all(np.array_equal(a, b) for a, b in zip(backwards[::-1], again, strict=True))
    assert np.array_equal(frames[1].image(), frames[1].image())


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_turned_video_stands_upright(trees: Any, make: Any, rotation: int) -> None:
    from usam.datasets.mp4 import VideoFile

    path = trees.folder / "turned.mp4"
    make.save_mp4(path, 2, rotation=rotation)
    upright = np.rot90(make.picture(1), rotation // 90)
    shown = VideoFile(path).frame(1)
    assert shown.shape == upright.shape
    assert abs(shown.astype(int) - upright).max() < 12


# Each damage: data set, split, what is done to the tree, what the message must name.
def swap(path: Any, saved: Any) -> None:
    path.unlink()
    saved(path)


DAMAGE: dict[str, tuple[str, str, Any, str]] = {
    "davis: missing mask": (
        "davis2017",
        "train",
        lambda root, make: (root / "Annotations/480p/ant/00002.png").unlink(),
        r"a mask for every frame, got no .*ant/00002\.png",
    ),
    "davis: missing frame": (
        "davis2017",
        "train",
        lambda root, make: (root / "JPEGImages/480p/ant/00002.jpg").unlink(),
        r"a frame for every mask, got no .*ant/00002\.jpg",
    ),
    "davis: mask of another size": (
        "davis2017",
        "train",
        lambda root, make: make.save_palette(root / "Annotations/480p/ant/00001.png", make.ids(1, height=40)),
        r"52x36 .*ant/00001\.png, got 52x40 .* at frame 1 of ant",
    ),
    "davis: colours instead of a palette": (
        "davis2017",
        "train",
        lambda root, make: make.save_grey(root / "Annotations/480p/ant/00001.png", make.picture(1)),
        r"one channel .*00001\.png of mode RGB",
    ),
    "davis: broken mask": (
        "davis2017",
        "train",
        lambda root, make: (root / "Annotations/480p/ant/00001.png").write_bytes(b"\x89PNG\r\n\x1a\nno"),
        r"a readable picture, got .*ant/00001\.png",
    ),
    "davis: broken frame": (
        "davis2017",
        "train",
        lambda root, make: (root / "JPEGImages/480p/ant/00001.jpg").write_bytes(
            (root / "JPEGImages/480p/ant/00001.jpg").read_bytes()[:300]
        ),
        r"a readable picture, got .*ant/00001\.jpg",
    ),
    "davis: odd file": (
        "davis2017",
        "train",
        lambda root, make: (root / "JPEGImages/480p/bear/1.jpg").write_bytes(b""),
        r"only frames named 00000\.jpg .*got 1\.jpg",
    ),
    "davis: listed video that is not there": (
        "davis2017",
        "train",
        lambda root, make: (root / "JPEGImages/480p/ant").rename(root / "JPEGImages/480p/emu"),
        r"the listed video ant, got no folder",
    ),
    "davis: no list": (
        "davis2017",
        "val",
        lambda root, make: (root / "ImageSets/2017/val.txt").unlink(),
        r"list of a split's videos, got .*val\.txt \(no such file\)",
    ),
    "davis: empty split": (
        "davis2017",
        "val",
        lambda root, make: (root / "ImageSets/2017/val.txt").write_text("\n"),
        "videos in davis2017 val, got none",
    ),
    "davis: a video in two splits": (
        "davis2017",
        "val",
        lambda root, make: (root / "ImageSets/2017/val.txt").write_text("cow\nbear\n"),
        "in one split, got 1 in train and in val, such as bear",
    ),
    "davis: a video twice": (
        "davis2017",
        "val",
        lambda root, make: (root / "ImageSets/2017/val.txt").write_text("cow\ncow\n"),
        "cow more than once",
    ),
    "davis: a name that leaves the folder": (
        "davis2017",
        "val",
        lambda root, make: (root / "ImageSets/2017/val.txt").write_text("../cow\n"),
        r"one video name a line .*\.\./cow",
    ),
    "davis: no frame 0": (
        "davis2017",
        "test-dev",
        lambda root, make: (root / "Annotations/480p/dog/00000.png").unlink(),
        r"a mask for every frame, got no .*dog/00000\.png",
    ),
    "mose: meta without videos": (
        "mose",
        "train",
        lambda root, make: make.save_json(root / "meta_train.json", {"clips": {}}),
        r"the key 'videos' in .*meta_train\.json, got only clips",
    ),
    "mose: meta that is no JSON": (
        "mose",
        "train",
        lambda root, make: (root / "meta_train.json").write_text('{"videos": '),
        r"in JSON, got .*meta_train\.json",
    ),
    "mose: listed video that is not there": (
        "mose",
        "train",
        lambda root, make: make.save_json(root / "meta_train.json", {"videos": {"0a1b": {}, "ffff": {}}}),
        "the listed video ffff",
    ),
    "mose: a video in two splits": (
        "mose",
        "train",
        lambda root, make: make.save_json(root / "meta_valid.json", {"videos": {"0a1b": {}}}),
        "in train and in valid, such as 0a1b",
    ),
    "mose: no such split here": (
        "mose",
        "valid",
        lambda root, make: (root / "meta_valid.json").unlink() or (root / "valid").rename(root / "other"),
        "the frames of MOSE valid, got no folder",
    ),
    "sav: no masklets for a video": (
        "sav",
        "train",
        lambda root, make: (root / "sav_train/sav_000/sav_000002_manual.json").unlink(),
        r"manual masklets for every video, got no .*sav_000002_manual\.json",
    ),
    "sav: no video for masklets": (
        "sav",
        "train",
        lambda root, make: (root / "sav_train/sav_001/sav_001001.mp4").unlink(),
        r"a video for all manual masklets, got no .*sav_001001\.mp4",
    ),
    "sav: a video that ends early": (
        "sav",
        "train",
        lambda root, make: make.save_mp4(root / "sav_train/sav_000/sav_000001.mp4", 7),
        r"frame 8 in .*sav_000001\.mp4, got 7 frames",
    ),
    "sav: a video of another size": (
        "sav",
        "train",
        lambda root, make: make.save_mp4(root / "sav_train/sav_000/sav_000001.mp4", 10, rotation=90),
        r"52x36 for the image, got 36x52 .* at frame 0 of sav_000001",
    ),
    "sav: a file that is no video": (
        "sav",
        "train",
        lambda root, make: (root / "sav_train/sav_000/sav_000001.mp4").write_bytes(b"nothing"),
        r"a readable video, got .*sav_000001\.mp4",
    ),
    "sav: two folders with one video": (
        "sav",
        "train",
        lambda root, make: [
            (root / "sav_train/sav_001" / f"sav_000001{end}").write_bytes(
                (root / "sav_train/sav_000" / f"sav_000001{end}").read_bytes()
            )
            for end in (".mp4", "_manual.json")
        ],
        "sav_000001 in sav_000 and sav_001",
    ),
    "sav: a video in two splits": (
        "sav",
        "val",
        lambda root, make: (root / "sav_val/sav_val.txt").write_text("sav_010001\nsav_000001\n"),
        "in train and in val, such as sav_000001",
    ),
    "sav: no mask of an object": (
        "sav",
        "val",
        lambda root, make: (root / "sav_val/Annotations_6fps/sav_010001/001/00004.png").unlink(),
        "none of object 001 for frame 4 of sav_010001",
    ),
    "sav: no masks of a frame": (
        "sav",
        "val",
        lambda root, make: [
            (root / f"sav_val/Annotations_6fps/sav_010001/{o}/00004.png").unlink() for o in ("000", "001")
        ],
        "none of object 000 for frame 4 of sav_010001",
    ),
    "sav: no frame for a mask": (
        "sav",
        "val",
        lambda root, make: (root / "sav_val/JPEGImages_24fps/sav_010001/00008.jpg").unlink(),
        r"no 00008\.jpg of sav_010001",
    ),
    "sav: masks between the fourth frames": (
        "sav",
        "val",
        lambda root, make: make.save_grey(root / "sav_val/Annotations_6fps/sav_010001/000/00002.png", make.ids(1)),
        "every 4th frame from 0 on, got one for frame 2",
    ),
    "sav: odd object folder": (
        "sav",
        "val",
        lambda root, make: (root / "sav_val/Annotations_6fps/sav_010001/1").mkdir(),
        "only folders of objects, named 000 and on, .* got 1",
    ),
    "sav: a listed video without pictures": (
        "sav",
        "test",
        lambda root, make: (root / "sav_test/sav_test.txt").write_text("sav_019999\n"),
        "the listed video sav_019999",
    ),
}


def read_all(dataset: Any) -> None:
    for sample in dataset.samples():
        sample.mask()
        sample.image()


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_named(trees: Any, make: Any, damage: str) -> None:
    name, split, harm, message = DAMAGE[damage]
    read_all(trees.open(name, split))
    harm(trees.root(name), make)
    with pytest.raises(DatasetError, match=message) as caught:
        read_all(trees.open(name, split))
    assert caught.value.next_step


KEYS: dict[str, tuple[Any, str]] = {
    "no masklet": (lambda d: d.pop("masklet"), "the key 'masklet'"),
    "no ids": (lambda d: d.pop("masklet_id"), "the key 'masklet_id'"),
    "no height": (lambda d: d.pop("video_height"), "the key 'video_height'"),
    "height of text": (lambda d: d.update(video_height="36"), "float or int for the key 'video_height', got str"),
    "height without end": (lambda d: d.update(video_height=float("inf")), "the video's size"),
    "empty masklet": (lambda d: d.update(masklet=[]), "at least one frame"),
    "an object too few": (lambda d: d["masklet"][1].pop(), r"2 masks, one per masklet_id, got 1 in .*masklet 1"),
    "no list of objects": (lambda d: d["masklet"].__setitem__(1, None), "one per masklet_id, got NoneType"),
    "ids that repeat": (lambda d: d.update(masklet_id=[0, 0]), "different whole numbers"),
    "ids of text": (lambda d: d.update(masklet_id=["0", "1"]), "different whole numbers"),
    "no mask": (lambda d: d["masklet"][2].__setitem__(0, None), "got None in .*masklet 2.*object 0"),
    "mask that breaks off": (lambda d: d["masklet"][0][0].update(counts="P`"), "broken off"),
    "mask of another size": (lambda d: d["masklet"][0][0].update(size=[4, 4], counts="`0"), "got 4x4 .*sav_000001"),
}


@pytest.mark.parametrize("damage", list(KEYS))
def test_odd_masklets_are_named(trees: Any, damage: str) -> None:
    change, message = KEYS[damage]
    path = trees.root("sav") / "sav_train" / "sav_000" / "sav_000001_manual.json"
    trees.rewrite(path, change)
    with pytest.raises(DatasetError, match=message):
        [frame.mask(i) for frame in trees.open("sav", "train").frames() for i in (*frame.object_ids(), 0)]


def test_a_video_file_that_failed_fails_the_same_way_again(trees: Any, make: Any) -> None:
    make.save_mp4(trees.root("sav") / "sav_train" / "sav_000" / "sav_000001.mp4", 7)
    frames = list(trees.open("sav", "train", selection=Selection(max_videos=1)).frames())
    for _ in range(2):
        with pytest.raises(DatasetError, match="got 7 frames"):
            frames[2].image()
    assert frames[1].image().shape == (36, 52, 3)
