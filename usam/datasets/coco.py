"""COCO 2017 instances: single images, polygons or run lengths, no crowds, at least 10 pixels."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from usam.datasets.files import Latest, entries, is_plain, need_folder, need_keys, picture_size, read_rgb
from usam.datasets.json_items import Item, items, value_at
from usam.datasets.rle import Runs
from usam.datasets.samples import DataSet, Frame, Markers, Mask
from usam.datasets.selection import EVERYTHING, Selection, refuse_shared
from usam.errors import DatasetError

SPLITS = ("train2017", "val2017")
MIN_AREA_PX = 10
MAX_COORDINATE_PX = 1e5  # pycocotools walks every edge pixel by pixel


class CocoImage(NamedTuple):
    """What the annotation file says of an image."""

    file_name: str
    height: int
    width: int


class Coco(DataSet):
    """`{train,val}2017/*.jpg` with `annotations/instances_{train,val}2017.json`.

    Of the annotation file only the places of its instances are kept, some 32 bytes each. Images without an instance are
    left out; a video_id is the image's name without `.jpg`, an object_id the annotation's id.

    Args:   root: the folder that holds `annotations`.
    Raises: DatasetError for a missing file or key, an instance of an unknown image, a listed image that is not there,
        or an image in two splits.
    """

    name = "coco"
    markers: ClassVar[Markers] = {split: (split, f"annotations/instances_{split}.json") for split in SPLITS}

    def __init__(self, root: Path, split: str, selection: Selection = EVERYTHING) -> None:
        base = self.checked_base(root, split)
        self._folder = need_folder(base / split, f"the images of COCO {split}")
        self._annotations = base / "annotations" / f"instances_{split}.json"
        present = {name: _jpgs(base / name) for name in SPLITS if (base / name).is_dir()}
        refuse_shared(self.name, present)
        self._images, self._places_n4 = _index(self._annotations)
        image_ids = np.unique(self._places_n4[:, 0]).tolist()
        self._by_name = {Path(self._images[i].file_name).stem: i for i in image_ids}
        if len(self._by_name) < len(image_ids):
            got = "a name that two images share"
            raise DatasetError(f"a file for every image of {self._annotations}", got, "fetch the file again")
        missing = {self._images[i].file_name for i in image_ids} - set(present[split])
        if missing:
            got = f"no {self._folder / min(missing)} ({len(missing)} missing)"
            raise DatasetError("every image with instances", got, "unpack the images again")
        self._rgb = Latest(read_rgb)
        super().__init__(split, sorted(self._by_name), selection, self._annotations)

    def read(self, video_id: str) -> Iterator[Frame]:
        image_id = self._by_name[video_id]
        about = self._images[image_id]
        first, last = np.searchsorted(self._places_n4[:, 0], [image_id, image_id + 1])
        truth = CocoTruth(self._annotations, about, self._places_n4[first:last])
        path = self._folder / about.file_name
        yield Frame(
            self.name, self.split, video_id, 0, truth, partial(self._rgb.copy, path), partial(picture_size, path)
        )


def _jpgs(folder: Path) -> list[str]:
    return [name for name in entries(folder) if name.endswith(".jpg")]


class CocoTruth:
    """An image's instances, each read from its place in the annotation file.

    Args: places_n4: (n, 4) int64: image id, annotation id, byte offset, byte length.
    """

    def __init__(self, annotations: Path, image: CocoImage, places_n4: NDArray[np.int64]) -> None:
        self.where = str(annotations)
        self._path, self._image, self._places_n4 = annotations, image, places_n4

    def object_ids(self) -> tuple[int, ...]:
        return tuple(self._places_n4[:, 1].tolist())

    def mask(self, object_id: int) -> Mask | None:
        for _, annotation_id, offset, length in self._places_n4.tolist():
            if annotation_id == object_id:
                where = f"annotation {object_id} of {self._path}"
                shape = value_at(self._path, offset, length)["segmentation"]
                if isinstance(shape, dict):
                    return Runs(shape, where).mask()
                return polygons_mask(shape, self._image.height, self._image.width, where)
        return None


def polygons_mask(polygons: Any, height: int, width: int, where: str) -> Mask:
    """The union of polygons, drawn as COCO's own tools draw them.

    Args:    polygons: lists of x, y, x, y, ... in pixels, each of at least 3 points.
    Returns: (height, width) bool.
    Raises:  DatasetError for anything else; pycocotools would take 2 points for a box.
    """
    from pycocotools import mask as tools

    if not isinstance(polygons, list) or not polygons or not all(map(_is_polygon, polygons)):
        got = f"{str(polygons)[:60]} in {where}"
        raise DatasetError("polygons of x, y pairs, at least 3 each", got, "fetch the file again")
    drawn = tools.merge(tools.frPyObjects(polygons, height, width))
    return Runs({"size": [height, width], "counts": drawn["counts"].decode()}, where).mask()


def _is_polygon(numbers: Any) -> bool:
    is_flat = isinstance(numbers, list) and all(type(n) in (int, float) and abs(n) < MAX_COORDINATE_PX for n in numbers)
    return is_flat and len(numbers) >= 6 and len(numbers) % 2 == 0


def _index(path: Path) -> tuple[dict[int, CocoImage], NDArray[np.int64]]:
    """Images by id, and (n, 4) places of the instances that count, by image id and annotation id."""
    images: dict[int, CocoImage] = {}
    listed = 0
    places = array("q")
    for item in items(path, ("images", "annotations")):
        if item.key == "images":
            image_id, about = _image(item, path)
            images[image_id] = about
            listed += 1
            continue
        where = f"annotation at byte {item.offset} of {path}"
        found = need_keys(
            item.value, where, id=int, image_id=int, area=(int, float), iscrowd=int, segmentation=(list, dict)
        )
        if not found["iscrowd"] and found["area"] >= MIN_AREA_PX:
            places.extend((found["image_id"], found["id"], item.offset, item.length))
    places_n4 = np.array(places, np.int64).reshape(-1, 4)
    unknown = set(np.unique(places_n4[:, 0]).tolist()) - set(images)
    if unknown:
        got = f"image_id {min(unknown)} in {path}, which has no such image"
        raise DatasetError("instances of listed images", got, "fetch the file again")
    if len(images) < listed or len(np.unique(places_n4[:, 1])) < len(places_n4):
        raise DatasetError(f"every image and annotation id once in {path}", "one twice", "fetch the file again")
    return images, places_n4[np.lexsort((places_n4[:, 1], places_n4[:, 0]))]


def _image(item: Item, path: Path) -> tuple[int, CocoImage]:
    where = f"image at byte {item.offset} of {path}"
    about = need_keys(item.value, where, id=int, file_name=str, height=int, width=int)
    name = about["file_name"]
    if not name.isascii():
        name = value_at(path, item.offset, item.length)["file_name"]
    if not is_plain(name) or about["height"] < 1 or about["width"] < 1:
        got = f"{name!r} of {about['width']}x{about['height']} in {where}"
        raise DatasetError("the name of a file in the images' folder, and its size", got, "fetch the file again")
    return about["id"], CocoImage(name, about["height"], about["width"])
