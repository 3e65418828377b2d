"""Draws masks on frames, styled by decision (accept solid, review hatched with a red dashed edge, hold grey)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.errors import ShapeError
from pipeline.render.palette import HOLD, REVIEW, RGB, decision_colour, font, object_colour
from pipeline.rle import decode

_SMALLEST_SIDE_PX = 360
_LARGEST_SIDE_PX = 1280
_STRIP_OBJECTS = 12


@dataclass(frozen=True)
class MaskView:
    """One object on one frame, as a picture needs it.

    Args:
        mask_hw: (H, W) bool at the video's size; all false when the object is absent or untracked.
        decision: accept | review | hold.
        visibility: visible | absent | untracked.
        uncertainty: 0..1, higher is worse; None where there is none.
        prompted: click | box | mask | auto, or None on a tracked frame.
    """

    object_id: int
    label: str | None
    mask_hw: NDArray[np.bool_] = field(repr=False)
    decision: str
    visibility: str
    uncertainty: float | None
    prompted: str | None = None
    reasons: tuple[str, ...] = ()

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> MaskView:
        """The view of one row of LABELS; a row without a mask gets an empty one."""
        size = row["height"], row["width"]
        return cls(
            object_id=row["object_id"],
            label=row["label"],
            mask_hw=decode(row["rle"], *size) if row["rle"] else np.zeros(size, bool),
            decision=row["decision"],
            visibility=row["visibility"],
            uncertainty=row["uncertainty"],
            prompted=row["prompted"],
            reasons=tuple(row.get("reasons") or ()),
        )

    @property
    def name(self) -> str:
        """Id and label in one short word for a tag."""
        return f"{self.object_id} {self.label}" if self.label else f"{self.object_id}"


def display_scale(height: int, width: int) -> float:
    """The factor that brings a frame to a size where tags can be read and files stay small.

    Args:    height, width: pixels, at least 1.
    Returns: over 1 for small frames (at most 4), under 1 for frames wider or higher than 1280 px.
    """
    if min(height, width) < _SMALLEST_SIDE_PX:
        wanted = min(4, math.ceil(_SMALLEST_SIDE_PX / min(height, width)))
        return max(1.0, min(float(wanted), _LARGEST_SIDE_PX / max(height, width)))
    return min(1.0, _LARGEST_SIDE_PX / max(height, width))


def draw_frame(
    rgb_hw3: NDArray[np.uint8],
    views: Sequence[MaskView],
    *,
    scale: float | None = None,
    tags: bool = True,
) -> NDArray[np.uint8]:
    """A frame with every mask on it; the accepted ones under the flagged ones.

    Args:
        rgb_hw3: (H, W, 3) uint8.
        views: the objects of this frame; each mask (H, W) bool.
        scale: size factor, `display_scale` where None.
        tags: whether to write id, label and uncertainty beside each mask.
    Returns: (H * scale, W * scale, 3) uint8.
    Raises:  ShapeError if a mask has another size than the frame.
    """
    height, width = rgb_hw3.shape[:2]
    scale = display_scale(height, width) if scale is None else scale
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(rgb_hw3)
    canvas = np.array(image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC))
    order = {"accept": 0, "hold": 1, "review": 2}
    anchors: list[tuple[MaskView, int, int]] = []
    for view in sorted(views, key=lambda view: order.get(view.decision, 1)):
        if view.mask_hw.shape != (height, width):
            raise ShapeError(
                f"a mask of {(height, width)}",
                f"{view.mask_hw.shape} for object {view.object_id}",
                "label the video again, its size has changed",
            )
        box = _blend(canvas, view, scale)
        if box is not None:
            anchors.append((view, box[0], box[1]))
    if not tags:
        return canvas
    picture = Image.fromarray(canvas)
    _draw_tags(picture, anchors)
    return np.asarray(picture)


def _blend(canvas_hw3: NDArray[np.uint8], view: MaskView, scale: float) -> tuple[int, int] | None:
    """Paint one mask into the canvas, working on its box only; gives back the box's top left corner."""
    rows, columns = np.flatnonzero(view.mask_hw.any(axis=1)), np.flatnonzero(view.mask_hw.any(axis=0))
    if rows.size == 0:
        return None
    canvas_height, canvas_width = canvas_hw3.shape[:2]
    stroke = max(2, round(max(canvas_height, canvas_width) / 420))
    pad = math.ceil((stroke + 2) / scale) + 1
    y0, y1 = max(0, rows[0] - pad), min(view.mask_hw.shape[0], rows[-1] + 1 + pad)
    x0, x1 = max(0, columns[0] - pad), min(view.mask_hw.shape[1], columns[-1] + 1 + pad)
    top, left = round(y0 * scale), round(x0 * scale)
    bottom, right = min(canvas_height, round(y1 * scale)), min(canvas_width, round(x1 * scale))
    crop = view.mask_hw[y0:y1, x0:x1]
    if scale != 1:
        soft = Image.fromarray(crop.astype(np.uint8) * 255).resize(
            (right - left, bottom - top), Image.Resampling.BILINEAR
        )
        crop = np.asarray(soft) > 127
    region = canvas_hw3[top:bottom, left:right]
    colour = HOLD if view.decision == "hold" else object_colour(view.object_id)
    yy, xx = np.mgrid[top:bottom, left:right]
    hatch = (xx + yy) % (stroke * 5) < stroke * 2
    if view.decision == "review":
        _mix(region, crop & hatch, colour, 0.55)
        _mix(region, crop & ~hatch, colour, 0.12)
    else:
        _mix(region, crop, colour, 0.42 if view.decision == "accept" else 0.30)
    inner = crop
    for _ in range(stroke):
        inner = _erode(inner)
    edge = crop & ~inner
    halo = _dilate(crop) & ~crop
    _mix(region, halo, (0, 0, 0), 0.5)
    if view.decision == "review":
        dash = (xx - yy) % (stroke * 7) < stroke * 5
        _mix(region, edge & dash, REVIEW, 1.0)
        _mix(region, edge & ~dash, (255, 255, 255), 0.75)
    else:
        _mix(region, edge, colour, 1.0)
    return left, top


def _mix(region_hw3: NDArray[np.uint8], where_hw: NDArray[np.bool_], colour: RGB, alpha: float) -> None:
    """Blend a colour into the chosen pixels, in place."""
    chosen = region_hw3[where_hw].astype(np.float32)
    region_hw3[where_hw] = (chosen * (1 - alpha) + np.asarray(colour, np.float32) * alpha + 0.5).astype(np.uint8)


def _erode(mask_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without its outermost ring (4 neighbours; the border of the array is no edge)."""
    out = mask_hw.copy()
    out[1:] &= mask_hw[:-1]
    out[:-1] &= mask_hw[1:]
    out[:, 1:] &= mask_hw[:, :-1]
    out[:, :-1] &= mask_hw[:, 1:]
    return out


def _dilate(mask_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with one more ring (4 neighbours)."""
    out = mask_hw.copy()
    out[1:] |= mask_hw[:-1]
    out[:-1] |= mask_hw[1:]
    out[:, 1:] |= mask_hw[:, :-1]
    out[:, :-1] |= mask_hw[:, 1:]
    return out


def _draw_tags(picture: Image.Image, anchors: Sequence[tuple[MaskView, int, int]]) -> None:
    """A small tag above each mask: id, label, uncertainty; its edge tells the decision."""
    draw = ImageDraw.Draw(picture)
    size = max(11, round(max(picture.size) / 62))
    face, pad = font(size, bold=True), max(2, size // 4)
    taken: list[tuple[int, int, int, int]] = []
    for view, left, top in sorted(anchors, key=lambda anchor: anchor[2]):
        text = view.name if view.uncertainty is None else f"{view.name}  {view.uncertainty:.2f}"
        wide, high = math.ceil(draw.textlength(text, font=face)) + 2 * pad, size + 2 * pad
        x = min(max(0, left), max(0, picture.width - wide))
        y = max(0, top - high - 1)
        while any(x < b[2] and x + wide > b[0] and y < b[3] and y + high > b[1] for b in taken):
            y += high + 1
        if y + high > picture.height:
            continue
        taken.append((x, y, x + wide, y + high))
        edge = object_colour(view.object_id) if view.decision == "accept" else decision_colour(view.decision)
        draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=(20, 20, 20), outline=edge, width=max(1, size // 9))
        draw.text((x + pad, y + pad - size // 8), text, fill=(255, 255, 255), font=face)


class Strip:
    """The band under the film: one lane per object, coloured by decision over time, with a playhead.

    Args:
        object_ids: the objects in order; at most twelve lanes are drawn.
        decisions_nt: (objects, frames) uint8 codes: 0 nothing, 1 accept, 2 review, 3 hold.
        note: one short line at the right, for example "threshold 0.50, uncertified".
    """

    CODES: ClassVar[dict[str, int]] = {"accept": 1, "review": 2, "hold": 3}

    def __init__(self, object_ids: Sequence[int], decisions_nt: NDArray[np.uint8], width_px: int, note: str) -> None:
        self._ids, self._note, self._width = list(object_ids)[:_STRIP_OBJECTS], note, width_px
        self._num_frames = max(1, decisions_nt.shape[1] if decisions_nt.size else 1)
        self._text = max(11, round(width_px / 68))
        self._lane = max(6, round(width_px / 110))
        self._left = self._text * 2
        self.height_px = self._text + 12 + len(self._ids) * (self._lane + 3) + 4
        self._base = self._background(decisions_nt)

    def _background(self, decisions_nt: NDArray[np.uint8]) -> Image.Image:
        base = np.full((self.height_px, self._width, 3), 24, np.uint8)
        colours = np.array([(44, 44, 44), *(decision_colour(name) for name in ("accept", "review", "hold"))], np.uint8)
        columns = np.arange(self._width - self._left - 6) * self._num_frames // max(1, self._width - self._left - 6)
        picture = base
        for lane in range(len(self._ids)):
            y = self._lane_top(lane)
            picture[y : y + self._lane, self._left : self._left + columns.size] = colours[decisions_nt[lane, columns]]
        image = Image.fromarray(picture)
        draw = ImageDraw.Draw(image)
        for lane, object_id in enumerate(self._ids):
            face = font(self._lane + 3, bold=True)
            draw.text((6, self._lane_top(lane) - 2), str(object_id), fill=object_colour(object_id), font=face)
        face = font(self._text)
        draw.text(
            (self._width - 6 - draw.textlength(self._note, font=face), 4), self._note, fill=(200, 200, 200), font=face
        )
        return image

    def _lane_top(self, lane: int) -> int:
        return self._text + 12 + lane * (self._lane + 3)

    def draw(self, frame_hw3: NDArray[np.uint8], position: int, caption: str) -> NDArray[np.uint8]:
        """The frame with the band under it.

        Args:    position: which column of `decisions_nt` the film is at; caption: text at the left.
        Returns: (H + height_px, W, 3) uint8.
        """
        band = self._base.copy()
        draw = ImageDraw.Draw(band)
        draw.text((6, 4), caption, fill=(255, 255, 255), font=font(self._text))
        x = self._left + round((position + 0.5) * (self._width - self._left - 6) / self._num_frames)
        draw.line((x, self._text + 9, x, self.height_px - 3), fill=(255, 255, 255), width=2)
        return np.concatenate([frame_hw3, np.asarray(band)], axis=0)
