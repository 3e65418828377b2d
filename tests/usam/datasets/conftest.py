"""Small trees in exactly the layouts that the data sets are published in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from usam.datasets.registry import open_dataset
from usam.datasets.samples import DataSet

HEIGHT, WIDTH = 36, 52
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [value for value in range(252) for _ in range(3)]


def picture(key: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(H, W, 3) uint8; smooth, so that lossy codecs keep it, and its red tells which it is."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0], rgb[..., 1] = key * 10 % 250, np.linspace(0, 200, width)[None]
    return rgb


def ids(*object_ids: int, shift: int = 0, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(H, W) uint8; one square of 8x8 per object."""
    ids_hw = np.zeros((height, width), np.uint8)
    for place, object_id in enumerate(object_ids):
        ids_hw[4:12, 2 + shift + 12 * place : 10 + shift + 12 * place] = object_id
    return ids_hw


def save_jpg(path: Path, key: int, **size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(key, **size)).save(path, quality=95)


def save_palette(path: Path, ids_hw: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids_hw, "P")
    image.putpalette(PALETTE)
    image.save(path)


def save_grey(path: Path, ids_hw: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids_hw).save(path)


def save_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def save_mp4(path: Path, num_frames: int, rotation: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"qp": "4", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        container.mux(stream.encode())


def rle(mask_hw: NDArray[np.bool_]) -> dict[str, Any]:
    """As pycocotools writes it into JSON."""
    encoded = coco.encode(np.asfortranarray(mask_hw.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def davis(root: Path) -> None:
    """Objects 1 and 2 in every frame, object 2 gone from frame 1 of each video."""
    for split, videos in {"train": ["bear", "ant"], "val": ["cow"], "test-dev": ["dog"]}.items():
        lists = root / "ImageSets" / "2017"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(videos) + "\n")
        for key, video in enumerate(videos):
            for resolution, scale in (("480p", 1), ("Full-Resolution", 2)):
                size = {"height": HEIGHT * scale, "width": WIDTH * scale}
                for index in range(4):
                    save_jpg(root / "JPEGImages" / resolution / video / f"{index:05d}.jpg", 4 * key + index, **size)
                    if split != "test-dev" or index == 0:
                        objects = (1,) if index == 1 else (1, 2)
                        path = root / "Annotations" / resolution / video / f"{index:05d}.png"
                        save_palette(path, ids(*objects, shift=index, **size))


def mose(root: Path, meta: bool = True) -> None:
    for split, videos in {"train": ["0a1b", "1c2d"], "valid": ["2e3f"]}.items():
        for key, video in enumerate(videos):
            for index in range(3):
                save_jpg(root / split / "JPEGImages" / video / f"{index:05d}.jpg", 3 * key + index)
                if split == "train" or index == 0:
                    save_palette(root / split / "Annotations" / video / f"{index:05d}.png", ids(3, 7, shift=index))
        if meta:
            videos_meta = {video: {"objects": {"3": {}, "7": {}}} for video in videos}
            save_json(root / f"meta_{split}.json", {"videos": videos_meta})


def sav_annotation(video: str, masks: list[list[NDArray[np.bool_]]], num_frames: int) -> dict[str, Any]:
    """A `_manual.json` with all the keys of the published ones."""
    objects = len(masks[0])
    return {
        "video_id": video,
        "video_duration": num_frames / 24,
        "video_frame_count": float(num_frames),
        "video_height": float(HEIGHT),
        "video_width": float(WIDTH),
        "video_resolution": float(HEIGHT * WIDTH),
        "video_environment": "Indoor",
        "video_split": "train",
        "masklet": [[rle(mask_hw) for mask_hw in frame] for frame in masks],
        "masklet_id": list(range(objects)),
        "masklet_size_rel": [0.1] * objects,
        "masklet_size_abs": [64.0] * objects,
        "masklet_size_bucket": ["small"] * objects,
        "masklet_visibility_changes": [0] * objects,
        "masklet_first_appeared_frame": [0.0] * objects,
        "masklet_frame_count": [len(masks)] * objects,
        "masklet_edited_frame_count": [1] * objects,
        "masklet_type": ["manual"] * objects,
        "masklet_stability_score": [None] * objects,
        "masklet_num": objects,
    }


def sav(root: Path) -> None:
    """Train: 10 frames, annotated on 0, 4 and 8; object 1 is hidden on 4. Val and test: the same as pictures."""
    for part, video in (("sav_000", "sav_000001"), ("sav_000", "sav_000002"), ("sav_001", "sav_001001")):
        save_mp4(root / "sav_train" / part / f"{video}.mp4", 10)
        masks = [[ids(1, shift=i) > 0, (ids(0, 2, shift=i) > 0) & (i != 1)] for i in range(3)]
        save_json(root / "sav_train" / part / f"{video}_manual.json", sav_annotation(video, masks, 10))
    save_json(root / "sav_train" / "sav_000" / "sav_000001_auto.json", {"not": "read"})
    for split, video in (("val", "sav_010001"), ("test", "sav_011001")):
        folder = root / f"sav_{split}"
        for index in range(10):
            save_jpg(folder / "JPEGImages_24fps" / video / f"{index:05d}.jpg", index)
            if index % 4 == 0:
                for object_id in (0, 1):
                    on = (ids(0, 1) if object_id else ids(1)) * 255 * (index != 4 or not object_id)
                    save_grey(folder / "Annotations_6fps" / video / f"{object_id:03d}" / f"{index:05d}.png", on)
        (folder / f"sav_{split}.txt").write_text(video + "\n")


def ade20k(root: Path) -> None:
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for key in range(1, count + 1):
            name = f"ADE_{short}_{key:08d}"
            base = root / "ADEChallengeData2016"
            save_jpg(base / "images" / split / f"{name}.jpg", key)
            save_grey(base / "annotations" / split / f"{name}.png", ids(150, key))
    (root / "ADEChallengeData2016" / "objectInfo150.txt").write_text("Idx\n")


def coco_json(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": [{"id": 1, "name": "Attribution"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}],
    }


def coco_annotation(annotation_id: int, image_id: int, segmentation: Any, **others: Any) -> dict[str, Any]:
    base = {"id": annotation_id, "image_id": image_id, "segmentation": segmentation, "category_id": 1}
    return base | {"area": 64.0, "bbox": [2, 4, 8, 8], "iscrowd": 0} | others


def coco2017(root: Path) -> None:
    """Image 9: a polygon, two polygons, an RLE, a crowd, a tiny one. Image 4: a polygon. Image 5: a crowd."""
    square = [2, 4, 10, 4, 10, 12, 2, 12]
    crowd = {"size": [HEIGHT, WIDTH], "counts": [10, 20, HEIGHT * WIDTH - 30]}
    for split in ("train2017", "val2017"):
        first = 0 if split == "train2017" else 100
        images = []
        for key in (9, 4, 5):
            name = f"{first + key:012d}.jpg"
            save_jpg(root / split / name, key)
            images.append({"id": first + key, "file_name": name, "height": HEIGHT, "width": WIDTH, "license": 1})
        annotations = [
            coco_annotation(77, first + 9, [square]),
            coco_annotation(12, first + 4, [[20.5, 4, 28, 4.5, 28, 12]]),
            coco_annotation(31, first + 9, [[30, 5, 38, 5, 38, 9, 30, 9], [30, 20, 40, 20, 35, 30]]),
            coco_annotation(50, first + 9, rle(ids(0, 1) > 0)),
            coco_annotation(91, first + 9, crowd, iscrowd=1),
            coco_annotation(92, first + 9, [[1, 1, 3, 1, 3, 4]], area=9.99),
            coco_annotation(93, first + 5, crowd, iscrowd=1),
        ]
        save_json(root / "annotations" / f"instances_{split}.json", coco_json(images, annotations))


def synthetic(root: Path) -> None:
    """All four ways to store a clip: video or frames, truth as one array or as pictures."""
    for split, names in {"train": ("c0", "c1"), "val": ("c2",), "test": ("c3",)}.items():
        for name in names:
            folder = root / split
            folder.mkdir(parents=True, exist_ok=True)
            truth = np.stack([ids(1, 2, shift=t) for t in range(3)])
            if name in ("c0", "c2"):
                save_mp4(folder / f"{name}.mp4", 3)
            else:
                for t in range(3):
                    save_grey(folder / name / f"{t:05d}.png", picture(t))
            if name in ("c0", "c1"):
                np.savez_compressed(folder / f"{name}.truth.npz", ids_thw=truth)
            else:
                for t in range(3):
                    save_palette(folder / f"{name}.truth" / f"{t:05d}.png", truth[t])


BUILD: dict[str, Callable[[Path], None]] = {
    "davis2017": davis,
    "mose": mose,
    "sav": sav,
    "ade20k": ade20k,
    "coco": coco2017,
    "synthetic": synthetic,
}


class Trees:
    """Builds a data set's tree once, and opens splits of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def root(self, name: str) -> Path:
        root = self.folder / name
        if not root.exists():
            BUILD[name](root)
        return root

    def open(self, name: str, split: str, **options: Any) -> DataSet:
        return open_dataset(name, self.root(name), split, **options)

    def rewrite(self, path: Path, change: Callable[[Any], Any]) -> None:
        """Change a JSON file in place."""
        data = json.loads(path.read_text())
        change(data)
        save_json(path, data)


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


@pytest.fixture
def make() -> Any:
    """The builders, for tests that need one file."""
    import types

    return types.SimpleNamespace(**{k: v for k, v in globals().items() if callable(v) or k.isupper()})
