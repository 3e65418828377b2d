"""Propagates prompted objects through a video with SAM2's own steps, exactly as upstream, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.errors import PromptError, PropagationError, ShapeError
from pipeline.track import MemoryRule, Track, mask_inputs, point_inputs
from usam.capture import DecoderCall, TokenCapture

if TYPE_CHECKING:
    from pipeline.prompts import PromptSet

Direction = Literal["forward", "reverse", "none"]
Visibility = Literal["visible", "absent", "untracked"]
ReadFrame = Callable[[int], NDArray[np.uint8]]

_MEAN_RGB = (0.485, 0.456, 0.406)
_STD_RGB = (0.229, 0.224, 0.225)
_CACHED_FEATURES = 4


class FrameLike(Protocol):
    """A decoded frame: its index in the source and its pixels at model size."""

    @property
    def index(self) -> int: ...
    @property
    def rgb_hw3(self) -> NDArray[np.uint8]: ...


@dataclass(frozen=True, slots=True)
class FrameResult:
    """One object on one frame. Tensors stay on the model's device.

    Attributes:
        direction:    "forward" or "reverse" for a propagated mask; "none" for a prompted or untracked frame.
        prompted:     what the frame was prompted by: "click", "box", "mask", "auto"; None if it was not.
        visibility:   "absent" is the model's own statement (object score <= 0); "untracked" is before the first prompt.
        logits_hw:    (image_size / 4, same) float32 mask logits, -1024 everywhere if absent; None if untracked.
        object_score: logit of presence; None if untracked.
        sam_score:    SAM2's IoU prediction of this mask, in [0, 1]; None if the mask was given or untracked.
        candidates_3hw, candidate_scores_3: the three multimask outputs and SAM2's scores of them, if kept.
        chosen:       which mask this is: 0 the single-mask output, 1..3 the candidates; None if given or untracked.
        tokens_2d:    (2 * d,) float32, IoU token beside the chosen mask's token, if kept; None if given or untracked.
    """

    frame_index: int
    object_id: int
    direction: Direction
    prompted: str | None
    visibility: Visibility
    logits_hw: Tensor | None = None
    object_score: float | None = None
    sam_score: float | None = None
    candidates_3hw: Tensor | None = None
    candidate_scores_3: Tensor | None = None
    chosen: int | None = None
    tokens_2d: Tensor | None = None


class _Features(NamedTuple):
    vision: list[Tensor]
    position: list[Tensor]
    sizes: list[tuple[int, int]]


class _Step(NamedTuple):
    """One decoded object before its numbers have left the device."""

    track: Track
    prompted: str | None
    logits_hw: Tensor
    object_score_1: Tensor
    call: DecoderCall | None


class Session:
    """One video's propagation: `prepare`, then `forward`, then `backward`; each once.

    Every object is its own group of one and starts at its first prompt, so its masks are bit-identical in fp32 to an
    upstream `SAM2VideoPredictor` session holding just that object. Of past frames only what the model can still attend
    to is kept: conditioning frames, the spatial memories and pointers in reach, and, if a reverse pass will come, the
    forward outputs just after the first prompt, which that pass attends to.

    Args:
        model: SAM2 in eval mode, with `fill_hole_area` 0.
        prompts: the objects and their prompts, in pixels of the video.
        video_hw: height and width of the video as presented, px.
        num_frames: frames of the video; enters SAM2's maths as min(num_frames, max_obj_ptrs_in_encoder).
        reverse: whether `backward` will be called (keeps what it needs).
        keep_candidates: attach the three candidate masks to every result.
        keep_tokens: attach tokens to every result.
        precision: "float32", or "bfloat16" for autocast.
        mask_token_offset: which mask token goes with the chosen mask; see `usam.capture`.
    Raises: PropagationError, PromptError for a model, prompt or video that cannot be propagated.
    Source: `SAM2VideoPredictor.propagate_in_video` of sam2 1.1.0. Departure: an object is not tracked before its first
            prompt by the forward pass (upstream tracks it there from future memory).
    """

    def __init__(
        self,
        model: Any,
        prompts: PromptSet,
        video_hw: tuple[int, int],
        num_frames: int,
        *,
        reverse: bool = True,
        keep_candidates: bool = False,
        keep_tokens: bool = True,
        precision: str = "float32",
        mask_token_offset: int = 1,
    ) -> None:
        if model.training:
            raise PropagationError("a model in eval mode", "training mode", "call model.eval() first")
        for option in ("fill_hole_area", "clear_non_cond_mem_around_input"):
            if getattr(model, option, 0):  # the first needs a CUDA extension, the second fails in upstream itself
                raise PropagationError(
                    f"a model with {option} off",
                    str(getattr(model, option)),
                    "build it with pipeline.models.load_model",
                )
        if precision not in ("float32", "bfloat16"):
            raise PropagationError(
                "precision float32 or bfloat16", precision, "correct model.precision in the settings"
            )
        self.model, self.video_hw, self.num_frames, self.reverse = model, video_hw, num_frames, reverse
        self.keep_candidates, self.keep_tokens, self.precision = keep_candidates, keep_tokens, precision
        self._mask_token_offset = mask_token_offset
        self._device = next(model.parameters()).device
        self._mean_311 = torch.tensor(_MEAN_RGB, device=self._device)[:, None, None]
        self._std_311 = torch.tensor(_STD_RGB, device=self._device)[:, None, None]
        self._tracks = [Track.of(obj.object_id, obj.frames, num_frames) for obj in prompts.objects]
        if not self._tracks:
            raise PromptError("at least one object", "none", "add an object to the prompts")
        self._rule = MemoryRule.of(model, num_frames, reverse_follows=reverse)
        self._prompted: dict[tuple[int, int], FrameResult] = {}
        self._cache: dict[int, _Features] = {}
        self._memory_position: list[Tensor] | None = None
        self._stage = "new"

    @property
    def backward_frames(self) -> range:
        """The frames `backward` will ask for and yield, descending; empty if every object starts on frame 0."""
        last = max(track.first for track in self._tracks) if self.reverse else 0
        return range(last - 1, -1, -1)

    @property
    def conditioning_frames(self) -> list[int]:
        """The frames that carry a prompt of any object, ascending: what `prepare` reads."""
        return sorted({index for track in self._tracks for index in track.prompts})

    def state_bytes(self) -> int:
        """Bytes of tensor storage held for all objects, each storage counted once, image features not included."""
        tensors = [tensor for track in self._tracks for tensor in track.tensors()]
        for result in self._prompted.values():
            kept = (result.logits_hw, result.tokens_2d, result.candidates_3hw, result.candidate_scores_3)
            tensors += [t for t in kept if t is not None]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def prepare(self, read: ReadFrame) -> None:
        """Decode every prompt and encode it into memory; a later prompt informs all frames before it, as upstream.

        Args:   read: gives the frame of an index as (image_size, image_size, 3) uint8 RGB.
        Raises: PropagationError for a non-finite result; PromptError for a mask that vanishes at model size.
        """
        self._advance(("new",), "prepared")
        with TokenCapture(self.model) as capture:
            for index in self.conditioning_frames:
                with torch.inference_mode(), self._autocast():
                    feats = self._features(index, read(index))
                    prompted = [track for track in self._tracks if index in track.prompts]
                    steps = [self._prompt_step(track, index, feats, capture) for track in prompted]
                    for track, result in zip(prompted, self._results(steps, index, "none"), strict=True):
                        self._prompted[track.object_id, index] = result
                if any(t.first < index and index not in t.prompts for t in self._tracks):
                    self._cache[index] = feats
                    while len(self._cache) > _CACHED_FEATURES:
                        self._cache.pop(next(reversed(self._cache)))

    def forward(self, frames: Iterable[FrameLike]) -> Iterator[list[FrameResult]]:
        """Propagate through the whole video in time order.

        Args:   frames: every frame from 0 on, at model size.
        Yields: one list per frame with every object, in the prompts' order; "untracked" before its first prompt, also
                where the reverse pass will cover it.
        Raises: PropagationError for a gap in the frames or a non-finite result.
        """
        self._advance(("prepared",), "forward")
        expected = 0
        with TokenCapture(self.model) as capture:
            for frame in frames:
                index = frame.index
                if index != expected or index >= self.num_frames:
                    raise PropagationError(
                        f"frame {expected} of {self.num_frames}",
                        f"frame {index}",
                        "decode every frame, in order, and probe the video again",
                    )
                expected += 1
                yield self._frame(index, frame.rgb_hw3, self._tracks, capture, reverse=False)

    def backward(self, read: ReadFrame) -> Iterator[list[FrameResult]]:
        """Propagate from each object's first prompt back to frame 0.

        Args:   read: gives the frame of an index as in `prepare`; called for `backward_frames`, once each.
        Yields: one list per frame, frames descending, with the objects that start after it.
        Raises: PropagationError for a non-finite result, or if the session was made with reverse=False.
        """
        if not self.reverse:
            raise PropagationError("a session made with reverse=True", "reverse=False", "make a new session")
        self._advance(("prepared", "forward"), "backward")
        for track in self._tracks:
            self._rule.forget(track, track.first, reverse=True)
        with TokenCapture(self.model) as capture:
            for index in self.backward_frames:
                tracks = [track for track in self._tracks if track.first > index]
                yield self._frame(index, read(index), tracks, capture, reverse=True)

    # One frame -------------------------------------------------------------------------------------------------------

    def _frame(
        self, index: int, rgb_hw3: NDArray[np.uint8], tracks: list[Track], capture: TokenCapture, *, reverse: bool
    ) -> list[FrameResult]:
        done: dict[int, FrameResult] = {}
        steps: list[_Step] = []
        with torch.inference_mode(), self._autocast():
            feats: _Features | None = None
            for track in tracks:
                if index in track.prompts:
                    done[track.object_id] = self._prompted[track.object_id, index]
                elif index < track.first and not reverse:
                    done[track.object_id] = FrameResult(index, track.object_id, "none", None, "untracked")
                else:
                    if feats is None:
                        feats = self._cache.pop(index, None) or self._features(index, rgb_hw3)
                    steps.append(self._propagate_step(track, index, feats, capture, reverse=reverse))
            direction: Direction = "reverse" if reverse else "forward"
            for step, result in zip(steps, self._results(steps, index, direction), strict=True):
                done[step.track.object_id] = result
        return [done[track.object_id] for track in tracks]

    def _features(self, index: int, rgb_hw3: NDArray[np.uint8]) -> _Features:
        size = self.model.image_size
        if rgb_hw3.shape != (size, size, 3) or rgb_hw3.dtype != np.uint8:
            raise ShapeError(
                f"frame {index} as uint8 ({size}, {size}, 3)",
                f"{rgb_hw3.dtype} {rgb_hw3.shape}",
                f"decode with resize={size}",
            )
        pixels = rgb_hw3 if rgb_hw3.flags.writeable else rgb_hw3.copy()
        image_3hw = torch.from_numpy(pixels).to(self._device).permute(2, 0, 1).contiguous().float()
        image_3hw = image_3hw.div_(255).sub_(self._mean_311).div_(self._std_311)
        backbone = self.model.forward_image(image_3hw.unsqueeze(0))
        _, vision, position, sizes = self.model._prepare_backbone_features(backbone)
        return _Features(vision, position, sizes)

    def _prompt_step(self, track: Track, index: int, feats: _Features, capture: TokenCapture) -> _Step:
        prompt = track.prompts[index]
        given = prompt.mask_hw is not None
        out = self.model.track_step(
            frame_idx=index,
            is_init_cond_frame=True,
            current_vision_feats=feats.vision,
            current_vision_pos_embeds=feats.position,
            feat_sizes=feats.sizes,
            point_inputs=None if given else point_inputs(prompt, self.video_hw, self.model.image_size, self._device),
            mask_inputs=mask_inputs(prompt, self.model.image_size, self._device) if given else None,
            output_dict=track.memory,
            num_frames=self.num_frames,
            track_in_reverse=False,
            run_mem_encoder=False,
        )
        high_11hw = functional.interpolate(
            out["pred_masks"], size=(self.model.image_size,) * 2, mode="bilinear", align_corners=False
        )
        memory, position = self.model._encode_new_memory(
            current_vision_feats=feats.vision,
            feat_sizes=feats.sizes,
            pred_masks_high_res=high_11hw,
            object_score_logits=out["object_score_logits"],
            is_mask_from_pts=True,  # upstream's name for "a person gave this", masks included
        )
        track.conditioning[index] = self._entry(memory, position, out["obj_ptr"])
        call = capture.take() if self.model.use_obj_ptrs_in_encoder or not given else None
        return _Step(
            track, prompt.kind, out["pred_masks"][0, 0], out["object_score_logits"].view(1), None if given else call
        )

    def _propagate_step(
        self, track: Track, index: int, feats: _Features, capture: TokenCapture, *, reverse: bool
    ) -> _Step:
        out = self.model.track_step(
            frame_idx=index,
            is_init_cond_frame=False,
            current_vision_feats=feats.vision,
            current_vision_pos_embeds=feats.position,
            feat_sizes=feats.sizes,
            point_inputs=None,
            mask_inputs=None,
            output_dict=track.memory,
            num_frames=self.num_frames,
            track_in_reverse=reverse,
            run_mem_encoder=True,
        )
        track.propagated[index] = self._entry(out["maskmem_features"], out["maskmem_pos_enc"], out["obj_ptr"])
        self._rule.forget(track, index, reverse=reverse)
        return _Step(track, None, out["pred_masks"][0, 0], out["object_score_logits"].view(1), capture.take())

    def _results(self, steps: list[_Step], index: int, direction: Direction) -> list[FrameResult]:
        """Bring all objects' numbers to the host in one transfer, refuse what is not finite, and name the rest."""
        if not steps:
            return []
        row_parts: list[Tensor] = []
        for step in steps:
            health_1 = step.logits_hw.sum().view(1)
            if step.call is None:
                row_parts += [step.object_score_1.float(), step.object_score_1.float(), health_1, health_1]
            else:
                health_1 = health_1 + step.call.candidate_scores_n3.sum()
                row_parts += [
                    step.object_score_1.float(),
                    step.call.sam_score_n.float(),
                    step.call.chosen_n.float(),
                    health_1,
                ]
        numbers = torch.cat(row_parts).tolist()
        results = []
        for i, step in enumerate(steps):
            object_score, sam_score, chosen, health = numbers[4 * i : 4 * i + 4]
            if not (math.isfinite(object_score) and math.isfinite(sam_score) and math.isfinite(health)):
                raise PropagationError(
                    "finite mask logits and scores",
                    f"a non-finite value for object {step.track.object_id} on frame {index}",
                    "check the model's weights, or set model.precision to float32",
                )
            call = step.call
            keep = call is not None and self.keep_candidates
            results.append(
                FrameResult(
                    frame_index=index,
                    object_id=step.track.object_id,
                    direction=direction,
                    prompted=step.prompted,
                    visibility="visible" if object_score > 0 else "absent",
                    logits_hw=step.logits_hw,
                    object_score=object_score,
                    sam_score=None if call is None else sam_score,
                    candidates_3hw=call.candidates_n3hw[0].float() if call is not None and keep else None,
                    candidate_scores_3=call.candidate_scores_n3[0].float() if call is not None and keep else None,
                    chosen=None if call is None else int(chosen),
                    tokens_2d=call.pairs(self._mask_token_offset)[0].float()
                    if call is not None and self.keep_tokens
                    else None,
                )
            )
        return results

    # Memory ----------------------------------------------------------------------------------------------------------

    def _entry(self, memory_1chw: Tensor, position: list[Tensor], pointer_1c: Tensor) -> dict[str, Any]:
        if self._memory_position is None:
            self._memory_position = [x[0:1].clone() for x in position]
        return {
            "maskmem_features": memory_1chw.to(torch.bfloat16),
            "maskmem_pos_enc": self._memory_position,
            "obj_ptr": pointer_1c,
        }

    def _advance(self, before: tuple[str, ...], after: str) -> None:
        if self._stage not in before:
            raise PropagationError(
                f"a session that is {' or '.join(before)}",
                f"one that is {self._stage}",
                "call prepare, forward, backward in this order, once each",
            )
        self._stage = after

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()
