"""Collects rows to train and judge heads on: tokens, SAM2's score and true IoU per video, frame and object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from usam.errors import HeadError, ShapeError
from usam.targets import mask_iou


class MaskLike(Protocol):
    """One object on one frame; `pipeline.propagate.FrameResult` is one."""

    @property
    def frame_index(self) -> int: ...
    @property
    def object_id(self) -> int: ...
    @property
    def visibility(self) -> str: ...
    @property
    def prompted(self) -> str | None: ...
    @property
    def logits_hw(self) -> Tensor | None: ...
    @property
    def object_score(self) -> float | None: ...
    @property
    def sam_score(self) -> float | None: ...
    @property
    def tokens_2d(self) -> Tensor | None: ...


class TruthClip(NamedTuple):
    """A video with truth.

    Attributes:
        video_id: any name that tells videos apart; rows are split by it.
        masks:    what propagation gives, frame by frame.
        truth:    (frame_index, object_id) -> (H, W) bool; None where that frame has no annotation.
    """

    video_id: str
    masks: Iterable[Sequence[MaskLike]]
    truth: Callable[[int, int], NDArray[np.bool_] | None]


@dataclass(frozen=True)
class Rows:
    """Scored masks with their truth, n rows.

    Attributes:
        tokens_n2d:   (n, 2d) float32. sam_score_n, object_score_n, iou_n: (n,) float32.
        video_id_n:   (n,) str. frame_index_n, object_id_n: (n,) int64.
        prompted_n:   (n,) bool, the frame carried a click or box.
        predicted_n:  (n,) bool, the model says that the object is there and its mask is not empty.
        visible_n:    (n,) bool, the truth is not empty.
    """

    tokens_n2d: NDArray[np.float32]
    sam_score_n: NDArray[np.float32]
    object_score_n: NDArray[np.float32]
    iou_n: NDArray[np.float32]
    video_id_n: NDArray[np.str_]
    frame_index_n: NDArray[np.int64]
    object_id_n: NDArray[np.int64]
    prompted_n: NDArray[np.bool_]
    predicted_n: NDArray[np.bool_]
    visible_n: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.iou_n)

    def where(self, keep_n: NDArray[np.bool_]) -> Rows:
        """The rows that a boolean array picks."""
        return Rows(*(getattr(self, f.name)[keep_n] for f in fields(self)))

    @staticmethod
    def concat(parts: Sequence[Rows]) -> Rows:
        """Several harvests as one."""
        if not parts:
            raise HeadError("at least one harvest", "none", "harvest some clips first")
        return Rows(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Rows)))

    def save(self, path: Path) -> None:
        """Write an .npz; a crash leaves the old file."""
        part = path.with_name(path.name + ".part.npz")
        np.savez(part, **{f.name: getattr(self, f.name) for f in fields(self)})
        part.replace(path)

    @staticmethod
    def load(path: Path) -> Rows:
        """Read what `save` wrote.

        Raises: HeadError for a file that is no harvest.
        """
        try:
            with np.load(path) as data:
                return Rows(*(data[f.name] for f in fields(Rows)))
        except (OSError, KeyError, ValueError) as error:
            raise HeadError(f"a harvest in {path}", type(error).__name__, "harvest again") from error


def harvest(clips: Iterable[TruthClip]) -> Rows:
    """Run clips and collect a row for every scored mask that has truth.

    The predicted mask is the upsampled low-resolution mask, at the truth's size, as the pipeline writes it. Given masks
    and untracked frames give no row.

    Args:    clips: consumed one by one; nothing of a clip but its rows is kept.
    Returns: the rows.
    Raises:  HeadError if there is no row; ShapeError for truth that is not (H, W).
    """
    columns: list[list[Any]] = [[] for _ in fields(Rows)]
    for clip in clips:
        for results in clip.masks:
            for result in results:
                if result.tokens_2d is None or result.logits_hw is None or result.sam_score is None:
                    continue
                truth_hw = clip.truth(result.frame_index, result.object_id)
                if truth_hw is None:
                    continue
                predicted_hw = upsampled_mask(result.logits_hw, truth_hw)
                row = (
                    result.tokens_2d.float().cpu().numpy(),
                    result.sam_score,
                    result.object_score,
                    mask_iou(predicted_hw, truth_hw),
                    clip.video_id,
                    result.frame_index,
                    result.object_id,
                    result.prompted is not None,
                    result.visibility == "visible" and bool(predicted_hw.any()),
                    bool(truth_hw.any()),
                )
                for column, value in zip(columns, row, strict=True):
                    column.append(value)
    if not columns[0]:
        raise HeadError("at least one scored mask with truth", "none", "check the truth's frames and object ids")
    kinds = [np.float32] * 4 + [np.str_, np.int64, np.int64, np.bool_, np.bool_, np.bool_]
    return Rows(*(np.asarray(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def upsampled_mask(logits_hw: Tensor, truth_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask's logits, upsampled bilinearly to the truth's size, above 0."""
    if truth_hw.ndim != 2:
        raise ShapeError("truth (H, W)", str(truth_hw.shape), "give one mask per frame and object")
    with torch.inference_mode():
        full_11hw = functional.interpolate(
            logits_hw[None, None].float(), size=truth_hw.shape, mode="bilinear", align_corners=False
        )
        mask_hw: NDArray[np.bool_] = (full_11hw[0, 0] > 0).cpu().numpy()
    return mask_hw
