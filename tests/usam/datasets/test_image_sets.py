"""ADE20k and COCO: instances and masks as published, single images as videos of one frame; each damage is named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from usam.datasets.coco import polygons_mask
from usam.errors import DatasetError


def test_ade20k_has_one_instance_per_class(trees: Any, make: Any) -> None:
    frames = list(trees.open("ade20k", "training").frames())
    assert [(f.video_id, f.frame_index, f.object_ids()) for f in frames] == [
        (f"ADE_train_{key:08d}", 0, (key, 150)) for key in (1, 2, 3)
    ]
    assert np.array_equal(frames[1].mask(150), make.ids(150, 2) == 150)
    assert abs(frames[1].image().astype(int) - make.picture(2)).max() < 12
    assert len(trees.open("ade20k", "validation")) == 2


def test_ade20k_opens_from_its_own_folder_too(trees: Any) -> None:
    from usam.datasets.registry import open_dataset

    root = trees.root("ade20k") / "ADEChallengeData2016"
    assert open_dataset("ade20k", root, "training").video_ids == trees.open("ade20k", "training").video_ids


def test_coco_leaves_out_crowds_and_tiny_instances(trees: Any) -> None:
    samples = [(s.video_id, s.frame_index, s.object_id) for s in trees.open("coco", "train2017").samples()]
    nine, four = "000000000009", "000000000004"
    assert samples == [(four, 0, 12), (nine, 0, 31), (nine, 0, 50), (nine, 0, 77)]


def test_coco_draws_masks_as_its_own_tools_do(trees: Any, make: Any) -> None:
    masks = {s.object_id: s.mask() for s in trees.open("coco", "train2017").samples()}
    polygons = {12: [[20.5, 4, 28, 4.5, 28, 12]], 77: [[2, 4, 10, 4, 10, 12, 2, 12]]}
    polygons[31] = [[30, 5, 38, 5, 38, 9, 30, 9], [30, 20, 40, 20, 35, 30]]
    for object_id, shape in polygons.items():
        theirs = coco.decode(coco.merge(coco.frPyObjects(shape, make.HEIGHT, make.WIDTH)))
        assert np.array_equal(masks[object_id], theirs != 0)
    assert np.array_equal(masks[50], make.ids(0, 1) > 0)
    assert all(mask_hw.dtype == bool and mask_hw.shape == (make.HEIGHT, make.WIDTH) for mask_hw in masks.values())


def test_coco_file_names_may_be_of_any_script(trees: Any) -> None:
    root = trees.root("coco")
    (root / "train2017" / "000000000004.jpg").rename(root / "train2017" / "Ã©-日本.jpg")
    path = root / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    data["images"][1]["file_name"] = "Ã©-日本.jpg"
    for escape in (True, False):
        path.write_text(json.dumps(data, ensure_ascii=escape), encoding="utf-8")
        assert trees.open("coco", "train2017").video_ids == ("000000000009", "Ã©-日本")


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_pictures_of_any_mode_come_as_rgb(trees: Any, make: Any, mode: str) -> None:
    from PIL import Image

    path = trees.root("coco") / "train2017" / "000000000004.jpg"
    Image.fromarray(make.picture(4)).convert(mode).save(path, format="PNG" if mode == "RGBA" else "JPEG")
    frame = next(trees.open("coco", "train2017").frames())
    assert frame.image().shape == (make.HEIGHT, make.WIDTH, 3)


@pytest.mark.parametrize(
    "polygons", [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], ["abc"], [[1, 2, 3, 4, 5, None]], None, 3]
)
def test_what_is_no_polygon_is_refused(polygons: Any) -> None:
    with pytest.raises(DatasetError, match=r"polygons of x, y pairs.* in annotation 3"):
        polygons_mask(polygons, 10, 10, "annotation 3")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e9])
def test_polygons_out_of_all_bounds_are_refused(value: float) -> None:
    with pytest.raises(DatasetError):
        polygons_mask([[0, 0, 5, 0, 5, value]], 10, 10, "annotation 3")


def read_all(trees: Any, name: str, split: str) -> None:
    for sample in trees.open(name, split).samples():
        sample.mask()
        sample.image()


def annotation(change: Any) -> Any:
    def harm(root: Any, make: Any, trees: Any) -> None:
        trees.rewrite(root / "annotations" / "instances_train2017.json", change)

    return harm


def file(path: str, act: Any) -> Any:
    return lambda root, make, trees: act(root / path)


DAMAGE: dict[str, tuple[str, str, Any, str]] = {
    "ade: no annotation": (
        "ade20k",
        "training",
        file("ADEChallengeData2016/annotations/training/ADE_train_00000002.png", lambda p: p.unlink()),
        r"an annotation for every image, got no .*ADE_train_00000002\.png",
    ),
    "ade: no image": (
        "ade20k",
        "training",
        file("ADEChallengeData2016/images/training/ADE_train_00000002.jpg", lambda p: p.unlink()),
        r"an image for every annotation, got no .*ADE_train_00000002\.jpg",
    ),
    "ade: odd file": (
        "ade20k",
        "training",
        file("ADEChallengeData2016/images/training/list.txt", lambda p: p.write_text("")),
        "got list.txt",
    ),
    "ade: no folder": (
        "ade20k",
        "training",
        file("ADEChallengeData2016/annotations/training", lambda p: p.rename(p.with_name("x"))),
        r"got no folder .*annotations.training",
    ),
    "ade: empty split": (
        "ade20k",
        "validation",
        lambda root, make, trees: [p.unlink() for p in root.rglob("ADE_val_*")],
        "videos in ade20k validation, got none",
    ),
    "ade: an image in two splits": (
        "ade20k",
        "validation",
        file("ADEChallengeData2016/images/training/ADE_val_00000001.jpg", lambda p: p.write_bytes(b"")),
        "in validation and in training, such as ADE_val_00000001",
    ),
    "ade: annotation of another size": (
        "ade20k",
        "training",
        lambda root, make, trees: make.save_grey(
            root / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png", make.ids(3, height=40)
        ),
        "got 52x40",
    ),
    "ade: annotation in colours": (
        "ade20k",
        "training",
        lambda root, make, trees: make.save_grey(
            root / "ADEChallengeData2016/annotations/training/ADE_train_00000001.png", make.picture(3)
        ),
        "of mode RGB",
    ),
    "ade: no instance": (
        "ade20k",
        "validation",
        lambda root, make, trees: [
            make.save_grey(p, make.ids()) for p in (root / "ADEChallengeData2016/annotations/validation").iterdir()
        ],
        "at least one instance in ade20k validation",
    ),
    "coco: no file": (
        "coco",
        "train2017",
        file("annotations/instances_train2017.json", lambda p: p.unlink()),
        r"in JSON, got .*instances_train2017\.json \(no such file\)",
    ),
    "coco: file that breaks off": (
        "coco",
        "train2017",
        file("annotations/instances_train2017.json", lambda p: p.write_text(p.read_text()[:900])),
        r"a whole JSON file, got .*instances_train2017\.json, byte \d+",
    ),
    "coco: file of a list": (
        "coco",
        "train2017",
        file("annotations/instances_train2017.json", lambda p: p.write_text("[]")),
        r"a whole JSON file, got .*'\[' where '\{' was due",
    ),
    "coco: no annotations": (
        "coco",
        "train2017",
        annotation(lambda d: d.pop("annotations")),
        "the key 'annotations'",
    ),
    "coco: annotations that are no list": (
        "coco",
        "train2017",
        annotation(lambda d: d.update(annotations={})),
        "where '\\[' was due",
    ),
    "coco: none that counts": (
        "coco",
        "train2017",
        annotation(lambda d: d.update(annotations=[])),
        "videos in coco train2017, got none",
    ),
    **{
        f"coco: annotation without {key}": (
            "coco",
            "train2017",
            annotation(lambda d, key=key: d["annotations"][2].pop(key)),
            rf"the key '{key}' in annotation at byte \d+",
        )
        for key in ("id", "image_id", "area", "iscrowd", "segmentation")
    },
    **{
        f"coco: image without {key}": (
            "coco",
            "train2017",
            annotation(lambda d, key=key: d["images"][1].pop(key)),
            rf"the key '{key}' in image at byte \d+",
        )
        for key in ("id", "file_name", "height", "width")
    },
    "coco: annotation of no image": (
        "coco",
        "train2017",
        annotation(lambda d: d["annotations"][0].update(image_id=1234)),
        "image_id 1234",
    ),
    "coco: annotation that is no object": (
        "coco",
        "train2017",
        annotation(lambda d: d["annotations"].append(7)),
        r"a JSON object in annotation at byte \d+ of .*, got int",
    ),
    "coco: an id twice": (
        "coco",
        "train2017",
        annotation(lambda d: d["annotations"][0].update(id=12)),
        "annotation id once",
    ),
    "coco: an image twice": (
        "coco",
        "train2017",
        annotation(lambda d: d["images"].append(d["images"][0])),
        "every image and annotation id once",
    ),
    "coco: an image that is not there": (
        "coco",
        "train2017",
        file("train2017/000000000004.jpg", lambda p: p.unlink()),
        r"every image with instances, got no .*000000000004\.jpg",
    ),
    "coco: a file name that leaves the folder": (
        "coco",
        "train2017",
        annotation(lambda d: d["images"][0].update(file_name="../../etc/passwd")),
        "a file in the images' folder",
    ),
    "coco: an image in two splits": (
        "coco",
        "val2017",
        file("train2017/000000000109.jpg", lambda p: p.write_bytes(b"")),
        "in train2017 and in val2017, such as 000000000109",
    ),
    "coco: run lengths of too few pixels": (
        "coco",
        "train2017",
        annotation(lambda d: d["annotations"][0].update(segmentation={"size": [36, 52], "counts": [5, 6]})),
        "runs for 11 pixels of 52x36 in annotation 77",
    ),
    "coco: an image of another size": (
        "coco",
        "train2017",
        annotation(lambda d: d["images"][1].update(height=20)),
        r"52x36 .*got 52x20 .* at frame 0 of 000000000004",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_named(trees: Any, make: Any, damage: str) -> None:
    name, split, harm, message = DAMAGE[damage]
    assert list(trees.open(name, split).samples())
    harm(trees.root(name), make, trees)
    with pytest.raises(DatasetError, match=message) as caught:
        read_all(trees, name, split)
    assert caught.value.next_step


def test_coco_annotations_that_changed_since_are_refused(trees: Any) -> None:
    sample = next(trees.open("coco", "train2017").samples())
    path = trees.root("coco") / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text()[:600])
    with pytest.raises(DatasetError, match="as it was when it was opened"):
        sample.mask()
