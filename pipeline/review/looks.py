"""Looks: 64 bits of what an object looks like on its frame; near-duplicates are known by how few bits differ."""

from __future__ import annotations

import io
from collections import defaultdict

import numpy as np
import numpy.typing as npt
from PIL import Image

MARGIN = 0.1
_ROWS, _COLUMNS = 8, 8


def look(picture: bytes, box_xyxy: tuple[float, ...] | None, height: int, width: int) -> str:
    """The difference hash of an object's crop: which of 8 x 8 places are brighter than their left neighbours.

    Args:    picture: an encoded picture of the whole frame, of any size.
             box_xyxy: of the object, pixels of a frame of height x width; a tenth is added on each side.
    Returns: 16 hex digits; "" where there is nothing to see: no box, or no picture that can be read.
    Source:  Krawetz, Kind of Like That, 2013.
    """
    if box_xyxy is None:
        return ""
    try:
        with Image.open(io.BytesIO(picture)) as image:
            image.draft("L", (image.width // 2, image.height // 2))  # a JPEG is decoded at half its size
            scale_x, scale_y = image.width / width, image.height / height
            x0, y0, x1, y1 = box_xyxy
            dx, dy = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
            crop = (
                max(0.0, (x0 - dx) * scale_x), max(0.0, (y0 - dy) * scale_y),
                min(float(image.width), (x1 + dx) * scale_x), min(float(image.height), (y1 + dy) * scale_y),
            )  # fmt: skip
            small = image.convert("L").resize((_COLUMNS + 1, _ROWS), Image.Resampling.BOX, box=crop)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    grey_hw = np.asarray(small, np.int16)
    bits: npt.NDArray[np.uint8] = np.packbits(grey_hw[:, 1:] > grey_hw[:, :-1])
    return f"{int.from_bytes(bits.tobytes()):016x}"


class Leaders:
    """Puts looks of the same label into groups: each joins the first group whose leader differs in few enough bits.

    Args:
        bits: so many may differ, 0 to 64.
    """

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._looks: dict[str, npt.NDArray[np.uint64]] = defaultdict(lambda: np.zeros(64, np.uint64))
        self._names: dict[str, list[str]] = defaultdict(list)

    def join(self, label: str, look: str, name: str) -> str:
        """The name of the leader of a look's group: its own if it leads a new one."""
        names, value = self._names[label], np.uint64(int(look, 16))
        different = np.bitwise_count(self._looks[label][: len(names)] ^ value)
        near = np.flatnonzero(different <= self._bits)
        if len(near):
            return names[int(near[0])]
        self.lead(label, look, name)
        return name

    def lead(self, label: str, look: str, name: str) -> None:
        """Let a look lead a group of its own."""
        names = self._names[label]
        if len(names) == len(self._looks[label]):
            self._looks[label] = np.concatenate([self._looks[label], np.zeros_like(self._looks[label])])
        self._looks[label][len(names)] = np.uint64(int(look, 16))
        names.append(name)
