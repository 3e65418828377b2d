"""Folders, lists and pictures of a data set, read strictly: what is missing or odd is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from usam.datasets.samples import Image, Mask
from usam.errors import DatasetError

ONE_CHANNEL = ("1", "L", "P")
Value = TypeVar("Value")
_AGAIN = "fetch it again"
_UNREADABLE = (OSError, ValueError, SyntaxError, pillow.DecompressionBombError)


def need_folder(path: Path, what: str) -> Path:
    """The folder itself.

    Raises: DatasetError if it is not there.
    """
    if not path.is_dir():
        raise DatasetError(what, f"no folder {path}", "unpack it there")
    return path


def entries(folder: Path) -> list[str]:
    """Names in a folder in order, hidden ones left out."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Files named by a frame's number of five digits, in order.

    Returns: frame_index -> path.
    Raises:  DatasetError for a folder that is missing, or any other file in it.
    """
    pattern = re.compile(rf"\d{{5}}{re.escape(suffix)}")
    found = {}
    for name in entries(need_folder(folder, f"frames named 00000{suffix} and on")):
        if not pattern.fullmatch(name):
            raise DatasetError(f"only frames named 00000{suffix} and on in {folder}", name, "move the file away")
        found[int(name[:5])] = folder / name
    return found


def need_same_frames(
    images: Iterable[int], masks: Iterable[int], folders: tuple[Path, Path], suffix: str = ".jpg"
) -> None:
    """Check that frames and masks have the same numbers.

    Args:   folders: of frames and of masks. suffix: of frames.
    Raises: DatasetError that names the first missing file.
    """
    image_set, mask_set = set(images), set(masks)
    for missing, folder, ending, what in (
        (image_set - mask_set, folders[1], ".png", "a mask for every frame"),
        (mask_set - image_set, folders[0], suffix, "a frame for every mask"),
    ):
        if missing:
            got = f"no {folder / f'{min(missing):05d}{ending}'} ({len(missing)} missing)"
            raise DatasetError(what, got, _AGAIN)


def read_list(path: Path) -> list[str]:
    """Video names of a split, one a line, in the file's order.

    Raises: DatasetError for a missing file, a name that is no plain folder name, or one that comes twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError("the list of a split's videos", f"{path} ({_why(error)})", _AGAIN) from error
    for name in names:
        if not is_plain(name):
            raise DatasetError(f"one video name a line in {path}", repr(name), "correct the list")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"every video once in {path}", f"{twice} more than once", "correct the list")
    return names


def is_plain(name: str) -> bool:
    """Whether a name from a file stays in the folder it is looked for in."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0 \t")


def read_json(path: Path, **kinds: type | tuple[type, ...]) -> Mapping[str, Any]:
    """A JSON object.

    Args:   kinds: keys that it must have, with their types.
    Raises: DatasetError for a file that is missing or no JSON object, or a key that is missing or of another type.
    """
    try:
        with path.open(encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError("an annotation file in JSON", f"{path} ({_why(error)})", _AGAIN) from error
    return need_keys(data, str(path), **kinds)


def need_keys(data: Any, where: str, **kinds: type | tuple[type, ...]) -> Mapping[str, Any]:
    """`data`, if it is a mapping with these keys of these types.

    Raises: DatasetError that names the first key that is missing or of another type.
    """
    if not isinstance(data, dict):
        raise DatasetError(f"a JSON object in {where}", type(data).__name__, _AGAIN)
    for key, kind in kinds.items():
        if key not in data:
            raise DatasetError(f"the key {key!r} in {where}", f"only {', '.join(sorted(data)[:8]) or 'none'}", _AGAIN)
        if not isinstance(data[key], kind) or (isinstance(data[key], bool) and kind is not bool):
            got = f"{type(data[key]).__name__} in {where}"
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise DatasetError(f"{names} for the key {key!r}", got, _AGAIN)
    return data


def picture_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels, from the header alone."""
    return _opened(path, lambda picture: (picture.height, picture.width))


def read_rgb(path: Path) -> Image:
    """(H, W, 3) uint8 RGB of a picture of any mode, as it is stored: masks are drawn on stored pixels.

    Raises: DatasetError for a picture that is missing or broken.
    """
    return _opened(path, lambda picture: np.array(picture.convert("RGB")))


def read_ids(path: Path) -> NDArray[np.uint8]:
    """(H, W) uint8, the palette index or grey value of every pixel.

    Raises: DatasetError for a picture that is missing, broken or not of one channel: colours are no ids.
    """

    def read(picture: pillow.Image) -> NDArray[np.uint8]:
        if picture.mode not in ONE_CHANNEL:
            got = f"{path} of mode {picture.mode}"
            raise DatasetError("a mask picture of one channel (palette or grey, 8 bits)", got, _AGAIN)
        return np.array(picture).astype(np.uint8)

    return _opened(path, read)


def _opened(path: Path, read: Callable[[pillow.Image], Value]) -> Value:
    try:
        with pillow.open(path) as picture:
            return read(picture)
    except _UNREADABLE as error:
        raise DatasetError("a readable picture", f"{path} ({_why(error)})", _AGAIN) from error


def _why(error: BaseException) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__


class Latest:
    """Remembers the last picture that was read: a frame's objects decode it once, and no more than one stays."""

    def __init__(self, read: Callable[[Path], NDArray[np.uint8]]) -> None:
        self._read = read
        self._last: tuple[Path, NDArray[np.uint8]] | None = None

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        """The picture; shared, so nothing may write on it."""
        last = self._last
        if last is None or last[0] != path:
            self._last = last = (path, self._read(path))
        return last[1]

    def copy(self, path: Path) -> NDArray[np.uint8]:
        """The picture, to write on."""
        return self(path).copy()


class IdMap:
    """A picture whose pixels say whose they are: every id but 0 is an instance."""

    def __init__(self, path: Path, ids: Latest) -> None:
        self.where = str(path)
        self._path, self._ids = path, ids

    def object_ids(self) -> tuple[int, ...]:
        return tuple(int(i) for i in np.bincount(self._ids(self._path).ravel()).nonzero()[0] if i)

    def mask(self, object_id: int) -> Mask | None:
        seen: Mask = self._ids(self._path) == object_id
        return seen
