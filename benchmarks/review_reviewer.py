"""A simulated reviewer of drawn videos: knows the truth, answers as an exam says, and takes a modelled time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.nano.follow import innermost_pixel, tight_box
from pipeline.review.answers import GivenMask, Scope, Verdict
from pipeline.review.editor import Editor
from pipeline.review.items import Item
from pipeline.rle import encode_mask
from pipeline.settings import load_settings
from pipeline.video.probe import probe_video
from pipeline.video.stream import FrameStream
from usam.image import EncodedImage

BoolArray = NDArray[np.bool_]
LOOP_FRAMES = 24


def iou(one: BoolArray, other: BoolArray) -> float:
    """Of two masks; 1 for two empty ones."""
    union = int((one | other).sum())
    return 1.0 if union == 0 else float((one & other).sum() / union)


@dataclass(frozen=True)
class Said:
    """What he does with an item; `skip` gives it back.

    Args: seconds: by the model of the exam. shown_iou, given_iou: of the shown and of the given mask with the truth.
    """

    verdict: Verdict | Literal["skip"]
    scope: Scope
    seconds: float
    shown_iou: float
    mask: GivenMask | None = None
    candidate: int | None = None
    given_iou: float | None = None


class Videos:
    """The drop: pixels and truth of its videos, by the address of a video."""

    def __init__(self) -> None:
        self._truth: dict[str, NDArray[np.uint8]] = {}
        self._frames: dict[str, list[NDArray[np.uint8]]] = {}

    def truth(self, uri: str) -> NDArray[np.uint8]:
        """(T, H, W) uint8, object ids."""
        if uri not in self._truth:
            self._truth[uri] = np.load(Path(uri).with_suffix(".truth.npz"))["ids_thw"]
        return self._truth[uri]

    def frame(self, uri: str, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        if uri not in self._frames:
            settings = load_settings().decode
            with FrameStream(probe_video(Path(uri), settings), settings) as stream:
                self._frames[uri] = [frame.rgb_hw3.copy() for frame in stream]
        return self._frames[uri][index]


class Reviewer:
    """Args: exam: `benchmarks/review_worth.yaml`. arm: of it. videos: of the drop. editor: the page's own."""

    def __init__(self, exam: dict[str, Any], arm: dict[str, Any], videos: Videos, editor: Editor, seed: int) -> None:
        self.rules, self.arm = exam["reviewer"], arm
        self.cost: dict[str, float] = exam["seconds"]
        self.videos, self.editor = videos, editor
        self._wrong = np.random.default_rng([self.rules["seed"], seed])
        self._features: dict[tuple[str, int], EncodedImage] = {}

    def answer(self, item: Item, masks: dict[int, BoolArray]) -> Said:
        """What he says of an item.

        Args: masks: of the stretch, as shown, by frame.
        """
        truth = self.videos.truth(item.video_uri) == item.object_id
        loop = loop_frames(sorted(masks))
        seconds = self.cost["next_item"] + self.cost["decide"]
        if len(loop) > 1:
            seconds += len(loop) / self.cost["loop_fps"]
        said = self._right_answer(item, masks, truth, loop, seconds)
        if self.arm.get("wrong") and self._wrong.random() < self.rules["wrong_share"]:
            wrong: Verdict = "absent" if said.verdict == "accept" else "accept"
            return Said(wrong, "stretch", seconds + self.cost["key"], said.shown_iou)
        return said

    def _right_answer(
        self, item: Item, masks: dict[int, BoolArray], truth: BoolArray, loop: list[int], seconds: float
    ) -> Said:
        frame, cost = item.frame_index, self.cost
        shown_hw, true_hw = masks[frame], truth[frame]
        shown = iou(shown_hw, true_hw)
        if shown >= self.rules["right_iou"]:
            everywhere = all(iou(masks[index], truth[index]) >= self.rules["right_iou"] for index in loop)
            return self._simple("accept", everywhere, seconds, shown)
        if not true_hw.any():
            return self._simple("absent", not any(truth[index].any() for index in loop), seconds, shown)
        features = self._encoded(item.video_uri, frame)
        size = item.height, item.width
        if shown_hw.any():
            offered = [iou(one.mask_hw, true_hw) for one in self.editor.candidates(features, shown_hw, size)]
            best = int(np.argmax(offered))
            if offered[best] >= self.rules["right_iou"]:
                mask_hw = self.editor.candidates(features, shown_hw, size)[best].mask_hw
                took = seconds + 2 * cost["key"] + cost["decide"]
                return Said("pick", "frame", took, shown, given(mask_hw), best, offered[best])
        point_xy, label = largest_error(shown_hw, true_hw)
        current_hw = shown_hw if shown_hw.any() else None
        points, labels = np.array([point_xy], np.float32), np.array([label], np.int32)
        mask_hw = self.editor.mask(features, points, labels, None, current_hw, size).mask_hw
        seconds += cost["key"] + cost["home"] + cost["point"] + 2 * cost["button"] + cost["new_mask"] + cost["decide"]
        if not self._usable(mask_hw, true_hw, shown) and self.arm.get("box"):
            box_xyxy = np.array(tight_box(true_hw), np.float32)
            mask_hw = self.editor.mask(features, None, None, box_xyxy, None, size).mask_hw
            seconds += 2 * (cost["point"] + cost["button"]) + cost["new_mask"] + cost["decide"]
        seconds += cost["home"] + cost["key"]
        if not self._usable(mask_hw, true_hw, shown):
            return Said("skip", "frame", seconds, shown)
        return Said("fix", "frame", seconds, shown, given(mask_hw), None, iou(mask_hw, true_hw))

    def _usable(self, mask_hw: BoolArray, true_hw: BoolArray, shown: float) -> bool:
        found = iou(mask_hw, true_hw)
        return bool(mask_hw.any()) and found >= self.rules["usable_iou"] and found > shown

    def _simple(self, verdict: Verdict, everywhere: bool, seconds: float, shown: float) -> Said:
        scopes: dict[str, Scope] = {"stretch": "stretch", "frame": "frame"}
        scope = scopes.get(self.arm.get("scope", ""), "stretch" if everywhere else "frame")
        keys = 1 if scope == "stretch" else 2
        return Said(verdict, scope, seconds + keys * self.cost["key"], shown)

    def _encoded(self, uri: str, frame: int) -> EncodedImage:
        if (uri, frame) not in self._features:
            self._features[uri, frame] = self.editor.features(self.videos.frame(uri, frame))
        return self._features[uri, frame]


def loop_frames(frames: list[int]) -> list[int]:
    """At most `LOOP_FRAMES` of the frames of a stretch, evenly."""
    picked = np.linspace(0, len(frames) - 1, min(len(frames), LOOP_FRAMES)).round().astype(int)
    return [frames[number] for number in picked]


def given(mask_hw: BoolArray) -> GivenMask:
    """A mask as answers have it."""
    return GivenMask(height=mask_hw.shape[0], width=mask_hw.shape[1], counts=encode_mask(mask_hw).counts.decode())


def largest_error(shown_hw: BoolArray, true_hw: BoolArray) -> tuple[tuple[int, int], int]:
    """Where the largest connected error is: its innermost pixel (x, y), and 1 if the object is there, else 0."""
    missing, extra = _largest(true_hw & ~shown_hw), _largest(shown_hw & ~true_hw)
    if missing.sum() >= extra.sum():
        return innermost_pixel(missing), 1
    return innermost_pixel(extra), 0


def _largest(mask_hw: BoolArray) -> BoolArray:
    """The largest 8-connected part of a mask, by spreading from pixel to pixel."""
    left, best = mask_hw.copy(), np.zeros_like(mask_hw)
    while left.any():
        part = np.zeros_like(left)
        part.flat[int(left.argmax())] = True
        while True:
            wider = functional.max_pool2d(torch.from_numpy(part)[None, None].float(), 3, 1, 1)[0, 0].numpy() > 0
            wider &= left
            if (wider == part).all():
                break
            part = wider
        left &= ~part
        best = part if part.sum() > best.sum() else best
    return best
