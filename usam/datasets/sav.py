"""SA-V: train as videos with run lengths in JSON, val and test as frames with one PNG per object; 6 frames a second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from usam.datasets.files import (
    Latest,
    entries,
    need_folder,
    numbered,
    picture_size,
    read_ids,
    read_json,
    read_list,
    read_rgb,
)
from usam.datasets.mp4 import VideoFile
from usam.datasets.rle import MAX_SIDE_PX, Runs
from usam.datasets.samples import DataSet, Frame, Markers, Mask
from usam.datasets.selection import EVERYTHING, Selection, refuse_shared
from usam.errors import DatasetError

EVERY = 4  # videos have 24 frames a second, annotations 6
_MANUAL = "_manual.json"


class Sav(DataSet):
    """`sav_train/sav_NNN/{V.mp4,V_manual.json}`; `sav_val/{sav_val.txt,JPEGImages_24fps/V,Annotations_6fps/V/OBJECT}`.

    Only manual masklets are read. A frame_index counts 24 a second: 0, 4, 8, ... An object is an instance where its
    mask is not empty.

    Args:   root: the folder that holds `sav_train`, `sav_val` or `sav_test`.
    Raises: DatasetError for a missing list, video or annotation, or a video in two splits.
    """

    name = "sav"
    markers: ClassVar[Markers] = {
        "train": ("sav_train/sav_*/*.mp4", f"sav_train/sav_*/*{_MANUAL}"),
        **{
            split: (f"sav_{split}/sav_{split}.txt", f"sav_{split}/JPEGImages_24fps", f"sav_{split}/Annotations_6fps")
            for split in ("val", "test")
        },
    }

    def __init__(self, root: Path, split: str, selection: Selection = EVERYTHING) -> None:
        base = self.checked_base(root, split)
        self._folder = base / f"sav_{split}"
        self._train = _train_videos(base / "sav_train") if split == "train" or (base / "sav_train").is_dir() else {}
        listed = {"train": sorted(self._train)}
        for name in ("val", "test"):
            path = base / f"sav_{name}" / f"sav_{name}.txt"
            if name == split or path.is_file():
                listed[name] = read_list(path)
        refuse_shared(self.name, listed)
        self._rgb, self._ids = Latest(read_rgb), Latest(read_ids)
        super().__init__(split, listed[split], selection, self._folder)
        for video_id in self.video_ids if split != "train" else ():
            for part in ("JPEGImages_24fps", "Annotations_6fps"):
                need_folder(self._folder / part / video_id, f"the listed video {video_id}")

    def read(self, video_id: str) -> Iterator[Frame]:
        return self._read_train(video_id) if self.split == "train" else self._read_pictures(video_id)

    def _read_train(self, video_id: str) -> Iterator[Frame]:
        annotation = self._train[video_id]
        data = read_json(annotation, masklet=list, masklet_id=list, video_height=(float, int), video_width=(float, int))
        object_ids = _object_ids(data, annotation)
        if not data["masklet"]:
            raise DatasetError(f"masks of at least one frame in {annotation}", "none", "fetch the file again")
        height, width = data["video_height"], data["video_width"]
        if not (1 <= height < MAX_SIDE_PX and 1 <= width < MAX_SIDE_PX):
            raise DatasetError(f"the video's size in {annotation}", f"{width}x{height}", "fetch the file again")
        size = partial(_size_hw, int(height), int(width))
        video = VideoFile(annotation.with_name(f"{video_id}.mp4"))
        try:
            for index in self.selection.frames(video_id, range(0, EVERY * len(data["masklet"]), EVERY)):
                rles = data["masklet"][index // EVERY]
                where = f"{annotation} (masklet {index // EVERY})"
                if not isinstance(rles, list) or len(rles) != len(object_ids):
                    got = f"{len(rles)} in {where}" if isinstance(rles, list) else f"{type(rles).__name__} in {where}"
                    raise DatasetError(f"{len(object_ids)} masks, one per masklet_id", got, "fetch the file again")
                truth = RleTruth(dict(zip(object_ids, rles, strict=True)), where)
                yield Frame(self.name, self.split, video_id, index, truth, partial(video.frame, index), size)
        finally:
            video.close()

    def _read_pictures(self, video_id: str) -> Iterator[Frame]:
        images = numbered(self._folder / "JPEGImages_24fps" / video_id, ".jpg")
        masks = _object_masks(self._folder / "Annotations_6fps" / video_id)
        annotated = sorted(set().union(*masks.values()))
        for index in sorted({*annotated, *range(0, annotated[-1] + 1, EVERY)}):
            if index % EVERY:
                got = f"one for frame {index} of {video_id}"
                raise DatasetError(f"masks for every {EVERY}th frame from 0 on", got, "fetch the video again")
            if index not in images:
                got = f"no {index:05d}.jpg of {video_id}"
                raise DatasetError("a frame for every mask", got, "fetch the video again")
            for object_id, paths in masks.items():
                if index not in paths:
                    got = f"none of object {object_id:03d} for frame {index} of {video_id}"
                    raise DatasetError("a mask for every annotated frame", got, "fetch the video again")
        for index in self.selection.frames(video_id, annotated):
            truth = PngTruth({object_id: paths[index] for object_id, paths in masks.items()}, self._ids)
            image = images[index]
            yield Frame(
                self.name,
                self.split,
                video_id,
                index,
                truth,
                partial(self._rgb.copy, image),
                partial(picture_size, image),
            )


class RleTruth:
    """A frame's masks as run lengths, by object."""

    def __init__(self, rles: Mapping[int, Any], where: str) -> None:
        self.where = where
        self._rles = rles

    def object_ids(self) -> tuple[int, ...]:
        return tuple(i for i in sorted(self._rles) if self._runs(i).area > 0)

    def mask(self, object_id: int) -> Mask | None:
        return self._runs(object_id).mask() if object_id in self._rles else None

    def _runs(self, object_id: int) -> Runs:
        return Runs(self._rles[object_id], f"{self.where}, object {object_id}")


class PngTruth:
    """A frame's masks as pictures, by object."""

    def __init__(self, paths: Mapping[int, Path], ids: Latest) -> None:
        self.where = ", ".join(str(path) for path in list(paths.values())[:1])
        self._paths, self._ids = paths, ids

    def object_ids(self) -> tuple[int, ...]:
        return tuple(i for i in sorted(self._paths) if self._ids(self._paths[i]).any())

    def mask(self, object_id: int) -> Mask | None:
        if object_id not in self._paths:
            return None
        on: Mask = self._ids(self._paths[object_id]) != 0
        return on


def _train_videos(folder: Path) -> dict[str, Path]:
    """video_id -> its `_manual.json`; every video has one, and is there."""
    found: dict[str, Path] = {}
    for part in entries(need_folder(folder, "the videos of SA-V train")):
        names = set(entries(folder / part)) if (folder / part).is_dir() else set()
        videos = {name.removesuffix(".mp4") for name in names if name.endswith(".mp4")}
        annotated = {name.removesuffix(_MANUAL) for name in names if name.endswith(_MANUAL)}
        for missing, suffix, what in (
            (videos - annotated, _MANUAL, "manual masklets for every video"),
            (annotated - videos, ".mp4", "a video for all manual masklets"),
        ):
            if missing:
                got = f"no {folder / part / (min(missing) + suffix)} ({len(missing)} missing)"
                raise DatasetError(what, got, "fetch the part again")
        for video_id in sorted(videos):
            if video_id in found:
                got = f"{video_id} in {found[video_id].parent.name} and {part}"
                raise DatasetError("every video in one folder of SA-V train", got, "remove one of them")
            found[video_id] = folder / part / (video_id + _MANUAL)
    return found


def _size_hw(height: int, width: int) -> tuple[int, int]:
    return height, width


def _object_ids(data: Mapping[str, Any], annotation: Path) -> Sequence[int]:
    ids = data["masklet_id"]
    if any(type(i) is not int for i in ids) or len(set(ids)) < len(ids):
        raise DatasetError(f"different whole numbers as masklet_id in {annotation}", f"{ids!r}"[:60], "fetch it again")
    return tuple(ids)


def _object_masks(folder: Path) -> dict[int, dict[int, Path]]:
    """object_id -> frame_index -> path, for one video of val or test."""
    masks = {}
    for name in entries(folder):
        if not (name.isdecimal() and len(name) == 3 and (folder / name).is_dir()):
            raise DatasetError(f"only folders of objects, named 000 and on, in {folder}", name, "move it away")
        masks[int(name)] = numbered(folder / name, ".png")
    if not any(masks.values()):
        raise DatasetError(f"masks of at least one object in {folder}", "none", "fetch the video again")
    return masks
