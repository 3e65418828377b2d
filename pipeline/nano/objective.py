"""What one training batch costs the model: decoder steps over an image or a short video, memory between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from pipeline.nano.batches import Batch, sample_boxes, sample_clicks
from pipeline.nano.losses import DenseHeads, mask_losses


def decode(
    model: SAM2Base,
    features: Tensor,
    high_res: list[Tensor],
    points: tuple[Tensor, Tensor] | None,
    masks: Tensor | None,
) -> tuple[Tensor, ...]:
    """The mask decoder's raw outputs (before SAM2 overwrites absent objects, which would block their gradient).

    Returns: logits (N, 4, h, w), IoU predictions (N, 4), mask tokens (N, 4, d), presence logits (N, 1).
    """
    n = len(features)
    if points is None:
        points = (
            torch.zeros(n, 1, 2, device=features.device),
            -torch.ones(n, 1, dtype=torch.int32, device=features.device),
        )
    if masks is not None:
        masks = F.interpolate(masks, size=model.sam_prompt_encoder.mask_input_size, mode="bilinear", antialias=True)
    sparse, dense = model.sam_prompt_encoder(points=points, boxes=None, masks=masks)
    out: tuple[Tensor, ...] = model.sam_mask_decoder.predict_masks(
        image_embeddings=features,
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=high_res,
    )
    return out


def step_loss(logits: Tensor, ious: Tensor, presence: Tensor, truth_nhw: Tensor, single: bool) -> tuple[Tensor, Tensor]:
    """Loss of one decoder step and the index (0..3) of the mask that SAM2 would choose.

    Args:
        logits, ious, presence: as `decode` returns them.
        truth_nhw: (N, H, W) bool.
        single: the step is a box or several points, so the answer is mask 0; else the best of masks 1..3.
    """
    soft = F.avg_pool2d(truth_nhw[:, None].float(), 2)[:, 0]
    visible = truth_nhw.flatten(1).any(1)
    per_mask, true_iou = mask_losses(logits, soft)
    best = per_mask[:, 1:].min(1).values
    if single:
        masks = per_mask[:, 0] + 0.2 * best + 0.03 * per_mask[:, 1:].mean(1)
        chosen = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    else:
        masks = best + 0.3 * per_mask[:, 0] + 0.06 * per_mask[:, 1:].mean(1)
        chosen = 1 + ious[:, 1:].argmax(1)
    seen = visible.float()
    count = seen.sum().clamp_min(1)
    iou_loss = ((ious - true_iou).abs().mean(1) * seen).sum() / count
    there = F.binary_cross_entropy_with_logits(presence[:, 0], seen)
    return (masks * seen).sum() / count + iou_loss + there, chosen


def pointer(model: SAM2Base, tokens: Tensor, chosen: Tensor, present: Tensor) -> Tensor:
    """Object pointers as SAM2 makes them, absent objects replaced by its learned no-object pointer."""
    rows = torch.arange(len(tokens), device=tokens.device)
    ptr = model.obj_ptr_proj(tokens[rows, chosen]) * present
    out: Tensor = ptr + (1 - present) * model.no_obj_ptr
    return out


def make_prompts(truth: Tensor, single: bool) -> tuple[Tensor, Tensor]:
    """Clicks (one) or boxes for every target, as point coordinates and labels in SAM2's coding."""
    device = truth.device
    if single:
        corners = sample_boxes(truth, 0.06)
        return corners, torch.tensor([[2, 3]], dtype=torch.int32, device=device).expand(len(truth), 2)
    return sample_clicks(truth), torch.ones(len(truth), 1, dtype=torch.int32, device=device)


def batch_loss(model: SAM2Base, dense_heads: DenseHeads, batch: Batch, rng: np.random.Generator) -> Tensor:
    """Loss of one batch, image or video."""
    steps = batch.images_btchw.shape[1]
    encoded = model.image_encoder(batch.images_btchw.flatten(0, 1))
    fpn = encoded["backbone_fpn"]
    dense = dense_heads(fpn, batch.ids_bthw.flatten(0, 1))
    levels = [model.sam_mask_decoder.conv_s0(fpn[0]), model.sam_mask_decoder.conv_s1(fpn[1]), fpn[2]]
    n = len(batch.clip_n)
    sizes = [tuple(x.shape[-2:]) for x in levels]
    pos = [p[:1].flatten(2).permute(2, 0, 1).expand(-1, n, -1) for p in encoded["vision_pos_enc"]]
    memory: dict[str, dict[int, dict[str, Any]]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    kind = str(rng.choice(["mask", "box", "click"], p=[0.2, 0.35, 0.45] if steps > 1 else [0.0, 0.45, 0.55]))
    total = dense * 0.5
    weight = 0.0
    loss = total.new_zeros(())
    for i, time_index in enumerate(batch.times_t):
        rows = batch.clip_n * steps + i
        high_res = [levels[0][rows], levels[1][rows]]
        top = levels[2][rows]
        flat = top.flatten(2).permute(2, 0, 1)
        truth = batch.truth_nthw[:, i]
        if i == 0 and kind == "mask":
            given = truth[:, None].float()
            _, _, tokens, _ = decode(model, top, high_res, None, model.mask_downsample(given))
            present = given.new_ones(n, 1)
            ptr = pointer(model, tokens, tokens.new_zeros(n, dtype=torch.long), present)
            high = given * 20 - 10
        else:
            if i == 0:
                features = top + model.no_mem_embed.view(1, -1, 1, 1)
                points = make_prompts(truth, kind == "box")
            else:
                features = model._prepare_memory_conditioned_features(
                    frame_idx=time_index,
                    is_init_cond_frame=False,
                    current_vision_feats=[flat],
                    current_vision_pos_embeds=[pos[-1]],
                    feat_sizes=sizes[-1:],
                    output_dict=memory,
                    num_frames=max(time_index + 1, 16),
                )
                points = None
            logits, ious, tokens, presence = decode(model, features, high_res, points, None)
            single = i == 0 and kind == "box"
            part, chosen = step_loss(logits, ious, presence, truth, single)
            share = 1.0 if i == 0 else 1.3
            loss, weight = loss + share * part, weight + share
            if steps == 1 and i == 0 and rng.random() < 0.3:
                loss, weight = (
                    loss + 0.5 * correction_loss(model, features, high_res, logits, chosen, truth, points),
                    weight + 0.5,
                )
            pick = torch.arange(n, device=logits.device)
            if i == 0 and kind == "click":  # a click that took the part or the whole: go on with what the truth says
                with torch.no_grad():
                    _, true_iou = mask_losses(logits, F.avg_pool2d(truth[:, None].float(), 2)[:, 0])
                    chosen = 1 + true_iou[:, 1:].argmax(1)
            present = (presence > 0).float() if i else torch.ones_like(presence)
            ptr = pointer(model, tokens, chosen, present)
            low = torch.where(present[:, None, None] > 0, logits[pick, chosen][:, None], -1024.0)
            high = F.interpolate(low, size=truth.shape[-2:], mode="bilinear", align_corners=False)
        if i + 1 < steps:
            feats, feats_pos = model._encode_new_memory(
                current_vision_feats=[flat],
                feat_sizes=sizes[-1:],
                pred_masks_high_res=high,
                object_score_logits=present * 20 - 10,
                is_mask_from_pts=i == 0 and kind != "mask",
            )
            store = memory["cond_frame_outputs" if i == 0 else "non_cond_frame_outputs"]
            store[time_index] = {"maskmem_features": feats, "maskmem_pos_enc": feats_pos, "obj_ptr": ptr}
    result: Tensor = total + loss / max(weight, 1.0)
    return result


def correction_loss(
    model: SAM2Base,
    features: Tensor,
    high_res: list[Tensor],
    logits: Tensor,
    chosen: Tensor,
    truth: Tensor,
    points: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """A second round: one more click where the first answer was wrong, the first answer as mask prompt."""
    assert points is not None
    pick = torch.arange(len(logits), device=logits.device)
    low = logits[pick, chosen][:, None].detach()
    wrong = (F.interpolate(low, size=truth.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0) != truth
    wrong = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, truth)
    click = sample_clicks(wrong)
    label = truth[pick, click[:, 0, 1].long(), click[:, 0, 0].long()].to(torch.int32)[:, None]
    more = torch.cat([points[0], click], 1), torch.cat([points[1], label], 1)
    out = decode(model, features, high_res, more, low.clamp(-32, 32))
    return step_loss(out[0], out[1], out[3], truth, True)[0]
