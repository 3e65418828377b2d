"""The common record of every data set: a frame of a video with its objects, decoded only when asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from usam.datasets.selection import EVERYTHING, Selection
from usam.errors import DatasetError

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Markers = Mapping[str, tuple[str, ...]]


class Truth(Protocol):
    """The annotation of one frame, not decoded yet."""

    @property
    def where(self) -> str:
        """The file that a message names."""
        ...

    def object_ids(self) -> tuple[int, ...]:
        """Ids of the instances on this frame that the data set's filter lets through, ascending."""
        ...

    def mask(self, object_id: int) -> Mask | None:
        """(H, W) bool, or None for an object that is not annotated here."""
        ...


@dataclass(frozen=True)
class Frame:
    """One frame with truth. Nothing is decoded before a method is called.

    Attributes:
        dataset, split: where it is from.
        video_id:       tells videos (or images) apart within the data set; rows are split by it.
        frame_index:    as the data set counts frames, from 0; SA-V counts at 24 fps.
        truth:          the annotation.
        load_image:     gives (H, W, 3) uint8 RGB.
        size_hw:        gives the height and width that image and masks must have.
    """

    dataset: str
    split: str
    video_id: str
    frame_index: int
    truth: Truth
    load_image: Callable[[], Image]
    size_hw: Callable[[], tuple[int, int]]

    def object_ids(self) -> tuple[int, ...]:
        """Instances on this frame, ascending; may be empty."""
        return self.truth.object_ids()

    def image(self) -> Image:
        """(H, W, 3) uint8 RGB, yours to write on.

        Raises: DatasetError for an unreadable image, or one of another size than its annotation says.
        """
        image_hw3 = self.load_image()
        self._check(image_hw3.shape[:2], "image")
        return image_hw3

    def mask(self, object_id: int) -> Mask:
        """(H, W) bool, yours to write on; False everywhere where the object is not on this frame.

        Raises: DatasetError for an unreadable mask, or one of another size than the image.
        """
        mask_hw = self.truth.mask(object_id)
        if mask_hw is None:
            return np.zeros(self.size_hw(), bool)
        self._check(mask_hw.shape, f"mask in {self.truth.where}")
        return mask_hw

    def samples(self) -> Iterator[Sample]:
        """One sample per instance."""
        return (Sample(self, object_id) for object_id in self.object_ids())

    def _check(self, shape: tuple[int, ...], what: str) -> None:
        height, width = self.size_hw()
        if shape != (height, width):
            got = f"{shape[1]}x{shape[0]} (width x height) at frame {self.frame_index} of {self.video_id}"
            raise DatasetError(f"{width}x{height} for the {what}", got, "fetch this video's files again")


@dataclass(frozen=True)
class Sample:
    """One instance on one frame: what a row of harvest or evaluation is made from."""

    frame: Frame
    object_id: int

    @property
    def dataset(self) -> str:
        return self.frame.dataset

    @property
    def split(self) -> str:
        return self.frame.split

    @property
    def video_id(self) -> str:
        return self.frame.video_id

    @property
    def frame_index(self) -> int:
        return self.frame.frame_index

    def image(self) -> Image:
        """(H, W, 3) uint8 RGB. Samples of one frame that are read one after the other decode it once."""
        return self.frame.image()

    def mask(self) -> Mask:
        """(H, W) bool."""
        return self.frame.mask(self.object_id)


@dataclass(frozen=True)
class Video:
    """A video, or a single image as a video of one frame.

    Attributes:
        video_id: its name.
        frames:   starts reading; the frames that have truth come in order. May be called again.
    """

    video_id: str
    frames: Callable[[], Iterator[Frame]]


class DataSet(ABC):
    """One split of a data set, video by video, always in the same order.

    Args:
        split:     one of `markers`.
        listed:    every video of the split, in order.
        selection: which videos and frames to read.
        where:     what a message calls the place of the videos.
    Raises: DatasetError for an empty split.
    """

    name: ClassVar[str]
    # What a folder must hold for each split, as glob patterns below `base`; `layouts.describe` looks for them.
    markers: ClassVar[Markers]
    # The folder that the data set is unpacked to; a root that holds it is as good as the folder itself.
    home: ClassVar[str] = ""

    def __init__(self, split: str, listed: Sequence[str], selection: Selection, where: object) -> None:
        if not listed:
            raise DatasetError(f"videos in {self.name} {split}", f"none in {where}", "unpack the split's files there")
        self.split, self.selection = split, selection
        self.video_ids: tuple[str, ...] = tuple(selection.videos(listed))

    def __len__(self) -> int:
        """Number of videos."""
        return len(self.video_ids)

    @abstractmethod
    def read(self, video_id: str) -> Iterator[Frame]:
        """Frames of one video, in order.

        Raises: DatasetError for a missing or odd file, before the first frame where listing a folder shows it.
        """

    def videos(self) -> Iterator[Video]:
        """The videos; none is opened before its frames are asked for."""
        for video_id in self.video_ids:
            yield Video(video_id, partial(self.read, video_id))

    def frames(self) -> Iterator[Frame]:
        """All frames, video by video."""
        for video in self.videos():
            yield from video.frames()

    def samples(self) -> Iterator[Sample]:
        """All instances, frame by frame.

        Raises: DatasetError at the end if there was none.
        """
        empty = True
        for frame in self.frames():
            for sample in frame.samples():
                empty = False
                yield sample
        if empty:
            got = f"none on the frames of {len(self)} videos"
            raise DatasetError(f"at least one instance in {self.name} {self.split}", got, "read more videos or frames")

    @classmethod
    def base(cls, root: Path) -> Path:
        """The folder that the layout starts in: `root`, or its `home`."""
        return root / cls.home if cls.home and (root / cls.home).is_dir() else root

    @classmethod
    def checked_base(cls, root: Path, split: str) -> Path:
        """`base`, for a folder that exists and a split that the data set has.

        Raises: DatasetError otherwise.
        """
        if split not in cls.markers:
            raise DatasetError(f"a split of {cls.name} out of {', '.join(cls.markers)}", repr(split), "correct it")
        if not root.is_dir():
            raise DatasetError(f"the folder of {cls.name}", f"no folder {root}", "check the path")
        return cls.base(root)


__all__ = ["EVERYTHING", "DataSet", "Frame", "Image", "Mask", "Sample", "Selection", "Truth", "Video"]
