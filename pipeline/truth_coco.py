"""True masks of videos in a COCO file: images are frames of videos, annotations name the object that they show."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import rle
from pipeline.judged import Fact, Judged, TruthError
from pipeline.truth_masks import judge_masks
from usam.datasets.coco import polygons_mask
from usam.datasets.files import need_keys
from usam.datasets.json_items import items, value_at
from usam.datasets.rle import Runs

OBJECT_KEYS = ("object_id", "instance_id", "track_id")
_NUMBER = re.compile(r"(?<!\d)(\d{1,18})$")


class _Picture(NamedTuple):
    video: str
    frame_index: int
    height: int
    width: int


class CocoVideos:
    """A COCO file whose images are frames.

    An image names its video and frame by the fields `video` (or `video_id`) and `frame_index`, else by its `file_name`,
    `VIDEO/00012.jpg`. An annotation names its object by `object_id`, `instance_id` or `track_id`. Every listed image is
    an annotated frame; an object without an annotation there is absent. Of the file only places are kept, some 32 bytes
    an annotation.

    Raises: TruthError, DatasetError for a file that is no such JSON, or says one thing twice.
    """

    kind = "coco"

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        pictures, places_n4 = _index(path)
        self._places_n4 = places_n4
        self._videos: dict[str, dict[int, tuple[int, _Picture]]] = {}
        for image_id, one in pictures.items():
            frames = self._videos.setdefault(one.video, {})
            if one.frame_index in frames:
                got = f"frame {one.frame_index} of {one.video} twice"
                raise TruthError(f"every frame once in {path}", got, "keep one image for each frame")
            frames[one.frame_index] = image_id, one

    def names(self) -> Sequence[str]:
        """Names of the videos."""
        return sorted(self._videos)

    def judge(self, name: str, facts: Iterable[Fact]) -> Iterator[Judged]:
        """Judge the rows of one video."""
        frames = ((index, self._frame(*about)) for index, about in sorted(self._videos[name].items()))
        return judge_masks(name, frames, facts)

    def _frame(self, image_id: int, one: _Picture) -> _CocoFrame:
        first, last = np.searchsorted(self._places_n4[:, 0], [image_id, image_id + 1])
        return _CocoFrame(self._path, one, self._places_n4[first:last])


class _CocoFrame:
    """One image; masks are read from their places when they are asked for."""

    def __init__(self, path: Path, one: _Picture, places_n4: NDArray[np.int64]) -> None:
        self.where = f"{path}, {one.video} frame {one.frame_index}"
        self.height, self.width = one.height, one.width
        self._path, self._places_n4 = path, places_n4

    def object_ids(self) -> list[int]:
        return [int(i) for i in np.unique(self._places_n4[:, 1])]

    def counts(self, object_id: int) -> bytes:
        places = self._places_n4[self._places_n4[:, 1] == object_id, 2:].tolist()
        found = {self._mask(offset, length) for offset, length in places}
        if len(found) > 1:
            got = f"{len(found)} that differ"
            step = "put its parts into one annotation"
            raise TruthError(f"one mask of object {object_id} in {self.where}", got, step)
        return found.pop() if found else rle.empty_mask(self.height, self.width).counts

    def _mask(self, offset: int, length: int) -> bytes:
        shape = value_at(self._path, offset, length)["segmentation"]
        if isinstance(shape, dict):
            mask_hw = Runs(shape, self.where).mask()
            if mask_hw.shape != (self.height, self.width):
                got = f"{mask_hw.shape[1]}x{mask_hw.shape[0]}"
                raise TruthError(f"masks of {self.width}x{self.height} in {self.where}", got, "correct the file")
        else:
            mask_hw = polygons_mask(shape, self.height, self.width, self.where)
        return rle.encode_mask(mask_hw).counts


def _index(path: Path) -> tuple[dict[int, _Picture], NDArray[np.int64]]:
    """Images by id, and (n, 4) image id, object id, offset, length of the annotations, sorted."""
    pictures: dict[int, _Picture] = {}
    places, listed = array("q"), 0
    for item in items(path, ("images", "annotations")):
        where = f"{item.key[:-1]} at byte {item.offset} of {path}"
        if item.key == "images":
            about = need_keys(item.value, where, id=int, height=int, width=int)
            text_is_safe = all(value.isascii() for value in about.values() if isinstance(value, str))
            about = about if text_is_safe else value_at(path, item.offset, item.length)
            pictures[about["id"]] = _picture(about, where)
            listed += 1
        else:
            about = need_keys(item.value, where, image_id=int, segmentation=(list, dict))
            try:
                places.extend((about["image_id"], _object_id(about, where), item.offset, item.length))
            except OverflowError as error:
                raise TruthError("ids of at most 64 bits", f"a larger one in {where}", "give smaller ones") from error
    if len(pictures) < listed:
        raise TruthError(f"every image id once in {path}", "one twice", "correct the file")
    places_n4 = np.array(places, np.int64).reshape(-1, 4)
    unknown = set(np.unique(places_n4[:, 0]).tolist()) - set(pictures)
    if unknown:
        got = f"image_id {min(unknown)}, which is none of them"
        raise TruthError(f"annotations of listed images in {path}", got, "list the image")
    return pictures, places_n4[np.lexsort((places_n4[:, 1], places_n4[:, 0]))]


def _picture(about: Any, where: str) -> _Picture:
    file_name = PurePosixPath(str(about.get("file_name", "")))
    named = [about.get("video"), about.get("video_id"), str(file_name.parent) if file_name.parent.name else None]
    video, index = next((one for one in named if isinstance(one, str)), None), about.get("frame_index")
    if index is None and (number := _NUMBER.search(file_name.stem)):
        index = int(number[1])
    if not video or type(index) is not int or index < 0:
        got = f"{ {name: about[name] for name in ('file_name', 'video', 'frame_index') if name in about} } in {where}"
        step = "give images video and frame_index, or a file_name like VIDEO/00012.jpg"
        raise TruthError("the video and frame of an image", got, step)
    return _Picture(video, index, about["height"], about["width"])


def _object_id(about: Any, where: str) -> int:
    for key in OBJECT_KEYS:
        if type(about.get(key)) is int:
            return int(about[key])
    got = f"none of {', '.join(OBJECT_KEYS)} in {where}"
    raise TruthError("an annotation that names its object as the prompts do", got, "add object_id")
