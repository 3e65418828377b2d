"""True masks as pictures of object ids: folders of palette PNGs as in DAVIS, `STEM.truth.npz` of rendered clips."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline import rle
from pipeline.judged import Fact, Judged, TruthError, said
from usam.datasets.files import entries, numbered, read_ids
from usam.errors import DatasetError

NPZ = ".truth.npz"


class TrueFrame(Protocol):
    """An annotated frame: `height` and `width` in pixels, the objects that are in it, and the mask of each."""

    where: str
    height: int
    width: int

    def object_ids(self) -> Iterable[int]: ...
    def counts(self, object_id: int) -> bytes: ...


class IdFrame:
    """A frame as (H, W) uint8 ids; 0 is nobody's."""

    def __init__(self, ids_hw: NDArray[np.uint8], where: str) -> None:
        self.where = where
        self.height, self.width = ids_hw.shape
        self._ids_hw = ids_hw

    def object_ids(self) -> list[int]:
        """Ids of the objects that are in it."""
        return [int(i) for i in np.bincount(self._ids_hw.ravel()).nonzero()[0] if i]

    def counts(self, object_id: int) -> bytes:
        """The object's mask as COCO counts, empty if it is not in it."""
        return rle.encode_mask(self._ids_hw == object_id).counts


def judge_masks(name: str, frames: Iterable[tuple[int, TrueFrame]], facts: Iterable[Fact]) -> Iterator[Judged]:
    """The IoU of every row on an annotated frame; an object without true pixels there is absent.

    Args:    frames: by rising frame_index. facts: by frame_index.
    Raises:  TruthError for a mask of another size, or if no object of the rows is ever in the truth.
    """
    true_ids, row_ids = set[int](), set[int]()
    left = iter(frames)
    index, frame = next(left, (-1, None))
    for frame_index, group in groupby(facts, key=lambda fact: fact.frame_index):
        while frame is not None and index < frame_index:
            true_ids.update(frame.object_ids())
            index, frame = next(left, (-1, None))
        if frame is None or index > frame_index:
            continue
        for fact in group:
            if (fact.height, fact.width) != (frame.height, frame.width):
                got = f"{frame.width}x{frame.height} in {frame.where}"
                where = said(name, fact.frame_index, fact.object_id)
                raise TruthError(f"a true mask of {fact.width}x{fact.height} for {where}", got, "give it at that size")
            row_ids.add(fact.object_id)
            iou = rle.iou(fact.counts, frame.counts(fact.object_id), fact.height, fact.width)
            yield Judged(fact.frame_index, fact.object_id, iou)
    while frame is not None:
        true_ids.update(frame.object_ids())
        index, frame = next(left, (-1, None))
    if row_ids and true_ids and not row_ids & true_ids:
        got = f"{_ids(true_ids)} in the truth, {_ids(row_ids)} in the rows"
        raise TruthError(f"the prompts' object ids in the truth of {name}", got, "give the truth the prompts' ids")


def _ids(found: set[int]) -> str:
    some = ", ".join(str(one) for one in sorted(found)[:5])
    return f"objects {some}{', ...' if len(found) > 5 else ''}"


class PaletteFolders:
    """`Annotations/VIDEO/%05d.png`, or with a folder for the resolution in between, palette or grey.

    Args:   root: the folder that holds `Annotations`, that folder itself, or one of its resolutions.
    Raises: TruthError for a folder without such videos, or several resolutions.
    """

    kind = "davis"

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        folder = root / "Annotations" if (root / "Annotations").is_dir() else root
        videos = _folders_of_pngs(folder)
        if not videos:
            inner = {path.name: found for path in _folders(folder) if (found := _folders_of_pngs(path))}
            if len(inner) > 1:
                step = f"name one, such as {folder / min(inner)}"
                raise TruthError(f"one resolution in {folder}", f"{', '.join(sorted(inner))}", step)
            videos = next(iter(inner.values()), {})
        if not videos:
            step = "a JSON file is read as COCO, Parquet as rows; see docs/thresholds.md"
            raise TruthError(f"truth in {root}", "neither VIDEO/00000.png, STEM.truth.npz nor Parquet", step)
        self._videos = videos

    def names(self) -> Sequence[str]:
        """Names of the folders."""
        return sorted(self._videos)

    def judge(self, name: str, facts: Iterable[Fact]) -> Iterator[Judged]:
        """Judge the rows of one video."""
        pictures = numbered(self._videos[name], ".png")
        frames = ((index, IdFrame(read_ids(path), str(path))) for index, path in sorted(pictures.items()))
        return judge_masks(name, frames, facts)


class NpzFolder:
    """`STEM.truth.npz` files with `ids_thw` (T, H, W) uint8, as `masksieve demo` writes them; read frame by frame."""

    kind = "npz"

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        self._root = root
        self._stems = sorted(path.name.removesuffix(NPZ) for path in root.glob(f"*{NPZ}"))

    def names(self) -> Sequence[str]:
        """The stems."""
        return self._stems

    def judge(self, name: str, facts: Iterable[Fact]) -> Iterator[Judged]:
        """Judge the rows of one video."""
        return judge_masks(name, _npz_frames(self._root / f"{name}{NPZ}"), facts)


def _npz_frames(path: Path) -> Iterator[tuple[int, IdFrame]]:
    """Frames of `ids_thw`, one in memory at a time."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("ids_thw.npy") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(file)
            if len(shape) != 3 or dtype != np.uint8 or fortran or not all(shape):
                raise DatasetError("ids_thw (T, H, W) uint8", f"{dtype} {shape} in {path}", "write the truth again")
            for index in range(shape[0]):
                body = file.read(shape[1] * shape[2])
                yield index, IdFrame(np.frombuffer(body, np.uint8).reshape(shape[1:]), str(path))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        got = f"{path} ({' '.join(str(error).split())[:100]})"
        raise DatasetError("truth as .npz with ids_thw", got, "write the truth again") from error


def _folders(folder: Path) -> list[Path]:
    return [folder / name for name in entries(folder) if (folder / name).is_dir()]


def _folders_of_pngs(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in _folders(folder) if next(path.glob("*.png"), None) is not None}
