"""One frame's worth of SAM2: encode the image, decode a prompt, carry a group of objects on from their memories.

Every expensive part is a call of the model's own modules. What is ours is what goes between them: the memories of
several objects laid side by side, the best mask picked before it is enlarged, and what is the same for all objects of
a frame done once. With one object in a group all numbers are bit-identical to upstream's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ShapeError
from pipeline.prompt_inputs import mask_inputs, point_inputs
from pipeline.track import Memory, MemoryRule, Recall, Track
from usam.capture import DecoderCall, TokenCapture

log = logging.getLogger(__name__)

NO_OBJECT_LOGIT = -1024.0  # sam2.modeling.sam2_base.NO_OBJ_SCORE
GPU_GROUP = 64
CPU_GROUP, CPU_GROUP_BYTES = 16, 16 << 20
_MEAN_RGB = (0.485, 0.456, 0.406)
_STD_RGB = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """The image encoder's output for one frame, as `SAM2Base.track_step` takes it: (HW, 1, C) maps, finest first."""

    vision: list[Tensor]
    position: list[Tensor]
    sizes: list[tuple[int, int]]


class Step(NamedTuple):
    """A group of n decoded objects before their numbers have left the device.

    Attributes:
        logits_nhw:     (n, h, w) float32 mask logits.
        object_score_n: (n,) logit of presence.
        call:           what the decoder did; None for a given mask.
    """

    tracks: Sequence[Track]
    prompted: str | None
    logits_nhw: Tensor
    object_score_n: Tensor
    call: DecoderCall | None


def fastest_group(model: Any, device: torch.device) -> int:
    """Objects per batch that are fastest: on a CPU only as many as keep one layer's keys near the caches.

    Measured in docs/performance.md: small models gain twofold from groups of 8, at 512 px larger groups lose.

    Args:    model: SAM2.
             device: where it is.
    Returns: objects, 1..16 on a CPU, 64 elsewhere.
    """
    if device.type != "cpu":
        return GPU_GROUP
    key_bytes = int(4 * model.num_maskmem * model.sam_image_embedding_size**2 * model.hidden_dim)
    return min(max(CPU_GROUP_BYTES // key_bytes, 1), CPU_GROUP)


class Steps:
    """The steps of one session.

    Args:
        model: SAM2 in eval mode.
        video_hw: height and width of the video as presented, px: what prompts are measured in.
        rule: what a step recalls.
        capture: observes the decoder; entered by the caller around every call.
        exact: one object per batch, and upstream's order of operations where another one rounds differently.
        max_group: objects per batch at most; None takes `fastest_group`.
    """

    def __init__(
        self,
        model: Any,
        video_hw: tuple[int, int],
        rule: MemoryRule,
        capture: TokenCapture,
        *,
        exact: bool,
        max_group: int | None,
    ) -> None:
        self.model, self.rule, self.capture, self.exact = model, rule, capture, exact
        alone = exact or model.non_overlap_masks_for_mem_enc  # the latter lets objects of one batch compete
        self.device: torch.device = next(model.parameters()).device
        self.max_group = 1 if alone else max_group or fastest_group(model, self.device)
        self._video_hw = video_hw
        self._mean_311 = torch.tensor(_MEAN_RGB, device=self.device)[:, None, None]
        self._std_311 = torch.tensor(_STD_RGB, device=self.device)[:, None, None]
        self._shared_layer: tuple[Features, Tensor] | None = None
        self.place_p1c: Tensor | None = None  # (HW, 1, mem_dim): where a memory's tokens lie, the same for all
        self._places: dict[tuple[tuple[int, ...], ...], Tensor] = {}
        self._unprompted: dict[int, tuple[Tensor, Tensor]] = {}
        self._image_pe: Tensor | None = None

    # Image and prompts ------------------------------------------------------------------------------------------------

    def features(self, index: int, rgb_hw3: NDArray[np.uint8]) -> Features:
        """Run the image encoder.

        Args:   rgb_hw3: (image_size, image_size, 3) uint8 RGB.
        Raises: ShapeError for another shape or dtype.
        """
        size = self.model.image_size
        if rgb_hw3.shape != (size, size, 3) or rgb_hw3.dtype != np.uint8:
            raise ShapeError(
                f"frame {index} as uint8 ({size}, {size}, 3)",
                f"{rgb_hw3.dtype} {rgb_hw3.shape}",
                f"decode with resize={size}",
            )
        pixels = rgb_hw3 if rgb_hw3.flags.writeable else rgb_hw3.copy()
        image_3hw = torch.from_numpy(pixels).to(self.device).permute(2, 0, 1).contiguous().float()
        image_3hw = image_3hw.div_(255).sub_(self._mean_311).div_(self._std_311)
        backbone = self.model.forward_image(image_3hw.unsqueeze(0))
        _, vision, position, sizes = self.model._prepare_backbone_features(backbone)
        return Features(vision, position, sizes)

    def prompt(self, track: Track, index: int, feats: Features) -> Step:
        """Decode an object's prompt on a frame and remember it as a conditioning frame.

        Raises: PromptError for a mask that vanishes at model size.
        """
        prompt, model = track.prompts[index], self.model
        given = prompt.mask_hw is not None
        out = model.track_step(
            frame_idx=index,
            is_init_cond_frame=True,
            current_vision_feats=feats.vision,
            current_vision_pos_embeds=feats.position,
            feat_sizes=feats.sizes,
            point_inputs=None if given else point_inputs(prompt, self._video_hw, model.image_size, self.device),
            mask_inputs=mask_inputs(prompt, model.image_size, self.device) if given else None,
            output_dict={},
            num_frames=self.rule.num_frames,
            track_in_reverse=False,
            run_mem_encoder=False,
        )
        # "from points" is upstream's name for "a person gave this", masks included
        high_11hw = self._enlarge(out["pred_masks"])
        spatial_1chw = self.remember(feats, high_11hw, out["object_score_logits"], from_points=True)
        track.conditioning[index] = Memory(spatial_1chw, out["obj_ptr"])
        call = self.capture.take() if model.use_obj_ptrs_in_encoder or not given else None
        return Step(
            [track], prompt.kind, out["pred_masks"][:, 0], out["object_score_logits"][:, 0], None if given else call
        )

    def _enlarge(self, masks_nmhw: Tensor) -> Tensor:
        size = self.model.image_size
        return functional.interpolate(masks_nmhw, size=(size, size), mode="bilinear", align_corners=False)

    def remember(self, feats: Features, high_n1hw: Tensor, scores_n1: Tensor, *, from_points: bool) -> Tensor:
        """Encode masks into (n, mem_dim, H, W) memories; the image's own part is computed once for all of them."""
        memory_nchw, position = self.model._encode_new_memory(
            current_vision_feats=feats.vision,
            feat_sizes=feats.sizes,
            pred_masks_high_res=high_n1hw,
            object_score_logits=scores_n1,
            is_mask_from_pts=from_points,
        )
        if self.place_p1c is None:
            self.place_p1c = position[-1][:1].flatten(2).permute(2, 0, 1)
        return memory_nchw.to(torch.bfloat16)  # type: ignore[no-any-return]

    # Propagation ------------------------------------------------------------------------------------------------------

    def propagate(self, tracks: Sequence[Track], index: int, feats: Features, *, reverse: bool) -> Iterator[Step]:
        """Carry objects to a frame and remember what came out; objects with recalls of one size go together.

        Args:   tracks: objects that are followed on this frame.
        Yields: groups, every object once.
        """
        groups: dict[tuple[int, int], list[tuple[Track, Recall]]] = {}
        for track in tracks:
            recall = self.rule.recall(track, index, reverse=reverse)
            groups.setdefault(recall.size, []).append((track, recall))
        for group in groups.values():
            for start in range(0, len(group), self.max_group):
                chosen = group[start : start + self.max_group]
                yield self._propagate_group(
                    [t for t, _ in chosen], [r for _, r in chosen], index, feats, reverse=reverse
                )
        self._shared_layer = None

    def _propagate_group(
        self, tracks: list[Track], recalls: list[Recall], index: int, feats: Features, *, reverse: bool
    ) -> Step:
        pixels_nchw = self._condition(recalls, feats)
        logits_n1hw, high_n1hw, scores_n1, pointers_nc, call = self._decode(pixels_nchw, feats)
        spatial_nchw = self.remember(feats, high_n1hw, scores_n1, from_points=False)
        for row, track in enumerate(tracks):
            pin_spatial, pin_pointer = (-1, -1) if reverse else self.rule.pinned(track)
            memory, pointer = spatial_nchw[row : row + 1], pointers_nc[row : row + 1]
            if len(tracks) > 1:  # a slice holds its whole group's storage, so what stays long is copied
                memory = memory.clone() if index <= pin_spatial else memory
                pointer = pointer.clone() if index <= pin_pointer else pointer
            track.propagated[index] = Memory(memory, pointer)
            self.rule.forget(track, index, reverse=reverse)
        return Step(tracks, None, logits_n1hw[:, 0], scores_n1[:, 0], call)

    def _condition(self, recalls: list[Recall], feats: Features) -> Tensor:
        """The frame's features after attention to each object's memories, (n, C, H, W)."""
        height, width = feats.sizes[-1]
        if not self.rule.memories:  # a model without memory
            return feats.vision[-1].permute(1, 2, 0).reshape(1, -1, height, width).expand(len(recalls), -1, -1, -1)
        parts, places = [self._spatial(recalls)], [self._spatial_places(recalls)]
        tokens = 0
        if recalls[0].pointers:
            pointers_tnc, pointer_places_tnc = self._pointers(recalls)
            parts.append(pointers_tnc)
            places.append(pointer_places_tnc)
            tokens = len(pointers_tnc)
        attended_pnc = self._attend(feats, torch.cat(parts), torch.cat(places), tokens)
        return attended_pnc.permute(1, 2, 0).reshape(len(recalls), -1, height, width)

    def _spatial(self, recalls: list[Recall]) -> Tensor:
        """Spatial memories of all objects as (tokens, n, mem_dim), one copy."""
        count, n = recalls[0].size[0], len(recalls)
        flat = [recall.spatial[i][1] for i in range(count) for recall in recalls]
        _, channels, height, width = flat[0].shape
        together = torch.cat(flat).view(count, n, channels, height * width)
        return together.permute(0, 3, 1, 2).reshape(count * height * width, n, channels)

    def _spatial_places(self, recalls: list[Recall]) -> Tensor:
        """Where the spatial memories lie in the picture and in time, (tokens, n, mem_dim); the same for most frames."""
        key = tuple(tuple(position for position, _ in recall.spatial) for recall in recalls)
        if key not in self._places:
            if len(self._places) >= 32:
                self._places.clear()
            assert self.place_p1c is not None
            rows = [key[0]] if len(set(key)) == 1 else key
            columns = [
                torch.cat([self.place_p1c + self.model.maskmem_tpos_enc[self.rule.memories - p - 1] for p in row])
                for row in rows
            ]
            self._places[key] = torch.cat(columns, dim=1).expand(-1, len(recalls), -1)
        return self._places[key]

    def _pointers(self, recalls: list[Recall]) -> tuple[Tensor, Tensor]:
        """Object pointers and their places in time, both (tokens, n, mem_dim)."""
        from sam2.modeling.sam2_utils import get_1d_sine_pe

        model, count, n = self.model, recalls[0].size[1], len(recalls)
        pointers_qnc = torch.cat([recall.pointers[i][1] for i in range(count) for recall in recalls])
        pointers_qnc = pointers_qnc.view(count, n, -1)
        width, split = pointers_qnc.shape[-1], pointers_qnc.shape[-1] // model.mem_dim
        if model.add_tpos_enc_to_obj_ptrs:
            rows = [[distance for distance, _ in recall.pointers] for recall in recalls]
            rows = rows[:1] if all(row == rows[0] for row in rows) else rows
            distance_qn = torch.tensor(rows).T.contiguous().to(self.device, non_blocking=True)
            dim = width if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
            places = get_1d_sine_pe(distance_qn.flatten() / (self.rule.pointers - 1), dim=dim)
            places_qnc = model.obj_ptr_tpos_proj(places).view(count, len(rows), -1).expand(-1, n, -1)
        else:
            places_qnc = pointers_qnc.new_zeros(count, n, model.mem_dim)
        if split > 1:
            pointers_qnc = pointers_qnc.view(count, n, split, model.mem_dim).permute(0, 2, 1, 3).flatten(0, 1)
            places_qnc = places_qnc.repeat_interleave(split, dim=0)
        return pointers_qnc, places_qnc

    def _attend(self, feats: Features, memory_tnc: Tensor, places_tnc: Tensor, pointer_tokens: int) -> Tensor:
        """`MemoryAttention.forward`, its first self-attention once per frame: no object has a say in it yet."""
        attention, n = self.model.memory_attention, memory_tnc.shape[1]
        memory_ntc, places_ntc = memory_tnc.transpose(0, 1), places_tnc.transpose(0, 1)
        position_1pc = feats.position[-1].transpose(0, 1)
        if self._shared_layer is None or self._shared_layer[0] is not feats:
            current_pnc = feats.vision[-1]
            if attention.pos_enc_at_input:
                current_pnc = current_pnc + 0.1 * feats.position[-1]
            self._shared_layer = feats, attention.layers[0]._forward_sa(current_pnc.transpose(0, 1), position_1pc)
        out_npc = self._shared_layer[1].expand(n, -1, -1)
        for number, layer in enumerate(attention.layers):
            if number:
                out_npc = layer._forward_sa(out_npc, position_1pc)
            out_npc = layer._forward_ca(out_npc, memory_ntc, position_1pc, places_ntc, pointer_tokens)
            hidden_npc = layer.linear2(layer.activation(layer.linear1(layer.norm3(out_npc))))
            out_npc = out_npc + hidden_npc
        return attention.norm(out_npc).transpose(0, 1)  # type: ignore[no-any-return]

    def _decode(self, pixels_nchw: Tensor, feats: Features) -> tuple[Tensor, Tensor, Tensor, Tensor, DecoderCall]:
        """Masks (n, 1, h, w) and the same enlarged, presence (n, 1), object pointers (n, C), what the decoder did.

        Source: `SAM2Base._forward_sam_heads` without a prompt. Departure, unless exact: the best of three candidates is
                picked before it is enlarged, which is several times cheaper and may round differently.
        """
        model, n = self.model, len(pixels_nchw)
        if self._image_pe is None:
            self._image_pe = model.sam_prompt_encoder.get_dense_pe()
        if n not in self._unprompted:
            nothing = torch.zeros(n, 1, 2, device=self.device), -torch.ones(n, 1, dtype=torch.int32, device=self.device)
            self._unprompted[n] = model.sam_prompt_encoder(points=nothing, boxes=None, masks=None)
        sparse, dense = self._unprompted[n]
        multimask = model._use_multimask(False, None)
        fine = [
            x.permute(1, 2, 0).view(1, x.shape[2], *size)
            for x, size in zip(feats.vision[:-1], feats.sizes[:-1], strict=True)
        ]
        masks_nmhw, ious_nm, tokens_nmc, scores_n1 = model.sam_mask_decoder(
            image_embeddings=pixels_nchw,
            image_pe=self._image_pe,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=fine or None,
        )
        rows_n = torch.arange(n, device=self.device)
        best_n = ious_nm.argmax(dim=-1) if multimask else torch.zeros_like(rows_n)
        present_n1 = scores_n1 > 0
        if not self.exact:
            masks_nmhw = masks_nmhw[rows_n, best_n].unsqueeze(1)
        if model.pred_obj_scores:
            masks_nmhw = torch.where(present_n1[:, None, None], masks_nmhw, NO_OBJECT_LOGIT)
        masks_nmhw = masks_nmhw.float()
        high_nmhw = self._enlarge(masks_nmhw)
        if self.exact:
            masks_nmhw, high_nmhw = (x[rows_n, best_n].unsqueeze(1) for x in (masks_nmhw, high_nmhw))
        pointers_nc = model.obj_ptr_proj(tokens_nmc[rows_n, best_n] if tokens_nmc.shape[1] > 1 else tokens_nmc[:, 0])
        if model.pred_obj_scores:
            share_n1 = scores_n1.sigmoid() if model.soft_no_obj_ptr else present_n1.float()
            if model.fixed_no_obj_ptr:
                pointers_nc = share_n1 * pointers_nc
            pointers_nc = pointers_nc + (1 - share_n1) * model.no_obj_ptr
        return masks_nmhw, high_nmhw, scores_n1, pointers_nc, self.capture.take()
