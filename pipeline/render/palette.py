"""Colours and type of every picture: one colour per object, one per decision."""

from __future__ import annotations

import colorsys
import importlib.util
from functools import cache
from pathlib import Path

from PIL import ImageFont

RGB = tuple[int, int, int]

ACCEPT: RGB = (38, 166, 91)
REVIEW: RGB = (222, 45, 38)
HOLD: RGB = (128, 128, 128)
DECISION_COLOURS: dict[str, RGB] = {"accept": ACCEPT, "review": REVIEW, "hold": HOLD}

# Okabe and Ito's colour-blind-safe set without vermilion (red means review) and black, then three more.
_OBJECTS: tuple[RGB, ...] = (
    (86, 180, 233),
    (240, 178, 30),
    (0, 178, 130),
    (214, 131, 184),
    (240, 228, 66),
    (62, 120, 210),
    (150, 205, 90),
    (150, 110, 220),
    (120, 220, 220),
    (190, 150, 110),
)


def object_colour(object_id: int) -> RGB:
    """The colour of one object, the same in every picture; never red or grey, which mean a decision.

    Args:    object_id: any integer; ids 1 to 10 get hand-picked colours, others a hue by the golden ratio.
    Returns: (red, green, blue), 0..255.
    """
    if 1 <= object_id <= len(_OBJECTS):
        return _OBJECTS[object_id - 1]
    hue = 0.08 + 0.84 * ((object_id * 0.6180339887) % 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, 0.92)
    return int(red * 255), int(green * 255), int(blue * 255)


def decision_colour(decision: str) -> RGB:
    """The colour of one decision: accept green, review red, hold (and anything else) grey."""
    return DECISION_COLOURS.get(decision, HOLD)


def unit(colour: RGB) -> tuple[float, float, float]:
    """The same colour in 0..1, as matplotlib wants it."""
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


@cache
def font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans as matplotlib ships it, so that the pictures look alike on every machine.

    Args:    size_px: height of the em in pixels, at least 6.
    Returns: a Pillow font; Pillow's own where matplotlib has none.
    """
    spec = importlib.util.find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "mpl-data" / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
        if path.is_file():
            return ImageFont.truetype(str(path), max(6, size_px))
    return ImageFont.load_default(max(6, size_px))
