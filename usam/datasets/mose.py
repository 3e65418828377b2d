"""MOSE: palette masks for every frame of train, for frame 0 only of valid."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from usam.datasets.files import entries, is_plain, need_folder, read_json
from usam.datasets.palette import PaletteDataSet
from usam.datasets.samples import Markers
from usam.datasets.selection import EVERYTHING, Selection, refuse_shared
from usam.errors import DatasetError

SPLITS = ("train", "valid")


class Mose(PaletteDataSet):
    """`{train,valid}/{JPEGImages,Annotations}/V/%05d`, with `meta_{train,valid}.json` beside or in the split's folder.

    The meta file lists the videos (`{"videos": {V: ...}}`); it is a download of its own, and without it the folders
    below `JPEGImages` are the videos.

    Args:   root: the folder that holds `train` or `valid`.
    Raises: DatasetError for a missing folder, a meta file without `videos`, a listed video that is not there, or
        a video in two splits.
    """

    name = "mose"
    home = "MOSE"
    markers: ClassVar[Markers] = {split: (f"{split}/JPEGImages", f"{split}/Annotations") for split in SPLITS}

    def __init__(self, root: Path, split: str, selection: Selection = EVERYTHING) -> None:
        base = self.checked_base(root, split)
        there = [name for name in SPLITS if name == split or (base / name / "JPEGImages").is_dir()]
        listed = {name: _videos(base, name) for name in there}
        refuse_shared(self.name, listed)
        folders = (base / split / "JPEGImages", base / split / "Annotations")
        super().__init__(split, listed[split], selection, folders, first_only=split == "valid")


def _videos(base: Path, split: str) -> list[str]:
    for meta in (base / f"meta_{split}.json", base / split / f"meta_{split}.json"):
        if meta.is_file():
            names = sorted(read_json(meta, videos=dict)["videos"])
            for name in names:
                if not is_plain(name):
                    raise DatasetError(f"names of folders as the videos of {meta}", repr(name), "fetch it again")
            return names
    return entries(need_folder(base / split / "JPEGImages", f"the frames of MOSE {split}"))
