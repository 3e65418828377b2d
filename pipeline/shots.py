"""Finds hard scene cuts as frames come: compares thumbnails by structure, hue at each place, and palette."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ShapeError

METHOD = 1  # counted up when other cuts come out of the same threshold, so that videos are labelled anew
SIDE = 32  # cells of the thumbnail a side
REACH = 12  # cells that the picture may have moved between two frames and still be lined up
RECENT = 8  # frames whose unrest raises the bar
BLANK = 2.0  # spread of luma, grey levels, below which a frame shows nothing: black, white, a full flash
FADED = 0.5  # a frame with less than this share of the reference's spread is on its way out or in
WASHED = 215.0  # mean luma, grey levels, above which a frame that lost its spread may be a flash
FLASH = 2  # washed-out frames in a row that are taken for one
PATIENCE = 15  # faded frames in a row before the faint picture is taken as the scene's new look
BAR = 7.3  # how far above the recent unrest a cut stands out, in the unit of the evidence
CALM, LOW_BAR = -9.0, -2.5  # after frames that were all calmer than the one, the other is enough

# Logistic regression of "these two frames are from different shots" on three likenesses and on how far the picture had
# to be moved (what is alike by chance lies anywhere); fitted on synthetic clips
# and two real ones, with noise, compression, flashes, fades, pans and strides; the exam in `benchmarks/shots.py` has
# other clips.
_STRUCTURE, _PLACE, _PALETTE, _MOVED, _CONSTANT = -10.2, -6.3, 8.7, 3.3, 1.2
_GREY_STRUCTURE, _GREY_MOVED, _GREY_CONSTANT = -13.0, 5.4, 2.8  # where there is no colour to compare
COLOURFUL = 6.0  # strength of colour, grey levels, from which the first line holds alone

_LUMA_3 = np.array([0.299, 0.587, 0.114], np.float32)
_NOISE = 2.0  # variance, squared grey levels, that is no evidence
_BINS = 18

Floats = NDArray[np.floating[Any]]


class ShotDetector:
    """Says of each frame, from it and the ones before, whether a new shot begins on it.

    Two frames are compared by the correlation of their luma after lining them up (pans) and matching their tones
    (exposure, flashes, fades), by the agreement of hue at each place, and by their palettes. Colour is compared
    without its strength; where there is none, structure alone decides. A restless shot raises the bar, a calm one
    lowers it. A blank frame says nothing and the picture after it is compared with the one before it, so a flash is no
    cut, and a fade through black is one if another scene follows. Dissolves are not found.

    Args:
        threshold: how sure the comparison must be, in (0, 1); higher finds fewer cuts.
    Source: a threshold against recent differences is the idea of PySceneDetect's AdaptiveDetector (here causal).
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self._floor = math.log(threshold / (1 - threshold))
        self._reference: _Thumbnail | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._faded = self._washed = 0

    def is_cut(self, rgb_hw3: NDArray[np.uint8]) -> bool:
        """Look at the next frame.

        Args:    rgb_hw3: (H, W, 3) uint8 RGB of any size; the cost does not grow with it.
        Returns: True if a shot begins here; never for the first frame.
        Raises:  ShapeError for another shape or type.
        """
        if rgb_hw3.ndim != 3 or rgb_hw3.shape[2] != 3 or rgb_hw3.dtype != np.uint8:
            raise ShapeError("a frame as uint8 (H, W, 3)", f"{rgb_hw3.dtype} {rgb_hw3.shape}", "decode to RGB")
        now, before = _Thumbnail(_sums(rgb_hw3)), self._reference
        if now.spread < BLANK:
            return False
        if before is None:
            self._reference = now
            return False
        faint = now.spread < FADED * before.spread
        if faint and now.mean > WASHED > before.mean and self._washed < FLASH:
            self._washed += 1
            return False
        self._washed = 0
        evidence = _evidence(before, now)
        cut = evidence > self._floor + self._bar()
        if not cut:
            self._recent.append(evidence)
        self._faded = self._faded + 1 if faint and not cut else 0
        if not 0 < self._faded <= PATIENCE:
            self._reference, self._faded = now, 0
        return bool(cut)

    def _bar(self) -> float:
        """The evidence that is asked for: a jump out of a calm shot tells more than one in a restless shot."""
        if len(self._recent) > 2 and max(self._recent) < CALM:
            return LOW_BAR
        return max(0.0, float(np.median(self._recent)) + BAR) if self._recent else 0.0

    def state(self) -> dict[str, Any]:
        """What the next decision depends on, as numbers and lists (about 3,000 of them)."""
        reference = None if self._reference is None else self._reference.sums.ravel().tolist()
        return {
            "threshold": self.threshold,
            "reference": reference,
            "recent": list(self._recent),
            "faded": self._faded,
            "washed": self._washed,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ShotDetector:
        """The detector that `state` was taken of; it decides as that one would have."""
        detector = cls(state["threshold"])
        if state["reference"] is not None:
            detector._reference = _Thumbnail(np.asarray(state["reference"], np.uint16).reshape(SIDE, SIDE, 3))
        detector._recent.extend(state["recent"])
        detector._faded, detector._washed = state["faded"], state["washed"]
        return detector


class _Thumbnail:
    """What is compared of a frame.

    Args:    sums: (SIDE, SIDE, 3) integers, the sum of four pixels of each cell.
    """

    def __init__(self, sums: NDArray[np.uint16]) -> None:
        self.sums = sums
        rgb = sums.astype(np.float32) / 4
        self.luma = rgb @ _LUMA_3
        self.mean = float(self.luma.mean())
        self.spread = _strength(self.luma - self.mean)
        self.order = np.argsort(self.luma, axis=None, kind="stable")
        self.tones = self.luma.ravel()[self.order]
        self.flat = int(np.count_nonzero(self.tones[1:] - self.tones[:-1] < 0.01))
        self.chroma = rgb[..., ::2] - self.luma[..., None]
        self.colour = _strength(self.chroma)
        self.palette = _palette(self.chroma, self.mean)


def _strength(field: Floats) -> float:
    return math.sqrt(float(np.vdot(field, field)) / field.size)


def _sums(rgb_hw3: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Sums of 2 x 2 pixels a cell, from a regular grid of pixels."""
    height, width = rgb_hw3.shape[:2]
    steps = np.arange(2 * SIDE) * 2 + 1
    picked = rgb_hw3.take(steps * height // (4 * SIDE), 0).take(steps * width // (4 * SIDE), 1)
    half = np.add(picked[0::2], picked[1::2], dtype=np.uint16)
    summed: NDArray[np.uint16] = half[:, 0::2] + half[:, 1::2]
    return summed


def _palette(chroma: Floats, brightness: float) -> Floats:
    """Histogram of (red, blue) over the frame's brightness, each cell shared among the four nearest bins; sums to 1."""
    place = np.clip(chroma.reshape(-1, 2) * (8 / (brightness + 16)) + 8, 0, _BINS - 2.001)
    low = place.astype(np.intp)
    (row, column), (down, right) = low.T, (place - low).T
    both = down * right
    shares = np.concatenate([1 - down - right + both, right - both, down - both, both])
    index = row * _BINS + column
    bins = np.concatenate([index, index + 1, index + _BINS, index + _BINS + 1])
    counts: Floats = np.bincount(bins, shares, _BINS * _BINS).astype(np.float32) / index.size
    return counts


def _evidence(before: _Thumbnail, now: _Thumbnail) -> float:
    """Log-odds that two frames are from different shots."""
    old, new = _same_tones(before, now)
    palette = 0.5 * float(np.abs(before.palette - now.palette).sum())
    share = min(1.0, max(before.colour, now.colour) / COLOURFUL)

    def odds(structure: float, place: float, moved: float) -> float:
        coloured = _STRUCTURE * structure + _PLACE * place + _PALETTE * palette + _MOVED * moved + _CONSTANT
        grey = _GREY_STRUCTURE * structure + _GREY_MOVED * moved + _GREY_CONSTANT
        return share * coloured + (1 - share) * grey

    structure = _correlation(old, new)
    still = odds(structure, _agreement(before.chroma, now.chroma), 0.0)
    if still < -BAR:  # neither a cut nor unrest: no need to line up
        return still
    shift = _best_shift(old, new)
    lined_up = _correlation(*_overlap(old, new, shift))
    if lined_up <= structure:
        return still
    return odds(lined_up, _agreement(*_overlap(before.chroma, now.chroma, shift)), math.hypot(*shift) / REACH)


def _same_tones(a: _Thumbnail, b: _Thumbnail) -> tuple[Floats, Floats]:
    """Luma of both in the tones of the flatter one (a flash or darkness has taken tones from it), rank for rank."""
    richer, poorer = (b, a) if a.flat > b.flat else (a, b)
    toned = np.empty(richer.luma.shape, np.float32)
    toned.ravel()[richer.order] = poorer.tones
    return (a.luma, toned) if poorer is a else (toned, b.luma)


def _correlation(a: Floats, b: Floats) -> float:
    return _agreement(a - a.mean(), b - b.mean())


def _agreement(a: Floats, b: Floats) -> float:
    """Cosine of two fields, about 1 where both are too faint to tell."""
    a, b = a.ravel(), b.ravel()
    noise = _NOISE * a.size
    return (float(a @ b) + noise) / (math.sqrt(float(a @ a) * float(b @ b)) + noise)


def _best_shift(a: Floats, b: Floats) -> tuple[int, int]:
    """Rows and columns, within REACH, by which b's content is moved against a's: the peak of their correlation."""
    size = (SIDE + 16, SIDE + 16)  # room for REACH cells on both sides, in a size that transforms fast
    one, other = np.fft.rfft2(np.stack([a - a.mean(), b - b.mean()]), size)
    steps = np.arange(-REACH, REACH + 1)
    shared = SIDE - np.abs(steps)
    surface = np.fft.irfft2(np.conj(one) * other, size)[steps[:, None], steps] / (shared[:, None] * shared)
    row, column = divmod(int(surface.argmax()), steps.size)
    return int(steps[row]), int(steps[column])


def _overlap(a: Floats, b: Floats, shift: tuple[int, int]) -> tuple[Floats, Floats]:
    """The parts of both that show the same place, if b is a moved by `shift`."""
    (down, right) = shift
    rows_a, rows_b = slice(max(0, -down), SIDE - max(0, down)), slice(max(0, down), SIDE - max(0, -down))
    columns_a, columns_b = slice(max(0, -right), SIDE - max(0, right)), slice(max(0, right), SIDE - max(0, -right))
    return a[rows_a, columns_a], b[rows_b, columns_b]
