"""Losses and initialisation that let a small SAM2 learn from scratch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn


class DenseHeads(nn.Module):
    """Auxiliary 1x1 heads on every FPN level: foreground, border, offset to the centre. Used in training only.

    Without them the encoder learns nothing for hundreds of steps: the decoder's gradient is too weak a teacher.
    """

    def __init__(self, width: int, levels: int = 3) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in range(levels))

    def forward(self, fpn: list[Tensor], ids_bhw: Tensor) -> Tensor:
        """Mean loss over levels.

        Args:
            fpn: features (B, C, h, w) per level.
            ids_bhw: (B, H, W) int64 visible object ids, 0 = background.
        """
        total = fpn[0].new_zeros(())
        one_hot = F.one_hot(ids_bhw, 5).permute(0, 3, 1, 2).float()[:, 1:]
        for features, head in zip(fpn, self.heads, strict=True):
            h, w = features.shape[-2:]
            share_bohw = F.adaptive_avg_pool2d(one_hot, (h, w))
            front = share_bohw.sum(1)
            border = (1 - (share_bohw.square().sum(1) + (1 - front).square())).clamp(0, 1)
            ys = (torch.arange(h, device=features.device) + 0.5) / h
            xs = (torch.arange(w, device=features.device) + 0.5) / w
            mass = share_bohw.sum((2, 3)).clamp_min(1e-6)
            cy = (share_bohw * ys[None, None, :, None]).sum((2, 3)) / mass
            cx = (share_bohw * xs).sum((2, 3)) / mass
            owner = share_bohw.argmax(1, keepdim=True).flatten(1)
            dy = cy.gather(1, owner).view(-1, h, w) - ys[None, :, None]
            dx = cx.gather(1, owner).view(-1, h, w) - xs
            out = head(features)
            total = total + F.binary_cross_entropy_with_logits(out[:, 0], front)
            total = total + F.binary_cross_entropy_with_logits(out[:, 1], border)
            apart = (out[:, 2] - 4 * dy).abs() + (out[:, 3] - 4 * dx).abs()
            total = total + 0.5 * (apart * front).sum() / front.sum().clamp_min(1)
        return total / len(fpn)


def mask_losses(logits_nmhw: Tensor, truth_nhw: Tensor) -> tuple[Tensor, Tensor]:
    """Focal (x20, alpha .5, gamma 2) plus dice per mask, and the true IoU of each mask.

    Args:
        logits_nmhw: (N, M, h, w) low-resolution logits.
        truth_nhw: (N, 2h, 2w) soft truth in [0, 1].
    Returns: loss (N, M) and IoU (N, M), the latter without gradient.
    """
    up = F.interpolate(logits_nmhw, scale_factor=2.0, mode="bilinear", align_corners=False)
    truth = truth_nhw[:, None].expand_as(up)
    prob = up.sigmoid()
    ce = F.binary_cross_entropy_with_logits(up, truth, reduction="none")
    focal = (0.5 * ce * (prob - truth).abs().square()).mean((2, 3))
    dice = 1 - (2 * (prob * truth).sum((2, 3)) + 1) / (prob.sum((2, 3)) + truth.sum((2, 3)) + 1)
    with torch.no_grad():
        hard, real = up > 0, truth > 0.5
        iou = (hard & real).sum((2, 3)) / (hard | real).sum((2, 3)).clamp_min(1)
    return 20 * focal + dice, iou


@torch.no_grad()
def initialise(model: SAM2Base) -> None:
    """Starting values that matter at this size (position codes that exist, attention that finds the prompt at once)."""
    trunk = model.image_encoder.trunk
    nn.init.trunc_normal_(trunk.pos_embed, std=0.02)
    nn.init.trunc_normal_(trunk.pos_embed_window, std=0.02)
    prompt = model.sam_prompt_encoder
    for embedding in [*prompt.point_embeddings, prompt.not_a_point_embed]:
        embedding.weight.mul_(0.2)
    decoder = model.sam_mask_decoder
    attentions = [decoder.transformer.final_attn_token_to_image]
    for layer in decoder.transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:  # q = k: a token looks where its own position code points
        attention.q_proj.weight.mul_(2.5)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
    decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)
