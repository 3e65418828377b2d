"""One object's prompts and exactly as much memory of it as SAM2 can still attend to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import PromptError

if TYPE_CHECKING:
    from pipeline.prompts import FramePrompt


@dataclass(slots=True)
class Track:
    """One object's prompts and what the model remembers of it, in upstream's own layout.

    Attributes:
        first:        frame of the first prompt.
        conditioning: frame index -> memory of a prompted frame; kept for the whole video.
        propagated:   frame index -> memory of a propagated frame; pruned by `MemoryRule.forget`.
    """

    object_id: int
    prompts: dict[int, FramePrompt]
    first: int
    conditioning: dict[int, dict[str, Any]] = field(default_factory=dict)
    propagated: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, object_id: int, frames: Iterable[FramePrompt], num_frames: int) -> Track:
        """An object that nothing is remembered of yet.

        Raises: PromptError if there is no prompt, or one on a frame outside of 0..num_frames - 1.
        """
        prompts = {prompt.frame_index: prompt for prompt in sorted(frames, key=lambda p: p.frame_index)}
        if not prompts:
            raise PromptError(f"a prompt for object {object_id}", "none", "add a click, a box or a mask")
        for index in prompts:
            if not 0 <= index < num_frames:
                raise PromptError(
                    f"a prompt of object {object_id} on frames 0..{num_frames - 1}",
                    f"frame {index}",
                    "correct frame_index",
                )
        return cls(object_id, prompts, min(prompts))

    @property
    def memory(self) -> dict[str, dict[int, dict[str, Any]]]:
        """The `output_dict` of `SAM2Base.track_step`."""
        return {"cond_frame_outputs": self.conditioning, "non_cond_frame_outputs": self.propagated}

    def tensors(self) -> list[Tensor]:
        """Every tensor that the memory holds."""
        entries = [*self.conditioning.values(), *self.propagated.values()]
        found = [value for entry in entries for value in entry.values() if isinstance(value, Tensor)]
        return found + [tensor for entry in entries for tensor in entry["maskmem_pos_enc"]]


@dataclass(frozen=True, slots=True)
class MemoryRule:
    """How far SAM2 looks back (ahead, in reverse), and so what may be forgotten.

    Args:
        stride:   `memory_temporal_stride_for_eval`.
        memories: `num_maskmem`: the conditioning frames and memories - 1 other frames.
        pointers: object pointers used: min(num_frames, max_obj_ptrs_in_encoder); 1 if the model uses none.
        reverse_follows: whether a reverse pass comes after the forward pass.
    Source: `SAM2Base._prepare_memory_conditioned_features`.
    """

    stride: int
    memories: int
    pointers: int
    reverse_follows: bool

    @classmethod
    def of(cls, model: Any, num_frames: int, *, reverse_follows: bool) -> MemoryRule:
        """The rule of a model on a video of `num_frames` frames."""
        pointers = min(num_frames, model.max_obj_ptrs_in_encoder) if model.use_obj_ptrs_in_encoder else 1
        return cls(model.memory_temporal_stride_for_eval, model.num_maskmem, pointers, reverse_follows)

    def reach(self, index: int, *, reverse: bool) -> tuple[int, int]:
        """The farthest frames that a step on frame `index` can attend to: by spatial memory, by object pointer."""
        further = (self.memories - 3) * self.stride
        if reverse:
            spatial = -(-(index + 2) // self.stride) * self.stride + further if self.memories > 2 else index + 1
            return max(spatial, index + 1), index + self.pointers - 1
        spatial = (index - 2) // self.stride * self.stride - further if self.memories > 2 else index - 1
        return min(spatial, index - 1), index - self.pointers + 1

    def forget(self, track: Track, index: int, *, reverse: bool) -> None:
        """Drop what no step after frame `index` can attend to, and keep what the reverse pass will."""
        spatial, pointer = self.reach(index - 1 if reverse else index + 1, reverse=reverse)
        pin_spatial = pin_pointer = -1
        if not reverse and self.reverse_follows and track.first > 0:
            pin_spatial, pin_pointer = self.reach(track.first - 1, reverse=True)
        for past in list(track.propagated):
            beyond_spatial = past > spatial if reverse else past < spatial and past > pin_spatial
            beyond_pointer = past > pointer if reverse else past < pointer and past > pin_pointer
            if beyond_spatial and beyond_pointer:
                del track.propagated[past]
            elif beyond_spatial:
                track.propagated[past]["maskmem_features"] = None


def point_inputs(
    prompt: FramePrompt, video_hw: tuple[int, int], image_size: int, device: torch.device
) -> dict[str, Tensor]:
    """Clicks and a box as SAM2 takes them: the box's corners first, labelled 2 and 3, scaled to the model's size."""
    points_n2, labels_n = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int32)
    if prompt.points_n2 is not None and prompt.labels_n is not None:
        points_n2 = torch.as_tensor(prompt.points_n2, dtype=torch.float32)
        labels_n = torch.as_tensor(prompt.labels_n, dtype=torch.int32)
    if prompt.box_xyxy is not None:
        corners_22 = torch.as_tensor(prompt.box_xyxy, dtype=torch.float32).reshape(2, 2)
        points_n2 = torch.cat([corners_22, points_n2])
        labels_n = torch.cat([torch.tensor([2, 3], dtype=torch.int32), labels_n])
    height, width = video_hw
    points_n2 = points_n2 / torch.tensor([width, height]) * image_size
    return {"point_coords": points_n2[None].to(device), "point_labels": labels_n[None].to(device)}


def mask_inputs(prompt: FramePrompt, image_size: int, device: torch.device) -> Tensor:
    """A given mask at the model's size, (1, 1, image_size, image_size) float32 of 0 and 1.

    Raises: PromptError if nothing of it is left at that size.
    """
    mask_11hw = torch.as_tensor(prompt.mask_hw, dtype=torch.bool)[None, None].float().to(device)
    if mask_11hw.shape[-2:] != (image_size, image_size):
        mask_11hw = functional.interpolate(
            mask_11hw, size=(image_size, image_size), mode="bilinear", align_corners=False, antialias=True
        )
        mask_11hw = (mask_11hw >= 0.5).float()
    if not bool(mask_11hw.any()):
        raise PromptError(
            f"a mask that covers a pixel at the model's {image_size} x {image_size}",
            f"an empty one on frame {prompt.frame_index}",
            "prompt with a box or a click, or use a model with a larger image_size",
        )
    return mask_11hw
