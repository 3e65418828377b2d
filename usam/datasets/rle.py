"""COCO run lengths to masks, without trusting them: counts that do not fill the picture are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from usam.datasets.samples import Mask
from usam.errors import DatasetError

MAX_SIDE_PX = 1 << 15


class Runs:
    """A mask as lengths of runs, column by column: off, on, off, ...

    Args:
        rle:   `{"size": [height, width], "counts": text or list of run lengths}`.
        where: what a message names.
    Raises: DatasetError for anything else, and for runs that do not add up to the picture.
    Source: rleFrString in pycocotools' maskApi.c, which trusts its input.
    """

    def __init__(self, rle: Any, where: str) -> None:
        if not isinstance(rle, dict) or not {"size", "counts"} <= set(rle):
            raise _bad(where, repr(rle)[:60])
        size, counts = rle["size"], rle["counts"]
        if not (
            isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n < MAX_SIDE_PX for n in size)
        ):
            raise _bad(where, f"size {size!r}"[:60])
        self.height, self.width = size
        if isinstance(counts, str):
            self.runs_n = _from_text(counts, where)
        elif isinstance(counts, list) and all(type(n) is int and abs(n) < 2**48 for n in counts):
            self.runs_n = np.array(counts, np.int64)
        else:
            raise _bad(where, f"counts {counts!r}"[:60])
        area_px = self.height * self.width
        total = int(np.clip(self.runs_n, -1, area_px + 1).sum())
        if total != area_px or (self.runs_n < 0).any():
            raise _bad(where, f"runs for {total} pixels of {self.width}x{self.height}")

    @property
    def area(self) -> int:
        """Pixels that are on."""
        return int(self.runs_n[1::2].sum())

    def mask(self) -> Mask:
        """(H, W) bool."""
        on_n = np.arange(len(self.runs_n)) % 2 == 1
        return np.ascontiguousarray(np.repeat(on_n, self.runs_n).reshape(self.width, self.height).T)


def _from_text(text: str, where: str) -> NDArray[np.int64]:
    """Compressed counts: 5 bits a character, least first; the fourth run and on are differences to two before."""
    codes = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    last = (codes & 0x20) == 0
    if not len(codes) or not last[-1] or codes.min() < 0 or codes.max() > 63:
        raise _bad(where, f"counts {text[-40:]!r} (broken off, or not of COCO's characters)")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(np.concatenate([starts, [len(codes)]]))
    if lengths.max() > 10:
        raise _bad(where, "a run of more than 50 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 0x1F) << shifts, starts)
    values -= np.where(codes[last] & 0x10, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _bad(where: str, got: str) -> DatasetError:
    expected = 'a mask {"size": [height, width], "counts": text or run lengths} that fills its picture'
    return DatasetError(expected, f"{got} in {where}", "fetch the file again")
