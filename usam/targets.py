"""What each USAM head predicts: names, the shift of the gaps, and targets from IoU with the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from usam.errors import HeadError

IOU_HEADS = ("iou_tiny", "iou_small", "iou_base_plus", "iou_large", "iou_dense_prompt", "iou_unsupervised")
SIZED_HEADS = {"tiny": "iou_tiny", "small": "iou_small", "base_plus": "iou_base_plus", "large": "iou_large"}
GAP_HEADS = ("model_gap", "prompt_gap", "task_gap")
TRACKED_HEAD = "iou_tracked"
STACKED = "iou_stacked"  # no head: the stacker's score, see `usam.stacker`
HEADS = (*IOU_HEADS, *GAP_HEADS, TRACKED_HEAD)

GAP_SHIFT = 0.5
_GAP_TERMS = {
    "model_gap": ("iou_large", "iou_tiny"),
    "prompt_gap": ("iou_dense_prompt", "iou"),
    "task_gap": ("iou", "iou_unsupervised"),
}


def shift_of(name: str) -> float:
    """What was added to a head's target, and is taken off its output: 0.5 for a gap, 0 for an IoU.

    Raises: HeadError for a name that is no head.
    """
    if name not in HEADS:
        raise HeadError(f"a head out of {', '.join(HEADS)}", repr(name), "correct the name")
    return GAP_SHIFT if name in GAP_HEADS else 0.0


def target_of(name: str, ious: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
    """A head's regression target, shifted and clipped to [0, 1].

    Args:
        name: a head.
        ious: arrays (n,) in [0, 1] under the names of the IoU heads, and `iou` for the deployed model's best of three.
    Returns: (n,) float32 in [0, 1].
    Raises:  HeadError for an unknown head or a missing array.
    Source:  Kaiser et al., ICML 2025, the starred (directly regressed) gaps.
    """
    shift = shift_of(name)
    terms = _GAP_TERMS.get(name, (name,))
    missing = [term for term in terms if term not in ious]
    if missing:
        raise HeadError(f"IoU of {' and '.join(terms)} for {name}", f"no {missing[0]}", "measure it on the same rows")
    values_n = np.asarray(ious[terms[0]], np.float32)
    if len(terms) == 2:
        values_n = values_n - np.asarray(ious[terms[1]], np.float32)
    clipped_n: NDArray[np.float32] = np.clip(values_n + np.float32(shift), 0, 1).astype(np.float32)
    return clipped_n


def gaps_by_difference(scores: Mapping[str, Any], own: str | None = None) -> dict[str, Any]:
    """The paper's unstarred gaps: differences of two IoU heads, beside the ones that are regressed directly.

    Args:
        scores: predicted IoU by head name; numbers, arrays or tensors.
        own: the head that predicts the deployed model's best of three (`iou_tiny` for a tiny model); without it there
            is no prompt or task gap.
    Returns: `model_gap_difference`, `prompt_gap_difference`, `task_gap_difference`, those whose two heads are there.
    Source:  Kaiser et al., ICML 2025, Delta (without a star).
    """
    found = (
        {**scores, "iou": scores[own]}
        if own is not None and own in scores
        else {k: v for k, v in scores.items() if k != "iou"}
    )
    return {
        f"{name}_difference": found[better] - found[base]
        for name, (better, base) in _GAP_TERMS.items()
        if better in found and base in found
    }


def mask_iou(a_nhw: ArrayLike, b_nhw: ArrayLike) -> NDArray[np.float32]:
    """Intersection over union of boolean masks; 1 where both are empty.

    Args:    a_nhw, b_nhw: (..., H, W) bool.
    Returns: (...) float32 in [0, 1].
    """
    a, b = np.asarray(a_nhw, bool), np.asarray(b_nhw, bool)
    union_n = (a | b).sum((-2, -1))
    inter_n = (a & b).sum((-2, -1))
    return np.where(union_n > 0, inter_n / np.maximum(union_n, 1), 1.0).astype(np.float32)
