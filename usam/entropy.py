"""Entropy of probability maps, weighted by the map itself, and how the paper's baselines mix maps; batched."""

from __future__ import annotations

import torch
from torch import Tensor

from usam.errors import ShapeError

_LOGIT_LIMIT = 32.0
_EPS = 1e-6


def mask_weighted_entropy(prob_nhw: Tensor) -> Tensor:
    """Binary entropy of probability maps, weighted by the maps: `sum(p h(p)) / sum(p)`.

    Args:    prob_nhw: (..., H, W) float in [0, 1]; SAM2's low-resolution grid (image_size / 4).
    Returns: (...) float32, bits in [0, 1].
    Raises:  ShapeError if there are fewer than two dimensions.
    Source:  Kaiser et al., ICML 2025, the H in H_Std, H_A, H_XP, H_T, H_Theta.
    """
    if prob_nhw.ndim < 2:
        raise ShapeError("maps of shape (..., H, W)", str(tuple(prob_nhw.shape)), "keep the two image dimensions")
    p_nm = prob_nhw.float().clamp(_EPS, 1 - _EPS).flatten(-2)
    entropy_nm = -p_nm * p_nm.log2() - (1 - p_nm) * (1 - p_nm).log2()
    return (p_nm * entropy_nm).sum(-1) / p_nm.sum(-1)


def logits_entropy(logits_nhw: Tensor) -> Tensor:
    """`mask_weighted_entropy` of mask logits, clamped to +-32 (H_Std of the chosen mask).

    Args:    logits_nhw: (..., H, W) float mask logits.
    Returns: (...) float32, bits in [0, 1].
    Raises:  ShapeError if there are fewer than two dimensions.
    """
    return mask_weighted_entropy(probabilities(logits_nhw))


def probabilities(logits_nhw: Tensor) -> Tensor:
    """Mask logits, clamped to +-32, as probabilities: (..., H, W) float32 in (0, 1]."""
    return logits_nhw.float().clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT).sigmoid()


def score_weights(scores_nj: Tensor) -> Tensor:
    """Weights of several masks by SAM2's scores, `s_j / sum s`: the mixture of H_A and H_Y.

    Args:    scores_nj: (..., J) float; below 0 (a model without a sigmoid) counts as 0.
    Returns: (..., J) float32, summing to 1; equal where every score is 0.
    """
    positive_nj = scores_nj.float().clamp_min(0)
    total_n1 = positive_nj.sum(-1, keepdim=True)
    return torch.where(total_n1 > 0, positive_nj / total_n1.clamp_min(1e-30), 1 / scores_nj.shape[-1])


def stability(logits_nhw: Tensor, delta: float = 1.0) -> Tensor:
    """How little a mask changes when its threshold does: area above `+delta` over area above `-delta`.

    Args:
        logits_nhw: (..., H, W) float mask logits.
        delta: half the range of thresholds, in logits; SAM's own mask generator uses 1.
    Returns: (...) float32 in [0, 1]; 1 where no pixel is above `-delta`.
    Raises:  ShapeError if there are fewer than two dimensions.
    Source:  Kirillov et al., Segment Anything, stability score.
    """
    if logits_nhw.ndim < 2:
        raise ShapeError("logits of shape (..., H, W)", str(tuple(logits_nhw.shape)), "keep the two image dimensions")
    flat_nm = logits_nhw.flatten(-2)
    inner_n = (flat_nm > delta).sum(-1).float()
    outer_n = (flat_nm > -delta).sum(-1).float()
    return torch.where(outer_n > 0, inner_n / outer_n.clamp_min(1), 1.0)
