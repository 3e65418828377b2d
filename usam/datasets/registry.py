"""Data sets by name, and which of them a folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from usam.datasets.ade20k import Ade20k
from usam.datasets.coco import Coco
from usam.datasets.davis import Davis2017
from usam.datasets.mose import Mose
from usam.datasets.samples import EVERYTHING, DataSet, Selection
from usam.datasets.sav import Sav
from usam.datasets.synthetic import WHOLE, Synthetic
from usam.errors import DatasetError

DATASETS: dict[str, type[Any]] = {kind.name: kind for kind in (Davis2017, Mose, Sav, Ade20k, Coco, Synthetic)}


def open_dataset(name: str, root: str | Path, split: str, selection: Selection = EVERYTHING, **options: Any) -> DataSet:
    """One split of a data set on disk.

    Args:
        name:      davis2017, mose, sav, ade20k, coco or synthetic.
        root:      the folder that its files were unpacked to.
        split:     as the data set calls it.
        selection: limits on videos and frames.
        options:   of the data set: `resolution` for davis2017.
    Raises: DatasetError for an unknown name or split, and for a folder that is not in the set's layout.
    """
    dataset: DataSet = _kind(name)(Path(root), split, selection, **options)
    return dataset


class Layout(NamedTuple):
    """What a folder holds.

    Attributes:
        name:   the data set.
        root:   the folder to open it with: the given one or one just below.
        splits: those whose files are there, by their names alone; nothing was read.
    """

    name: str
    root: Path
    splits: tuple[str, ...]


def describe(root: str | Path, name: str | None = None) -> Layout:
    """Find which data set's layout a folder has.

    Args:    root: a folder. name: the only data set to look for, None for all.
    Raises: DatasetError for a folder that has none; it names the nearest and what that one lacks.
    """
    root = _folder(root)
    kinds = DATASETS if name is None else {name: _kind(name)}
    nearest: tuple[float, str, str] = (0.0, "", "")
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        for kind in kinds.values():
            missing = {split: list(_missing(kind, folder, split)) for split in kind.markers}
            whole = tuple(split for split, patterns in missing.items() if not patterns)
            if whole:
                return Layout(kind.name, folder, tuple(s for s in whole if s != WHOLE) or whole)
            for split, patterns in missing.items():
                share = 1 - len(patterns) / len(kind.markers[split])
                if share > nearest[0]:
                    nearest = (share, f"{kind.name} {split}", f"{folder} without {' and '.join(patterns)}")
    if not nearest[0]:
        raise DatasetError(f"the layout of {', '.join(kinds)}", f"none of them in {root}", "see docs/usam.md")
    raise DatasetError(f"a data set's layout, nearest {nearest[1]}", nearest[2], "unpack what is missing")


def find_split(root: str | Path, name: str | None = None, split: str | None = None) -> tuple[str, Path, str]:
    """What to open of a folder: what the caller leaves out is found by the layout.

    Args:    root: a folder. name: a data set, None for the one that is there. split: None for the only one there.
    Returns: name, root and split for `open_dataset`; nothing but names of files was looked at.
    Raises:  DatasetError for an unknown name or split, a folder without a layout, or splits to choose from.
    """
    layout = Layout(name, _folder(root), ()) if name is not None and split is not None else describe(root, name)
    known = layout.splits if split is None else tuple(_kind(layout.name).markers)
    chosen = known[0] if split is None and len(known) == 1 else split
    if chosen is None or chosen not in known:
        got = "none" if chosen is None else repr(chosen)
        raise DatasetError(f"a split of {layout.name} out of {', '.join(known)}", got, "name one")
    return layout.name, layout.root, chosen


def _folder(root: str | Path) -> Path:
    if not Path(root).is_dir():
        raise DatasetError("the folder of a data set", f"no folder {root}", "check the path")
    return Path(root)


def _kind(name: str) -> type[Any]:
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, 1, 0.4)
        step = f"did you mean {near[0]}?" if near else "correct the name"
        raise DatasetError(f"a data set out of {', '.join(DATASETS)}", repr(name), step)
    return DATASETS[name]


def _missing(kind: type[DataSet], folder: Path, split: str) -> Iterator[str]:
    base = kind.base(folder)
    return (pattern for pattern in kind.markers[split] if next(base.glob(pattern), None) is None)
