"""Propagates prompted objects through a video with SAM2's own steps, exactly as upstream, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import PromptError, PropagationError
from pipeline.results import Direction, FrameResult
from pipeline.session_state import put_state, take_state
from pipeline.steps import Features, Step, Steps
from pipeline.track import MemoryRule, Track
from usam.capture import TokenCapture

if TYPE_CHECKING:
    from pipeline.prompts import ObjectPrompts, PromptSet
    from pipeline.stored_masks import StoredMasks

__all__ = ["Discover", "Features", "FrameLike", "FrameResult", "ReadFrame", "Session"]

ReadFrame = Callable[[int], NDArray[np.uint8]]

_CACHED_FEATURES = 4


class FrameLike(Protocol):
    """A decoded frame: its index in the source and its pixels at model size."""

    @property
    def index(self) -> int: ...
    @property
    def rgb_hw3(self) -> NDArray[np.uint8]: ...


Discover = Callable[[int, Features, list[FrameResult]], Sequence["ObjectPrompts"]]
"""Called after every forward frame with the encoder's output and the results; returns objects prompted on it."""


class Session:
    """One video's propagation: `prepare`, then `forward`, then `backward`; each once.

    Every object starts at its first prompt. Objects whose memories are of one number share a batch; with `exact` each
    goes alone, and its masks are bit-identical to an upstream `SAM2VideoPredictor` session holding just that object
    (on a CPU in float32 and bfloat16, on a GPU in bfloat16). Of past frames only what the model can still attend to is
    kept: conditioning frames, the spatial memories and pointers in reach, and, if a reverse pass will come, the forward
    outputs just after the first prompt, which that pass attends to.

    Args:
        model: SAM2 in eval mode, with `fill_hole_area` 0.
        prompts: the objects and their prompts, in pixels of the video; may be empty if `discover` finds some.
        video_hw: height and width of the video as presented, px.
        num_frames: frames that will come; enters SAM2's maths as min(num_frames, max_obj_ptrs_in_encoder).
        reverse: whether `backward` will be called (keeps what it needs).
        keep_candidates: attach the three candidate masks to every result.
        keep_tokens: attach tokens to every result.
        precision: "float32", or "bfloat16" for autocast.
        mask_token_offset: which mask token goes with the chosen mask; see `usam.capture`.
        exact: one object per batch, every operation in upstream's order.
        max_group: objects per batch at most; None takes what is fastest on the device.
        discover: finds further objects on the way.

    Attributes:
        barriers: frames that no object is followed onto from the frame before, in either direction (a scene cut). An
            object is followed again from its next prompt on. May grow until the frame itself is taken.
        next_frame: the frame that `forward`, or else `backward`, will take next.

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
        exact: bool = False,
        max_group: int | None = None,
        discover: Discover | None = None,
    ) -> None:
        _require_plain(model, precision)
        self.model, self.num_frames, self.reverse = model, num_frames, reverse
        self.keep_candidates, self.keep_tokens, self.precision = keep_candidates, keep_tokens, precision
        self.discover, self.barriers, self.next_frame, self.stage = discover, set[int](), 0, "new"
        self._mask_token_offset = mask_token_offset
        self.tracks = [Track.of(obj, num_frames) for obj in prompts.objects]
        if not self.tracks and discover is None:
            raise PromptError("at least one object", "none", "add an object to the prompts")
        self._rule = MemoryRule.of(model, num_frames, reverse_follows=reverse)
        self._capture = TokenCapture(model)
        self._steps = Steps(model, video_hw, self._rule, self._capture, exact=exact, max_group=max_group)
        self.prompted: dict[tuple[int, int], FrameResult] = {}
        self._cache: dict[int, Features] = {}

    @property
    def backward_frames(self) -> list[int]:
        """The frames `backward` will ask for and yield, descending; empty if every object starts on frame 0."""
        spans = [range(self._farthest_back(track), track.first) for track in self.tracks] if self.reverse else []
        return sorted(set().union(*spans), reverse=True)

    @property
    def conditioning_frames(self) -> list[int]:
        """The frames that carry a prompt of any object, ascending: what `prepare` reads."""
        return sorted({index for track in self.tracks for index in track.prompts})

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._steps.device

    @property
    def memory_place(self) -> Tensor | None:
        """Position encoding of a memory's tokens, which the first memory brings along."""
        return self._steps.place_p1c

    @memory_place.setter
    def memory_place(self, place_p1c: Tensor | None) -> None:
        self._steps.place_p1c = place_p1c

    def state(self) -> dict[str, Any]:
        """What is needed to go on from between two frames in another process; see `pipeline.session_state`."""
        return take_state(self)

    @classmethod
    def from_state(
        cls,
        model: Any,
        prompts: PromptSet,
        video_hw: tuple[int, int],
        num_frames: int,
        state: dict[str, Any],
        **options: Any,
    ) -> Session:
        """A session that goes on from a state: its pass continues with `next_frame`, bit for bit.

        Args:   model, prompts, video_hw, num_frames, options: as for the session that the state was taken of.
        Raises: PropagationError for a state of another kind of session.
        """
        session = cls(model, prompts, video_hw, num_frames, **options)
        put_state(session, state)
        return session

    @classmethod
    def resume(
        cls,
        model: Any,
        prompts: PromptSet,
        stored: StoredMasks,
        t: int,
        read: ReadFrame,
        video_hw: tuple[int, int],
        num_frames: int,
        **options: Any,
    ) -> Session:
        """A session that goes forward from frame `t` of a finished video; see `pipeline.resume.resume_session`."""
        from pipeline.resume import resume_session

        return resume_session(model, prompts, stored, t, read, video_hw, num_frames, **options)

    def state_bytes(self) -> int:
        """Bytes of tensor storage held for all objects, each storage counted once, image features not included."""
        tensors = [tensor for track in self.tracks for tensor in track.tensors()]
        for result in self.prompted.values():
            kept = (result.logits_hw, result.tokens_2d, result.mask_tokens_4d, result.candidates_3hw)
            tensors += [t for t in kept if t is not None]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def prepare(self, read: ReadFrame) -> None:
        """Decode every prompt and encode it into memory; a later prompt informs all frames before it, as upstream.

        Args:   read: gives the frame of an index as (image_size, image_size, 3) uint8 RGB.
        Raises: PropagationError for a non-finite result; PromptError for a mask that vanishes at model size.
        """
        self._advance(("new",), "prepared")
        for index in self.conditioning_frames:
            with self._capture, torch.inference_mode(), self._autocast():
                feats = self._steps.features(index, read(index))
                self._decode_prompts([track for track in self.tracks if index in track.prompts], index, feats)
            if any(t.first < index and index not in t.prompts for t in self.tracks):
                self._cache[index] = feats
                while len(self._cache) > _CACHED_FEATURES:
                    self._cache.pop(next(reversed(self._cache)))

    def forward(self, frames: Iterable[FrameLike]) -> Iterator[list[FrameResult]]:
        """Propagate through the whole video in time order.

        Args:   frames: every frame from `next_frame` on, at model size.
        Yields: one list per frame with every object, in the prompts' order; "untracked" where it is not followed, also
                where the reverse pass will cover it. Objects of `discover` come last, and only where they are followed.
        Raises: PropagationError for a gap in the frames or a non-finite result.
        """
        self._advance(("prepared", "forward"), "forward")
        for frame in frames:
            index = frame.index
            if index != self.next_frame or index >= self.num_frames:
                raise PropagationError(
                    f"frame {self.next_frame} of {self.num_frames}",
                    f"frame {index}",
                    "decode every frame, in order, and probe the video again",
                )
            with self._capture, torch.inference_mode(), self._autocast():
                results = self._forward_frame(index, frame.rgb_hw3)
            self.next_frame = index + 1
            yield results

    def backward(self, read: ReadFrame) -> Iterator[list[FrameResult]]:
        """Propagate from each object's first prompt back to frame 0.

        Args:   read: gives the frame of an index as in `prepare`; called for `backward_frames`, once each.
        Yields: one list per frame, frames descending, with the objects that start after it.
        Raises: PropagationError for a non-finite result, or if the session was made with reverse=False.
        """
        if not self.reverse:
            raise PropagationError("a session made with reverse=True", "reverse=False", "make a new session")
        frames = self.backward_frames
        if self.stage == "backward":
            frames = [index for index in frames if index <= self.next_frame]
        else:
            for track in self.tracks:
                self._rule.forget(track, track.first, reverse=True)
        self._advance(("prepared", "forward", "backward"), "backward")
        spans = [(self._farthest_back(track), track) for track in self.tracks]
        for index in frames:
            tracks = [track for start, track in spans if start <= index < track.first]
            with self._capture, torch.inference_mode(), self._autocast():
                feats = self._features(index, read(index))
                results = self._propagate(tracks, index, feats, reverse=True)
            self.next_frame = index - 1
            yield [results[track.object_id] for track in tracks]

    def replay(
        self,
        tracks: list[Track],
        index: int,
        rgb_hw3: NDArray[np.uint8],
        review: Callable[[Steps, Features, dict[int, FrameResult]], None],
    ) -> None:
        """Propagate some tracks onto a frame again, outside of the passes, to rebuild what they remember of it.

        Args:
            index: a frame whose forward memories are there, so far as they are in reach.
            review: called with what came out, by object_id, which every track remembers by now; it may put that right.
        """
        with self._capture, torch.inference_mode(), self._autocast():
            feats = self._steps.features(index, rgb_hw3)
            review(self._steps, feats, self._propagate(tracks, index, feats, reverse=False))

    def end(self, object_id: int) -> None:
        """Follow an object no further in the forward pass, and forget what only that would need."""
        for track in self.tracks:
            if track.object_id == object_id:
                track.ended, track.active = True, False
                pin_spatial, pin_pointer = self._rule.pinned(track)
                track.propagated = {i: m for i, m in track.propagated.items() if i <= max(pin_spatial, pin_pointer)}

    # One frame --------------------------------------------------------------------------------------------------------

    def _forward_frame(self, index: int, rgb_hw3: NDArray[np.uint8]) -> list[FrameResult]:
        for track in self.tracks:
            if index in self.barriers:
                track.active = False
            if index in track.prompts and not track.ended:
                track.active = True
        done = {t.object_id: self.prompted.pop((t.object_id, index)) for t in self.tracks if index in t.prompts}
        tracks = [track for track in self.tracks if track.active and index not in track.prompts]
        feats = self._features(index, rgb_hw3) if tracks or self.discover else None
        if feats is not None:
            done |= self._propagate(tracks, index, feats, reverse=False)
        for track in self.tracks:
            if track.object_id not in done and not track.discovered:
                done[track.object_id] = FrameResult(index, track.object_id, "none", None, "untracked")
        results = [done[track.object_id] for track in self.tracks if track.object_id in done]
        if self.discover is not None and feats is not None:
            results += self._add(self.discover(index, feats, results), index, feats)
        return results

    def _add(self, objects: Sequence[ObjectPrompts], index: int, feats: Features) -> list[FrameResult]:
        """Follow objects that were found on this frame, from here on."""
        tracks = [Track.of(obj, self.num_frames, discovered=True) for obj in objects]
        for track in tracks:
            if list(track.prompts) != [index]:
                raise PropagationError(
                    f"a discovered object that is prompted on frame {index} alone",
                    f"object {track.object_id} on frames {list(track.prompts)}",
                    "prompt it on the frame that it was found on",
                )
            track.active = True
        self.tracks += tracks
        self._decode_prompts(tracks, index, feats)
        return [self.prompted.pop((track.object_id, index)) for track in tracks]

    def _decode_prompts(self, tracks: list[Track], index: int, feats: Features) -> None:
        steps = [self._steps.prompt(track, index, feats) for track in tracks]
        for object_id, result in self._results(steps, index, "none").items():
            self.prompted[object_id, index] = result

    def _propagate(self, tracks: list[Track], index: int, feats: Features, *, reverse: bool) -> dict[int, FrameResult]:
        steps = list(self._steps.propagate(tracks, index, feats, reverse=reverse))
        return self._results(steps, index, "reverse" if reverse else "forward")

    def _features(self, index: int, rgb_hw3: NDArray[np.uint8]) -> Features:
        cached = self._cache.pop(index, None)
        return self._steps.features(index, rgb_hw3) if cached is None else cached

    def _results(self, steps: list[Step], index: int, direction: Direction) -> dict[int, FrameResult]:
        """Bring all objects' numbers to the host in one transfer, refuse what is not finite, and name the rest."""
        if not steps:
            return {}
        columns = []
        for step in steps:
            score_n, health_n, call = step.object_score_n.float(), step.logits_nhw.sum((1, 2)), step.call
            if call is None:
                columns.append(torch.stack([score_n, score_n, score_n, health_n]))
            else:
                health_n = health_n + call.candidate_scores_n3.sum(1)
                columns.append(torch.stack([score_n, call.sam_score_n.float(), call.chosen_n.float(), health_n]))
        numbers = iter(torch.cat(columns, dim=1).T.tolist())
        results: dict[int, FrameResult] = {}
        for step in steps:
            call = step.call
            candidates_n3hw = call.candidates_n3hw.float() if call is not None and self.keep_candidates else None
            tokens_n2d = call.pairs(self._mask_token_offset).float() if call is not None and self.keep_tokens else None
            for row, track in enumerate(step.tracks):
                object_score, sam_score, chosen, health = next(numbers)
                if not (math.isfinite(object_score) and math.isfinite(sam_score) and math.isfinite(health)):
                    raise PropagationError(
                        "finite mask logits and scores",
                        f"a non-finite value for object {track.object_id} on frame {index}",
                        "check the model's weights, or set model.precision to float32",
                    )
                results[track.object_id] = FrameResult(
                    frame_index=index,
                    object_id=track.object_id,
                    direction=direction,
                    prompted=step.prompted,
                    visibility="visible" if object_score > 0 else "absent",
                    logits_hw=step.logits_nhw[row],
                    object_score=object_score,
                    sam_score=None if call is None else sam_score,
                    candidates_3hw=None if candidates_n3hw is None else candidates_n3hw[row],
                    candidate_scores_3=call.candidate_scores_n3[row].float() if call and self.keep_candidates else None,
                    chosen=None if call is None else int(chosen),
                    tokens_2d=None if tokens_n2d is None else tokens_n2d[row],
                    mask_tokens_4d=call.mask_tokens_n4d[row].float() if call and self.keep_candidates else None,
                    prompt_xyxy=track.prompts[index].auto_xyxy if index in track.prompts else None,
                )
        return results

    def _farthest_back(self, track: Track) -> int:
        """The first frame that the reverse pass of an object covers: no further than a barrier."""
        return max([track.earliest, *(barrier for barrier in self.barriers if barrier <= track.first)])

    def _advance(self, before: tuple[str, ...], after: str) -> None:
        if self.stage not in before:
            raise PropagationError(
                f"a session that is {' or '.join(before)}",
                f"one that is {self.stage}",
                "call prepare, forward, backward in this order, once each",
            )
        self.stage = after

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def _require_plain(model: Any, precision: str) -> None:
    """Refuse a model or precision that cannot be propagated exactly."""
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
        raise PropagationError("precision float32 or bfloat16", precision, "correct model.precision in the settings")
