"""Masks as people hand them in: COCO RLE, compressed or not, or a picture; nothing in them is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import PromptError

MAX_MASK_PX = 1 << 28  # a mask larger than any video that is accepted is a mistake or an attack
PICTURE_MODES = ("1", "L", "P", "I", "I;16")


def mask_from_rle(rle: dict[str, Any], where: str) -> NDArray[np.bool_]:
    """Decode a COCO RLE dictionary from an untrusted file.

    Args:
        rle: {"size": [height, width], "counts": compressed string or list of run lengths}, column by column, background
            first.
        where: what it belongs to, for messages.

    Returns: (H, W) bool.
    Raises: PromptError when a part is missing or of another type, or the runs do not add up to height * width.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if set(rle) != {"size", "counts"} or not isinstance(size, list) or len(size) != 2:
        raise _bad_rle(where, f"keys {sorted(map(str, rle))}")
    if not all(type(side) is int and side > 0 for side in size) or size[0] * size[1] > MAX_MASK_PX:
        raise _bad_rle(where, f"size {size}")
    height, width = size
    if isinstance(counts, str):
        runs = _runs_from_text(counts, where)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    else:
        raise _bad_rle(where, f"counts of type {type(counts).__name__}")
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise PromptError(
            f"mask runs that add up to {height} x {width} = {height * width}",
            f"{sum(runs)} for {where}",
            "write it again",
        )
    values = np.arange(len(runs)) % 2 == 1
    flat = np.repeat(values, np.asarray(runs, dtype=np.int64))
    return np.ascontiguousarray(flat.reshape(width, height).T)


def runs_of(mask_hw: NDArray[np.bool_]) -> list[int]:
    """Uncompressed COCO run lengths of a mask: column by column, background first."""
    flat = mask_hw.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate(([0], edges, [flat.size]))
    runs: list[int] = np.diff(bounds).tolist()
    return [0, *runs] if flat.size and flat[0] else runs


def mask_from_picture(name: str, base_dir: Path | None, where: str) -> NDArray[np.bool_]:
    """Read a one-channel picture below `base_dir`; every value but 0 is foreground.

    Returns: (H, W) bool.
    Raises: PromptError when it lies elsewhere, is missing, or is no one-channel picture.
    """
    from PIL import Image, UnidentifiedImageError

    if base_dir is None:
        raise PromptError(
            "a mask as COCO RLE", f"the path {name!r} for {where}, without a folder", "put the RLE inline"
        )
    base = base_dir.resolve()
    try:
        path = (base / name).resolve()
    except ValueError as error:  # a NUL, or half of a character
        raise PromptError(
            "a mask picture", f"the name {name!r} for {where}", "name a file beside the prompts"
        ) from error
    if not path.is_relative_to(base):
        raise PromptError(f"a mask below {base}", f"{name!r} for {where}", "put the mask beside the prompts")
    try:
        with Image.open(path) as picture:
            if picture.mode not in PICTURE_MODES or picture.width * picture.height > MAX_MASK_PX:
                got = f"{path} of mode {picture.mode}, {picture.width}x{picture.height}, for {where}"
                raise PromptError("a one-channel mask picture", got, "save it as 8-bit grey, palette or 1-bit PNG")
            mask_hw: NDArray[np.bool_] = np.asarray(picture) != 0
            return mask_hw
    except FileNotFoundError as error:
        raise PromptError("a mask picture", f"no such file: {path}, for {where}", "check the path") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PromptError("a readable mask picture", f"{path} ({error}) for {where}", "save it as PNG again") from error


def _bad_rle(where: str, got: str) -> PromptError:
    expected = 'a mask {"size": [height, width], "counts": text or list of run lengths}'
    return PromptError(expected, f"{got} for {where}", "write it as COCO RLE")


def _runs_from_text(text: str, where: str) -> list[int]:
    """COCO's compressed counts: 5 bits a character, least first; the fourth run and on are differences.

    Source: rleFrString in pycocotools' maskApi.c, which trusts its input.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        chunk = ord(character) - 48
        if not 0 <= chunk < 64 or shift > 60:
            raise _bad_rle(where, f"counts with {character!r}")
        value |= (chunk & 0x1F) << shift
        shift += 5
        if chunk & 0x20:
            continue
        if chunk & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise _bad_rle(where, "counts that break off")
    return runs
