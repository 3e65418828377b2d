"""How a stored picture is turned and mirrored to stand upright, from its display matrix."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import VideoError

ONE = 1 << 16
TURNS = {(1, 0): 0, (0, -1): 1, (-1, 0): 2, (0, 1): 3}


@dataclass(frozen=True)
class Orientation:
    """Turn counter-clockwise by `rotation` degrees (0, 90, 180, 270), then swap left and right if `mirrored`."""

    rotation: int = 0
    mirrored: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether nothing needs to be done."""
        return not (self.rotation or self.mirrored)

    @property
    def swaps_sides(self) -> bool:
        """Whether width and height change places."""
        return self.rotation in (90, 270)

    def apply(self, rgb_hw3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The upright view of a stored picture."""
        turned = np.rot90(rgb_hw3, self.rotation // 90) if self.rotation else rgb_hw3
        return turned[:, ::-1] if self.mirrored else turned


def orientation(path: Path, frame: Any) -> Orientation:
    """Orientation of a video by its first frame (PyAV's).

    The matrix (a b; c d) sends a stored pixel (x, y) to (a x + c y, b x + d y), y downwards (ISO 14496-12, 6.2.2).

    Raises: VideoError for anything but the eight turns and flips.
    """
    matrix = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return Orientation()
    a, b, _, c, d = struct.unpack("=9i", matrix)[:5]
    mirrored = a * d - b * c < 0
    if mirrored:
        a, c = -a, -c
    largest = max(abs(a), abs(b))
    unit = (round(a / largest), round(b / largest)) if largest else (0, 0)
    exact = unit in TURNS and (a, b, c, d) == (
        unit[0] * largest,
        unit[1] * largest,
        -unit[1] * largest,
        unit[0] * largest,
    )
    if not exact:
        parts = ", ".join(f"{value / ONE:.3g}" for value in (-a if mirrored else a, b, -c if mirrored else c, d))
        raise VideoError(
            "a picture turned by a multiple of 90 degrees, or mirrored", f"{path} with the matrix ({parts})",
            "encode it upright", path=path,
        )  # fmt: skip
    return Orientation(90 * TURNS[unit], mirrored)
