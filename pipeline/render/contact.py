"""Lays flagged masks out on one contact sheet: a crop of the frame with the mask, its uncertainty and the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.errors import StorageError
from pipeline.render.overlay import MaskView, draw_frame
from pipeline.render.palette import decision_colour, font, object_colour

_TILE, _GAP, _CAPTION = 280, 14, 96
_PAPER, _INK, _FAINT = (250, 250, 250), (30, 30, 30), (110, 110, 110)


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet.

    Args:
        picture_hw3: (H, W, 3) uint8, any size; fitted into its square.
        heading: one bold line, for example "1 cup".
        value: the number at the right of the heading, for example "uncertainty 0.61".
        lines: frame, then what is wrong; four wrapped lines are drawn.
        colour: the mark of the object.
    """

    picture_hw3: NDArray[np.uint8] = field(repr=False)
    heading: str
    value: str
    lines: tuple[str, ...]
    colour: tuple[int, int, int]
    edge: tuple[int, int, int]


def make_tile(
    rgb_hw3: NDArray[np.uint8],
    view: MaskView,
    frame_index: int,
    *,
    around_xyxy: Sequence[float] | None = None,
    true_iou: float | None = None,
    source: str = "",
) -> Tile:
    """A square crop around one mask with its overlay.

    Args:
        rgb_hw3: (H, W, 3) uint8, the whole frame.
        view: the flagged object.
        around_xyxy: where to look when the mask is empty, for example the last box seen, in pixels.
        true_iou: IoU with the truth where it is known.
        source: which video, where a sheet holds several.
    """
    x0, y0, x1, y1 = crop_box(view.mask_hw, around_xyxy)
    crop = np.ascontiguousarray(rgb_hw3[y0:y1, x0:x1])
    inside = MaskView(
        view.object_id, view.label, view.mask_hw[y0:y1, x0:x1], view.decision, view.visibility, view.uncertainty
    )
    picture = draw_frame(crop, [inside], scale=_TILE / max(crop.shape[:2]), tags=False)
    value = "" if view.uncertainty is None else f"uncertainty {view.uncertainty:.2f}"
    where = f"frame {frame_index}" + ("" if true_iou is None else f", true IoU {true_iou:.2f}")
    lines = (where, *(view.reasons or (("object absent",) if view.visibility == "absent" else ())))
    return Tile(
        picture,
        f"{source}{', ' if source else ''}{view.name}",
        value,
        lines,
        object_colour(view.object_id),
        decision_colour(view.decision),
    )


def crop_box(mask_hw: NDArray[np.bool_], around_xyxy: Sequence[float] | None = None) -> tuple[int, int, int, int]:
    """A square around the mask with half its size of room on each side, kept inside the frame.

    Args:    mask_hw: (H, W) bool; around_xyxy: box in pixels for an empty mask; neither: the whole frame.
    Returns: x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
    """
    height, width = mask_hw.shape
    rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
    if rows.size:
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    elif around_xyxy is not None:
        box = (float(around_xyxy[0]), float(around_xyxy[1]), float(around_xyxy[2]), float(around_xyxy[3]))
    else:
        return 0, 0, width, height
    side = max(48.0, 2.0 * max(box[2] - box[0], box[3] - box[1]), 0.35 * max(height, width))
    wide, high = min(float(width), side), min(float(height), side)
    x0 = min(max(0.0, (box[0] + box[2] - wide) / 2), width - wide)
    y0 = min(max(0.0, (box[1] + box[3] - high) / 2), height - high)
    return int(x0), int(y0), math.ceil(x0 + wide), math.ceil(y0 + high)


def draw_contact_sheet(
    tiles: Sequence[Tile],
    path: Path,
    *,
    title: str,
    note: str,
    columns: int = 4,
    nothing: str = "Nothing was flagged for review.",
) -> Path:
    """Write the sheet.

    Args:
        tiles: in the order in which to look at them; none gives a sheet that says so.
        path: target, PNG by its suffix.
        title, note: the headline and the smaller line under it.
        columns: tiles per row, at least 3.
        nothing: what the sheet says without tiles.
    Returns: path.
    Raises:  StorageError if the picture cannot be written.
    """
    columns = max(3, min(columns, len(tiles)))
    lines = max(1, math.ceil(len(tiles) / columns))
    head = 66
    width = _GAP + columns * (_TILE + _GAP)
    sheet = Image.new("RGB", (width, head + lines * (_TILE + _CAPTION + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 10), _fit(draw, title, 20, width - 2 * _GAP, bold=True), fill=_INK, font=font(20, bold=True))
    draw.text((_GAP, 38), _fit(draw, note, 13, width - 2 * _GAP), fill=_FAINT, font=font(13))
    if not tiles:
        draw.text((_GAP, head + 30), nothing, fill=_INK, font=font(16))
    for position, tile in enumerate(tiles):
        left = _GAP + (position % columns) * (_TILE + _GAP)
        top = head + (position // columns) * (_TILE + _CAPTION + _GAP)
        _draw_tile(sheet, draw, tile, left, top)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise StorageError(f"a writable place for {path}", str(error), "choose another --out") from error
    return path


def _draw_tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    picture = Image.fromarray(tile.picture_hw3)
    picture.thumbnail((_TILE, _TILE))
    draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), fill=(225, 225, 225))
    sheet.paste(picture, (left + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))
    draw.rectangle((left, top + _TILE, left + _TILE - 1, top + _TILE + 3), fill=tile.edge)
    y = top + _TILE + 9
    draw.rectangle((left, y + 3, left + 9, y + 12), fill=tile.colour)
    value_width = draw.textlength(tile.value, font=font(12))
    draw.text(
        (left + 15, y),
        _fit(draw, tile.heading, 13, _TILE - 20 - value_width, bold=True),
        fill=_INK,
        font=font(13, bold=True),
    )
    draw.text((left + _TILE - value_width, y + 1), tile.value, fill=tile.edge, font=font(12))
    for line, text in enumerate(_wrap(draw, tile.lines, 12, _TILE)[:4]):
        draw.text((left, y + 19 + line * 15), text, fill=_FAINT, font=font(12))


def _fit(draw: ImageDraw.ImageDraw, text: str, size: int, width: float, *, bold: bool = False) -> str:
    """The text, cut with an ellipsis where it is wider than its place."""
    face = font(size, bold=bold)
    if draw.textlength(text, font=face) <= width:
        return text
    while text and draw.textlength(text + "\u2026", font=face) > width:
        text = text[:-1]
    return text.rstrip() + "\u2026"


def _wrap(draw: ImageDraw.ImageDraw, lines: Sequence[str], size: int, width: float) -> list[str]:
    """Break lines at spaces so that each fits."""
    out: list[str] = []
    for line in lines:
        current = ""
        for word in line.split():
            longer = f"{current} {word}".strip()
            if current and draw.textlength(longer, font=font(size)) > width:
                out.append(current)
                current = word
            else:
                current = longer
        if current:
            out.append(_fit(draw, current, size, width))
    return out
