"""Clips with exact truth that somebody rendered: from a folder of videos or frames, or from a callable."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from usam.datasets.files import (
    IdMap,
    Latest,
    entries,
    need_same_frames,
    numbered,
    picture_size,
    read_ids,
    read_rgb,
)
from usam.datasets.mp4 import VideoFile
from usam.datasets.samples import DataSet, Frame, Markers, Mask, Truth
from usam.datasets.selection import EVERYTHING, Selection, refuse_shared
from usam.errors import DatasetError

SPLITS = ("train", "val", "test")
WHOLE = "all"
_NPZ, _FOLDER = ".truth.npz", ".truth"
Render = Callable[[str], tuple[NDArray[np.uint8], NDArray[np.uint8]]]


class IdArray:
    """(H, W) uint8 ids in memory: every id but 0 is an instance."""

    def __init__(self, ids_hw: NDArray[np.uint8], where: str) -> None:
        self.where = where
        self._ids_hw = ids_hw

    def object_ids(self) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unique(self._ids_hw) if i)

    def mask(self, object_id: int) -> Mask | None:
        seen: Mask = self._ids_hw == object_id
        return seen


class Synthetic(DataSet):
    """Clips in `SPLIT/` (or, as the split `all`, in the root itself), each with its truth.

    A clip is `CLIP.mp4`, or `CLIP/%05d.png`; its truth is `CLIP.truth.npz` with `ids_thw` (T, H, W) uint8 as
    `masksieve usam fit` takes it, or `CLIP.truth/%05d.png` (palette or grey). Id 0 is background.

    Args:   root: the folder that holds `train`, `val`, `test`, or the clips.
    Raises: DatasetError for a clip without truth or the reverse, or a clip in two splits.
    """

    name = "synthetic"
    markers: ClassVar[Markers] = {
        **{split: (f"{split}/*{_FOLDER}*",) for split in SPLITS},
        WHOLE: (f"*{_FOLDER}*",),
    }

    def __init__(self, root: Path, split: str, selection: Selection = EVERYTHING) -> None:
        base = self.checked_base(root, split)
        self._folder = base if split == WHOLE else base / split
        if split != WHOLE:
            refuse_shared(self.name, {name: _clips(base / name) for name in SPLITS if (base / name).is_dir()})
        self._rgb, self._ids = Latest(read_rgb), Latest(read_ids)
        super().__init__(split, _clips(self._folder) if self._folder.is_dir() else (), selection, self._folder)

    def read(self, video_id: str) -> Iterator[Frame]:
        truths = self._truths(video_id)
        folder, video = self._folder / video_id, VideoFile(self._folder / f"{video_id}.mp4")
        images = numbered(folder, ".png") if folder.is_dir() else None
        if images is not None:
            need_same_frames(images, truths, (folder, self._folder / f"{video_id}{_FOLDER}"), ".png")
        try:
            for index in self.selection.frames(video_id, list(truths)):
                truth, size_hw = truths[index]
                if images is None:
                    load = partial(video.frame, index)
                else:
                    load, size_hw = partial(self._rgb.copy, images[index]), partial(picture_size, images[index])
                yield Frame(self.name, self.split, video_id, index, truth, load, size_hw)
        finally:
            video.close()

    def _truths(self, video_id: str) -> dict[int, tuple[Truth, Callable[[], tuple[int, int]]]]:
        """Truth and its size by frame."""
        folder, path = (self._folder / f"{video_id}{ending}" for ending in (_FOLDER, _NPZ))
        if folder.is_dir():
            masks = numbered(folder, ".png")
            return {index: (IdMap(mask, self._ids), partial(picture_size, mask)) for index, mask in masks.items()}
        return {index: (IdArray(ids_hw, str(path)), partial(_shape, ids_hw)) for index, ids_hw in _ids_thw(path)}


class Rendered(DataSet):
    """Clips that a callable renders when their frames are asked for; one clip is held at a time.

    Args:
        render:    video_id -> frames (T, H, W, 3) uint8 RGB and ids (T, H, W) uint8, 0 = background; repeatable.
        video_ids: the clips, in order. split: what the frames say they are of.
    Raises: DatasetError for no clips, or a clip of another shape (when it is rendered).
    """

    name = "synthetic"
    markers = Synthetic.markers

    def __init__(
        self, render: Render, video_ids: Sequence[str], split: str = WHOLE, selection: Selection = EVERYTHING
    ) -> None:
        self._render = render
        super().__init__(split, video_ids, selection, "the list of clips")

    def read(self, video_id: str) -> Iterator[Frame]:
        frames_thw3, ids_thw = self._render(video_id)
        if ids_thw.ndim != 3 or frames_thw3.shape != (*ids_thw.shape, 3):
            got = f"{frames_thw3.shape} and {ids_thw.shape} for {video_id}"
            raise DatasetError("frames (T, H, W, 3) and ids (T, H, W)", got, "correct the callable")
        for index in self.selection.frames(video_id, range(len(ids_thw))):
            truth = IdArray(ids_thw[index], f"the rendered {video_id}")
            load = partial(np.copy, frames_thw3[index])
            yield Frame(self.name, self.split, video_id, index, truth, load, partial(_shape, ids_thw[index]))


def _shape(ids_hw: NDArray[np.uint8]) -> tuple[int, int]:
    return ids_hw.shape[0], ids_hw.shape[1]


def _clips(folder: Path) -> list[str]:
    """Names of the clips in a folder; each has frames and truth."""
    names = entries(folder)
    truths = {name.removesuffix(ending) for ending in (_NPZ, _FOLDER) for name in names if name.endswith(ending)}
    clips = {name.removesuffix(".mp4") for name in names if name.endswith(".mp4")}
    clips |= {name for name in names if "." not in name and (folder / name).is_dir() and name not in SPLITS}
    for missing, what in (
        (clips - truths, f"the truth of a clip (CLIP{_NPZ} or CLIP{_FOLDER}/)"),
        (truths - clips, "the frames of a clip (CLIP.mp4 or CLIP/)"),
    ):
        if missing:
            raise DatasetError(what, f"none of {min(missing)} in {folder} ({len(missing)} missing)", "render it again")
    return sorted(clips)


def _ids_thw(path: Path) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Frame by frame of a truth file."""
    try:
        with np.load(path) as data:
            ids_thw = data["ids_thw"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise DatasetError("truth as .npz with ids_thw", f"{path} ({why})", "render the clip again") from error
    if ids_thw.ndim != 3 or ids_thw.dtype != np.uint8 or not len(ids_thw):
        got = f"{ids_thw.dtype} {ids_thw.shape} in {path}"
        raise DatasetError("ids_thw (T, H, W) uint8", got, "render the clip again")
    yield from enumerate(ids_thw)
