"""ADE20k, the scene parsing benchmark: single images, one instance per semantic class."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

from usam.datasets.files import (
    IdMap,
    Latest,
    entries,
    need_folder,
    picture_size,
    read_ids,
    read_rgb,
)
from usam.datasets.samples import DataSet, Frame, Markers
from usam.datasets.selection import EVERYTHING, Selection, refuse_shared
from usam.errors import DatasetError

SPLITS = ("training", "validation")


class Ade20k(DataSet):
    """`ADEChallengeData2016/{images,annotations}/{training,validation}`: NAME.jpg with NAME.png of classes, 0 = none.

    Args:   root: the folder `ADEChallengeData2016`, or one that holds it.
    Raises: DatasetError for a missing folder, an image without annotation or the reverse, or an image in two splits.
    """

    name = "ade20k"
    home = "ADEChallengeData2016"
    markers: ClassVar[Markers] = {split: (f"images/{split}", f"annotations/{split}") for split in SPLITS}

    def __init__(self, root: Path, split: str, selection: Selection = EVERYTHING) -> None:
        base = self.checked_base(root, split)
        self._images, self._masks = base / "images" / split, base / "annotations" / split
        listed = {split: _stems(self._images, ".jpg")}
        for other in SPLITS:
            if other != split and (base / "images" / other).is_dir():
                listed[other] = _stems(base / "images" / other, ".jpg")
        refuse_shared(self.name, listed)
        masks = set(_stems(self._masks, ".png"))
        for missing, folder, suffix, what in (
            (set(listed[split]) - masks, self._masks, ".png", "an annotation for every image"),
            (masks - set(listed[split]), self._images, ".jpg", "an image for every annotation"),
        ):
            if missing:
                got = f"no {folder / (min(missing) + suffix)} ({len(missing)} missing)"
                raise DatasetError(what, got, "unpack the data set again")
        self._rgb, self._ids = Latest(read_rgb), Latest(read_ids)
        super().__init__(split, listed[split], selection, self._images)

    def read(self, video_id: str) -> Iterator[Frame]:
        image = self._images / f"{video_id}.jpg"
        truth = IdMap(self._masks / f"{video_id}.png", self._ids)
        yield Frame(
            self.name, self.split, video_id, 0, truth, partial(self._rgb.copy, image), partial(picture_size, image)
        )


def _stems(folder: Path, suffix: str) -> list[str]:
    names = entries(need_folder(folder, f"pictures NAME{suffix}"))
    for name in names:
        if not name.endswith(suffix):
            raise DatasetError(f"only pictures NAME{suffix} in {folder}", name, "move the file away")
    return [name.removesuffix(suffix) for name in names]
