"""Follows the objects of a synthetic clip and compares every mask with the exact truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.nano.batches import fit_frames
from pipeline.nano.clips import Clip
from pipeline.prompts import FramePrompt, ObjectPrompts, PromptSet
from pipeline.propagate import FrameResult, Session

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FollowedRow:
    """One object on one frame, with the truth.

    Args:
        truth_px: pixels of the true mask.
        empty: the predicted mask is empty (absent by the model's own word, or no pixel above 0).
        iou: with the true mask, in [0, 1]; 1 where both are empty.
        best_of_3: the best IoU of the three candidates, on the prompted frame only.
        result: the propagation's own row (scores, tokens).
    """

    seed: int
    object_id: int
    frame_index: int
    truth_px: int
    empty: bool
    iou: float
    best_of_3: float | None
    result: FrameResult


def innermost_pixel(mask_hw: BoolArray) -> tuple[int, int]:
    """(x, y) of a pixel that survives the most 3x3 erosions; the first in reading order among equals.

    Args: mask_hw: (H, W) bool, not empty.
    """
    current = torch.from_numpy(np.ascontiguousarray(mask_hw))[None, None].float()
    while True:
        eroded = 1 - F.max_pool2d(F.pad(1 - current, (1, 1, 1, 1), value=1.0), 3, 1)
        if not bool(eroded.any()):
            break
        current = eroded
    index = int(current.flatten().argmax())
    return index % mask_hw.shape[1], index // mask_hw.shape[1]


def tight_box(mask_hw: BoolArray) -> tuple[float, float, float, float]:
    """The mask's bounding box, xyxy in pixels, right and lower edge exclusive."""
    ys, xs = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


def first_frame_prompts(clip: Clip, kind: Literal["click", "box"], min_area_px: int) -> PromptSet | None:
    """One prompt on frame 0 for every object with at least `min_area_px` there; None if there is no such object."""
    objects = []
    for object_id in clip.object_ids:
        truth = clip.mask(object_id)[0]
        if truth.sum() < min_area_px:
            continue
        points = labels = box = None
        if kind == "click":
            points = np.array([innermost_pixel(truth)], np.float32)
            labels = np.ones(1, np.int32)
        else:
            box = np.array(tight_box(truth), np.float32)
        objects.append(ObjectPrompts(object_id, None, (FramePrompt(0, points, labels, box, None),)))
    return PromptSet(tuple(objects), sha256="", source=f"clip {clip.seed}") if objects else None


@dataclass(frozen=True)
class _ArrayFrame:
    index: int
    rgb_hw3: NDArray[np.uint8]


def session_on_clip(
    model: Any, clip: Clip, prompts: PromptSet, *, keep_candidates: bool, keep_tokens: bool
) -> Iterator[list[FrameResult]]:
    """Propagate prompts through a clip that is in memory, frame by frame."""
    count, height, width = clip.ids_thw.shape
    frames = fit_frames(clip.frames_thw3, model.image_size)
    session = Session(
        model, prompts, (height, width), count, reverse=False, keep_candidates=keep_candidates, keep_tokens=keep_tokens
    )
    session.prepare(lambda index: frames[index])
    yield from session.forward(_ArrayFrame(i, frames[i]) for i in range(count))


def follow(model: Any, clip: Clip, prompts: PromptSet, *, keep_tokens: bool = False) -> list[FollowedRow]:
    """Propagate the prompts through the clip and judge every mask.

    Args:
        model: SAM2 in eval mode.
        prompts: on the clip's own pixels.
        keep_tokens: leave the decoder's tokens on the rows (for training heads).
    Returns: rows by frame, then object.
    """
    height, width = clip.ids_thw.shape[1:]
    rows = []
    for results in session_on_clip(model, clip, prompts, keep_candidates=True, keep_tokens=keep_tokens):
        for result in results:
            truth = torch.from_numpy(clip.ids_thw[result.frame_index] == result.object_id)
            assert result.logits_hw is not None  # every object starts on frame 0
            stack = result.logits_hw[None]
            if result.frame_index == 0 and result.candidates_3hw is not None:
                stack = torch.cat([stack, result.candidates_3hw])
            masks = (
                F.interpolate(stack[:, None].float(), size=(height, width), mode="bilinear", align_corners=False)[:, 0]
                > 0
            )
            union = (masks | truth).sum((1, 2))
            ious = torch.where(union > 0, (masks & truth).sum((1, 2)) / union.clamp_min(1), 1.0).tolist()
            rows.append(
                FollowedRow(
                    seed=clip.seed,
                    object_id=result.object_id,
                    frame_index=result.frame_index,
                    truth_px=int(truth.sum()),
                    empty=not bool(masks[0].any()),
                    iou=ious[0],
                    best_of_3=max(ious[1:]) if len(ious) > 1 else None,
                    result=result,
                )
            )
    return rows
