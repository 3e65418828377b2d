"""Proposes objects on a frame that nobody prompted: a grid of clicks, a box around each mask, the sure ones kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from usam.entropy import stability

if TYPE_CHECKING:
    from pipeline.settings import AutoPromptSettings
    from pipeline.steps import Features

SAME_IOU = 0.6  # clicks whose masks agree more than this have marked one thing
MAX_BORDER_SHARE = 0.3  # what lies along more of the frame's border is background
_BATCH_MASK_PX = (
    2**25
)  # pixels of one batch's masks at model size, three candidates each: 128 MB of float32; on a GPU 4 x
_MAX_BATCH = 64


@dataclass(frozen=True, eq=False)
class Proposals:
    """Objects that a frame seems to hold, largest first.

    Args:
        boxes_n4: (n, 4) float32 xyxy in px of the model's input: the prompts; each makes its mask.
        masks_nhw: (n, h, w) bool on the low-resolution grid (image_size / 4).
        confidence_n: (n,) float32, mean of SAM2's IoU predictions for the click and for the box drawn around its mask.
        stability_n: (n,) float32, see `usam.entropy.stability`.
    """

    boxes_n4: Tensor
    masks_nhw: Tensor
    confidence_n: Tensor
    stability_n: Tensor

    def __len__(self) -> int:
        return len(self.boxes_n4)

    def pick(self, rows_k: Tensor) -> Proposals:
        """These rows, in this order."""
        return Proposals(
            self.boxes_n4[rows_k], self.masks_nhw[rows_k], self.confidence_n[rows_k], self.stability_n[rows_k]
        )


@torch.inference_mode()
def propose(model: Any, features: Features, rules: AutoPromptSettings, tracked_nhw: Tensor | None = None) -> Proposals:
    """Find objects on a frame.

    Every click of a grid is decoded without memory, as a person's first click would be. A box is drawn around each
    distinct mask and decoded in turn: the box's mask fits better than the click's, and a mask that both agree on is
    more often an object (benchmarks/auto_prompts.py). Kept is what is confident, stable, neither tiny nor background,
    and not known already; of two masks that overlap the more confident.

    Args:
        model: SAM2 in eval mode.
        features: of the frame.
        rules: thresholds and limits.
        tracked_nhw: (m, h, w) bool, masks of the tracks on this frame; clicks on them are left out.
    Returns: at most `rules.max_objects` proposals.
    Source: the grid and its filters: Kirillov et al., Segment Anything, section 5. Departures: one box refines each
            mask, one overlap rule replaces non-maximum suppression of boxes, and there are no crops.
    """
    decoder = _Decoder(model, features)
    known_nhw = decoder.none if tracked_nhw is None else tracked_nhw.to(decoder.device)
    clicks_n12 = _grid(rules.points_per_side, model.image_size, decoder.device)
    clicks_n12 = clicks_n12[~_covered(clicks_n12, known_nhw, model.image_size)]
    masks_nhw, score_n, _ = decoder(clicks_n12, torch.ones(1, dtype=torch.int32))
    # the mean of two scores that are at most 1 cannot reach the threshold from below this
    likely_k = torch.nonzero(_is_thing(masks_nhw, rules) & (score_n >= 2 * rules.min_score - 1))[:, 0]
    likely_k = likely_k[suppress(masks_nhw[likely_k], score_n[likely_k], SAME_IOU, of_union=True)]
    boxes_n22 = _boxes(masks_nhw[likely_k], model.image_size)
    refined_nhw, box_score_n, stability_n = decoder(boxes_n22, torch.tensor([2, 3], dtype=torch.int32))
    confidence_n = (score_n[likely_k] + box_score_n) / 2
    found = Proposals(boxes_n22.flatten(1), refined_nhw, confidence_n, stability_n)
    sure_n = (confidence_n >= rules.min_score) & (stability_n >= rules.min_stability)
    sure_n &= _is_thing(refined_nhw, rules) & ~_known(refined_nhw, known_nhw, rules.max_overlap)
    found = found.pick(torch.nonzero(sure_n)[:, 0])
    found = found.pick(suppress(found.masks_nhw, found.confidence_n, rules.max_overlap))
    largest_first = found.masks_nhw.flatten(1).sum(1).argsort(descending=True, stable=True)
    return found.pick(largest_first[: rules.max_objects])


def suppress(masks_nhw: Tensor, confidence_n: Tensor, max_overlap: float, *, of_union: bool = False) -> Tensor:
    """Rows of masks that overlap no more confident one, most confident first; independent of the rows' order.

    Args:
        masks_nhw: (n, H, W) bool.
        confidence_n: (n,) float; equals are ordered by area, then by their pixels.
        max_overlap: the overlap up to which both of a pair stay, in [0, 1].
        of_union: overlap is the share of the union (IoU); else of the smaller mask, so that a part within a whole
            overlaps fully.
    Returns: (k,) int64.
    """
    if not len(masks_nhw):
        return torch.zeros(0, dtype=torch.int64, device=masks_nhw.device)
    overlap_nn = overlaps(masks_nhw, masks_nhw, of_union=of_union).cpu()
    areas = masks_nhw.flatten(1).sum(1).tolist()
    pixels = masks_nhw.flatten(1).cpu().numpy()
    confidence = confidence_n.tolist()
    order = sorted(range(len(areas)), key=lambda i: (-confidence[i], -areas[i], pixels[i].tobytes()))
    free_n = torch.ones(len(order), dtype=torch.bool)
    kept = []
    for row in order:
        if free_n[row]:
            kept.append(row)
            free_n &= overlap_nn[row] <= max_overlap
    return torch.tensor(kept, dtype=torch.int64, device=masks_nhw.device)


def overlaps(a_nhw: Tensor, b_mhw: Tensor, *, of_union: bool = False) -> Tensor:
    """How much each mask of one stack overlaps each of another.

    Args:    a_nhw, b_mhw: bool.
             of_union: as a share of the union; else of the smaller of the two.
    Returns: (n, m) float32 in [0, 1]; 0 where a mask is empty.
    """
    a_np, b_mp = a_nhw.flatten(1).float(), b_mhw.flatten(1).float()
    with torch.autocast(a_np.device.type, enabled=False):  # counts of pixels need more digits than bfloat16 has
        shared_nm = a_np @ b_mp.T
    area_n1, area_1m = a_np.sum(1)[:, None], b_mp.sum(1)[None]
    whole_nm = area_n1 + area_1m - shared_nm if of_union else torch.minimum(area_n1, area_1m)
    return shared_nm / whole_nm.clamp_min(1)


class _Decoder:
    """The mask decoder on one frame's features without memory."""

    def __init__(self, model: Any, features: Features) -> None:
        self.model, self.device = model, features.vision[-1].device
        self._pixels_1chw = model._prepare_memory_conditioned_features(
            frame_idx=0,
            is_init_cond_frame=True,
            current_vision_feats=features.vision[-1:],
            current_vision_pos_embeds=features.position[-1:],
            feat_sizes=features.sizes[-1:],
            output_dict={},
            num_frames=1,
        )
        self._fine = [
            x.permute(1, 2, 0).view(1, x.shape[2], *size)
            for x, size in zip(features.vision[:-1], features.sizes[:-1], strict=True)
        ]
        room_px = _BATCH_MASK_PX if self.device.type == "cpu" else 4 * _BATCH_MASK_PX
        self._batch = max(1, min(_MAX_BATCH, room_px // (3 * model.image_size**2)))

    @property
    def none(self) -> Tensor:
        """No masks, of the right size."""
        side = self.model.image_size // 4
        return torch.zeros(0, side, side, dtype=torch.bool, device=self.device)

    def __call__(self, points_np2: Tensor, labels_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode prompts of the same kind; for several candidates SAM2's own choice, as a session would take it.

        Args:    points_np2: (n, p, 2) float32 in px of the model's input.
                 labels_p: (p,) int32 as SAM2's prompt encoder reads them.
        Returns: masks (n, h, w) bool (empty where the model says that nothing is there), scores (n,), stability (n,).
        """
        masks, scores, stable = [self.none], [torch.zeros(0, device=self.device)], [torch.zeros(0, device=self.device)]
        for start in range(0, len(points_np2), self._batch):
            points_bp2 = points_np2[start : start + self._batch]
            b = len(points_bp2)
            prompt = {"point_coords": points_bp2, "point_labels": labels_p.to(self.device).expand(b, -1)}
            out = self.model._forward_sam_heads(
                backbone_features=self._pixels_1chw.expand(b, -1, -1, -1),
                point_inputs=prompt,
                high_res_features=[x.expand(b, -1, -1, -1) for x in self._fine] or None,
                multimask_output=self.model._use_multimask(True, prompt),
            )
            logits_bhw = out[3][:, 0]
            masks.append(logits_bhw > 0)
            scores.append(out[2].float().amax(1))
            stable.append(stability(logits_bhw))
        return torch.cat(masks), torch.cat(scores), torch.cat(stable)


def _grid(per_side: int, size: int, device: torch.device) -> Tensor:
    """Centres of a grid's cells as pixel indices (SAM2 adds the half pixel), (n, 1, 2), row by row."""
    line = (torch.arange(per_side, device=device) + 0.5) * size / per_side - 0.5
    y_n, x_n = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x_n.flatten(), y_n.flatten()], dim=1)[:, None]


def _covered(points_n12: Tensor, masks_mhw: Tensor, size: int) -> Tensor:
    """Which points lie on a mask, (n,) bool."""
    union_hw = masks_mhw.any(0)
    cell_n2 = ((points_n12[:, 0] + 0.5) * union_hw.shape[0] / size).long().clamp(0, union_hw.shape[0] - 1)
    return union_hw[cell_n2[:, 1], cell_n2[:, 0]]


def _is_thing(masks_nhw: Tensor, rules: AutoPromptSettings) -> Tensor:
    """Which masks are neither tiny nor background, (n,) bool."""
    area_n = masks_nhw.flatten(1).float().mean(1)
    edge = [masks_nhw[:, 0], masks_nhw[:, -1], masks_nhw[:, :, 0], masks_nhw[:, :, -1]]
    border_n = torch.cat(edge, dim=1).float().mean(1)
    sized_n = (area_n > 0) & (area_n >= rules.min_area_share) & (area_n <= rules.max_area_share)
    return sized_n & (border_n <= MAX_BORDER_SHARE)


def _known(masks_nhw: Tensor, tracked_mhw: Tensor, max_overlap: float) -> Tensor:
    """Which masks are followed already: by one track, or piecewise by several, (n,) bool."""
    if not len(masks_nhw) or not len(tracked_mhw):
        return torch.zeros(len(masks_nhw), dtype=torch.bool, device=masks_nhw.device)
    by_one_n = overlaps(masks_nhw, tracked_mhw).amax(1) > max_overlap
    covered_n = (masks_nhw & tracked_mhw.any(0)).flatten(1).sum(1) / masks_nhw.flatten(1).sum(1).clamp_min(1)
    return by_one_n | (covered_n > max_overlap)


def _boxes(masks_nhw: Tensor, size: int) -> Tensor:
    """Corners around masks, (n, 2, 2) float32 (x, y) in px of the model's input, right and lower edge exclusive."""
    side = masks_nhw.shape[-1]
    steps = torch.arange(side, device=masks_nhw.device)
    corners = []
    for axis in (1, 2):  # the columns, then the rows, that hold a pixel
        line_nk = masks_nhw.any(axis)
        first_n = torch.where(line_nk, steps, side).amin(1)
        last_n = torch.where(line_nk, steps + 1, 0).amax(1)
        corners.append(torch.stack([first_n, last_n], dim=1))
    return torch.stack(corners, dim=2).float() * (size / side)
