"""One object's prompts and exactly as much memory of it as SAM2 can still attend to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from pipeline.errors import PromptError

if TYPE_CHECKING:
    from pipeline.prompts import FramePrompt, ObjectPrompts


@dataclass(slots=True)
class Memory:
    """What the model remembers of one object on one frame.

    Attributes:
        spatial_1chw: (1, mem_dim, H, W) bfloat16, as upstream stores it; None when only the pointer is in reach.
        pointer_1c:   (1, hidden_dim) object pointer.
    """

    spatial_1chw: Tensor | None
    pointer_1c: Tensor


class Recall(NamedTuple):
    """What one step attends to, in upstream's order.

    Attributes:
        spatial:  (temporal position, memory); position 0 is a conditioning frame, else 1 (farthest) .. num_maskmem - 1.
        pointers: (distance in frames, object pointer).
    """

    spatial: list[tuple[int, Tensor]]
    pointers: list[tuple[int, Tensor]]

    @property
    def size(self) -> tuple[int, int]:
        """Objects whose recalls are of one size can share a batch without padding."""
        return len(self.spatial), len(self.pointers)


@dataclass(slots=True)
class Track:
    """One object's prompts and what the model remembers of it.

    Attributes:
        first:        frame of the first prompt.
        earliest:     the reverse pass goes no further back.
        discovered:   the object was found on the way: nothing is said about frames on which it is not followed.
        active:       whether the forward pass follows it now; a prompted frame (re)activates.
        ended:        it never will again.
        conditioning: frame index -> memory of a prompted frame; kept for the whole video.
        propagated:   frame index -> memory of a propagated frame; pruned by `MemoryRule.forget`.
    """

    object_id: int
    prompts: dict[int, FramePrompt]
    first: int
    earliest: int = 0
    discovered: bool = False
    active: bool = False
    ended: bool = False
    conditioning: dict[int, Memory] = field(default_factory=dict)
    propagated: dict[int, Memory] = field(default_factory=dict)

    @classmethod
    def of(cls, obj: ObjectPrompts, num_frames: int, *, discovered: bool = False) -> Track:
        """An object that nothing is remembered of yet.

        Raises: PromptError if there is no prompt, or one on a frame outside of 0..num_frames - 1.
        """
        prompts = {prompt.frame_index: prompt for prompt in sorted(obj.frames, key=lambda p: p.frame_index)}
        if not prompts:
            raise PromptError(f"a prompt for object {obj.object_id}", "none", "add a click, a box or a mask")
        for index in prompts:
            if not 0 <= index < num_frames:
                raise PromptError(
                    f"a prompt of object {obj.object_id} on frames 0..{num_frames - 1}",
                    f"frame {index}",
                    "correct frame_index",
                )
        return cls(obj.object_id, prompts, min(prompts), obj.earliest, discovered)

    def tensors(self) -> list[Tensor]:
        """Every tensor that the memory holds."""
        entries = [*self.conditioning.values(), *self.propagated.values()]
        return [t for entry in entries for t in (entry.spatial_1chw, entry.pointer_1c) if t is not None]


@dataclass(frozen=True, slots=True)
class MemoryRule:
    """How far SAM2 looks back (ahead, in reverse): what a step recalls, and so what may be forgotten.

    Args:
        stride:   `memory_temporal_stride_for_eval`.
        memories: `num_maskmem`: the conditioning frames and memories - 1 other frames.
        pointers: object pointers used: min(num_frames, max_obj_ptrs_in_encoder); 1 if the model uses none.
        reverse_follows: whether a reverse pass comes after the forward pass.
        num_frames: of the video.
        uses_pointers, past_pointers_only, signed_distance, max_conditioning: `use_obj_ptrs_in_encoder`,
            `only_obj_ptrs_in_the_past_for_eval`, `use_signed_tpos_enc_to_obj_ptrs`, `max_cond_frames_in_attn`.
    Source: `SAM2Base._prepare_memory_conditioned_features`.
    """

    stride: int
    memories: int
    pointers: int
    reverse_follows: bool
    num_frames: int
    uses_pointers: bool
    past_pointers_only: bool
    signed_distance: bool
    max_conditioning: int

    @classmethod
    def of(cls, model: Any, num_frames: int, *, reverse_follows: bool) -> MemoryRule:
        """The rule of a model on a video of `num_frames` frames."""
        return cls(
            stride=model.memory_temporal_stride_for_eval,
            memories=model.num_maskmem,
            pointers=min(num_frames, model.max_obj_ptrs_in_encoder) if model.use_obj_ptrs_in_encoder else 1,
            reverse_follows=reverse_follows,
            num_frames=num_frames,
            uses_pointers=model.use_obj_ptrs_in_encoder,
            past_pointers_only=model.only_obj_ptrs_in_the_past_for_eval,
            signed_distance=model.use_signed_tpos_enc_to_obj_ptrs,
            max_conditioning=model.max_cond_frames_in_attn,
        )

    def reach(self, index: int, *, reverse: bool) -> tuple[int, int]:
        """The farthest frames that a step on frame `index` can attend to: by spatial memory, by object pointer."""
        further = (self.memories - 3) * self.stride
        if reverse:
            spatial = -(-(index + 2) // self.stride) * self.stride + further if self.memories > 2 else index + 1
            return max(spatial, index + 1), index + self.pointers - 1
        spatial = (index - 2) // self.stride * self.stride - further if self.memories > 2 else index - 1
        return min(spatial, index - 1), index - self.pointers + 1

    def pinned(self, track: Track) -> tuple[int, int]:
        """The last forward outputs that the reverse pass will attend to: as spatial memory, as pointer; -1 if none."""
        if not self.reverse_follows or track.first <= track.earliest:
            return -1, -1
        return self.reach(track.first - 1, reverse=True)

    def forget(self, track: Track, index: int, *, reverse: bool) -> None:
        """Drop what no step after frame `index` can attend to, and keep what the reverse pass will."""
        spatial, pointer = self.reach(index - 1 if reverse else index + 1, reverse=reverse)
        pin_spatial, pin_pointer = (-1, -1) if reverse else self.pinned(track)
        for past in list(track.propagated):
            beyond_spatial = past > spatial if reverse else past < spatial and past > pin_spatial
            beyond_pointer = past > pointer if reverse else past < pointer and past > pin_pointer
            if beyond_spatial and beyond_pointer:
                del track.propagated[past]
            elif beyond_spatial:
                track.propagated[past].spatial_1chw = None

    def recall(self, track: Track, index: int, *, reverse: bool) -> Recall:
        """What the step on frame `index` attends to."""
        from sam2.modeling.sam2_utils import select_closest_cond_frames

        selected, unselected = select_closest_cond_frames(index, track.conditioning, self.max_conditioning)
        found = [(0, memory) for memory in selected.values()]
        for position in range(1, self.memories):
            past = self._frame_of(index, self.memories - position, reverse)
            memory = track.propagated.get(past) or unselected.get(past)
            if memory is not None:
                found.append((position, memory))
        spatial = [(position, memory.spatial_1chw) for position, memory in found if memory.spatial_1chw is not None]
        return Recall(spatial, self._pointers(track, index, selected, unselected, reverse=reverse))

    def _frame_of(self, index: int, back: int, reverse: bool) -> int:
        """The frame that counts as `back` memories ago: the neighbour, then every stride-th one."""
        if back == 1:
            return index + 1 if reverse else index - 1
        if reverse:
            return -(-(index + 2) // self.stride) * self.stride + (back - 2) * self.stride
        return (index - 2) // self.stride * self.stride - (back - 2) * self.stride

    def _pointers(
        self, track: Track, index: int, selected: dict[int, Memory], unselected: dict[int, Memory], *, reverse: bool
    ) -> list[tuple[int, Tensor]]:
        if not self.uses_pointers:
            return []
        sign = -1 if reverse else 1
        found = [
            ((index - past) * sign if self.signed_distance else abs(index - past), memory.pointer_1c)
            for past, memory in selected.items()
            if not self.past_pointers_only or (index - past) * sign >= 0
        ]
        for distance in range(1, self.pointers):
            past = index - sign * distance
            if not 0 <= past < self.num_frames:
                break
            memory = track.propagated.get(past) or unselected.get(past)
            if memory is not None:
                found.append((distance, memory.pointer_1c))
        return found
