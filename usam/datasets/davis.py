"""DAVIS 2017: palette masks for every frame, test-dev for frame 0 only."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from usam.datasets.files import read_list
from usam.datasets.palette import PaletteDataSet
from usam.datasets.samples import Markers
from usam.datasets.selection import EVERYTHING, Selection, refuse_shared
from usam.errors import DatasetError

SPLITS = ("train", "val", "test-dev")
RESOLUTIONS = ("480p", "Full-Resolution")


class Davis2017(PaletteDataSet):
    """`JPEGImages/480p/V/%05d.jpg`, `Annotations/480p/V/%05d.png`, `ImageSets/2017/{train,val,test-dev}.txt`.

    Args:
        root:       the folder `DAVIS`, or one that holds it.
        resolution: `480p` or `Full-Resolution`.
    Raises: DatasetError for a missing list or listed video, or a video in two splits.
    """

    name = "davis2017"
    home = "DAVIS"
    markers: ClassVar[Markers] = {
        split: (f"ImageSets/2017/{split}.txt", "JPEGImages", "Annotations") for split in SPLITS
    }

    def __init__(self, root: Path, split: str, selection: Selection = EVERYTHING, *, resolution: str = "480p") -> None:
        base = self.checked_base(root, split)
        if resolution not in RESOLUTIONS:
            raise DatasetError(f"a resolution out of {', '.join(RESOLUTIONS)}", repr(resolution), "correct it")
        lists = {name: base / "ImageSets" / "2017" / f"{name}.txt" for name in SPLITS}
        listed = {name: read_list(path) for name, path in lists.items() if name == split or path.is_file()}
        refuse_shared(self.name, listed)
        folders = (base / "JPEGImages" / resolution, base / "Annotations" / resolution)
        super().__init__(split, listed[split], selection, folders, first_only=split == "test-dev")
