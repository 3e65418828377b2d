"""Going on with a finished video, days later: memory is rebuilt from its stored masks, corrections run from there.

What a session would remember at a frame is made again by replaying the frames that it can still attend to. Conditioning
frames are decoded from their prompts, exactly. Every other frame is propagated anew from the memories rebuilt so far,
and its stored mask is the referee: where both agree, what came out is kept, with the soft edges and the object pointer
that a stored mask has lost; where they do not (a mask was edited, or the replay strayed), the stored mask is encoded.
How far a resumed run is from an uninterrupted one is measured by `benchmarks/resume.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline import rle
from pipeline.errors import PropagationError
from pipeline.prompts import FramePrompt, PromptSet, prompt_set
from pipeline.propagate import ReadFrame, Session
from pipeline.results import FrameResult
from pipeline.steps import NO_OBJECT_LOGIT, Features, Steps
from pipeline.stored_masks import StoredMask, StoredMasks
from pipeline.track import Memory, MemoryRule, Track

AGREE_IOU = 0.9
EDGE_PX, EDGE_LOGIT = 2, 10.0  # the model's own masks fall from 10 to -10 over about 5 px of its input


def frames_remembered(model: Any, num_frames: int, t: int) -> range:
    """The frames before `t` that a step on frame `t` can attend to: those whose stored masks `resume_session` wants."""
    return range(max(0, min(MemoryRule.of(model, num_frames, reverse_follows=False).reach(t, reverse=False))), t)


def resume_session(
    model: Any,
    prompts: PromptSet,
    stored: StoredMasks,
    t: int,
    read: ReadFrame,
    video_hw: tuple[int, int],
    num_frames: int,
    *,
    barriers: Collection[int] = (),
    **options: Any,
) -> Session:
    """A session that goes forward from frame `t`, with memory rebuilt from what was stored.

    Args:
        model, prompts, video_hw, num_frames, options: as `Session` takes them, but for `reverse`: what lies before `t`
            is finished. Of a video that nobody prompted, the prompts are those of `stored_masks.found_objects`.
        stored: masks of `frames_remembered`, of every object that was followed there.
        t: the first frame that `forward` will take, 0..num_frames - 1.
        read: gives conditioning frames and the frames before `t`, (image_size, image_size, 3) uint8 RGB.
        barriers: scene cuts that no object was followed across.
    Returns: a prepared session; give `forward` the frames from `t` on. An object that the automatic prompter found has
             results only where it is followed, and none from where its stored masks end.
    Raises:  PropagationError for a frame outside of the video, with reverse=True, or if an object has no stored mask
             where it must have been followed: after a prompt that a person gave, with no barrier between.
    """
    if not 0 <= t < num_frames:
        raise PropagationError(f"a frame in 0..{num_frames - 1} to go on from", str(t), "correct t")
    if options.pop("reverse", False):
        raise PropagationError(
            "reverse=False to go on from stored masks", "reverse=True", "what lies before is stored; use `corrected`"
        )
    session = Session(model, prompts, video_hw, num_frames, reverse=False, **options)
    session.barriers.update(barriers)
    session.prepare(read)
    _replay(session, stored, t, read)
    for track in session.tracks:
        track.discovered = all(prompt.auto for prompt in track.prompts.values())
        track.active = track.first < t and (t - 1 in track.prompts or stored.get(track.object_id, t - 1) is not None)
    session.prompted = {key: result for key, result in session.prompted.items() if key[1] >= t}
    session.next_frame = t
    return session


def corrected(
    model: Any,
    prompts: PromptSet,
    corrections: PromptSet,
    read: ReadFrame,
    video_hw: tuple[int, int],
    num_frames: int,
    *,
    fast: bool = False,
    reverse: bool = True,
    barriers: Collection[int] = (),
    **options: Any,
) -> Iterator[list[FrameResult]]:
    """Propagate again what new prompts on a finished video can change: the objects they are for, and no other.

    A result replaces what is stored for its object and frame; what is not yielded stays as it is.

    Args:
        prompts: those of the finished session.
        corrections: further prompts, by object. One on a frame that has a prompt of the object replaces it; an object
            that is new is followed like any other, and one that was found automatically is followed to the end.
        fast: False propagates a corrected object whole, from its first prompt and both ways: bit-identical to a fresh
            session of these objects with all prompts. True goes only from each correction to the next prompt, and back
            to the one before. It remembers the prompts alone: masks next to a correction are likely wrong as well, and
            remembering them measured worse.
        reverse: whether frames before an object's first prompt are reached.
        read: gives the frame of an index.
    Yields: lists of results, one frame each; forward passes ascend, backward passes descend.
    Raises: PropagationError, PromptError as `Session`.
    """
    merged = merge_prompts(prompts, corrections)
    if not fast:
        session = Session(model, merged, video_hw, num_frames, reverse=reverse, **options)
        session.barriers.update(barriers)
        session.prepare(read)
        session.next_frame = session.conditioning_frames[0]
        yield from session.forward(LazyFrame(index, read) for index in range(session.next_frame, num_frames))
        if reverse:
            yield from session.backward(read)
        return
    new = {one.object_id: {frame.frame_index for frame in one.frames} for one in corrections.objects}
    for one in merged.objects:
        frames = [frame.frame_index for frame in one.frames]
        for number, index in enumerate(frames):
            if index not in new[one.object_id]:
                continue
            before = frames[number - 1] if number else None
            end = frames[number + 1] if number + 1 < len(frames) else num_frames
            backwards = reverse if before is None else before not in new[one.object_id]
            earliest = one.earliest if before is None else before + 1
            alone = replace(merged, objects=(replace(one, earliest=earliest),))
            session = Session(model, alone, video_hw, num_frames, reverse=backwards, **options)
            session.barriers.update(barriers)
            session.prepare(read)
            session.tracks[0].first = index  # for this session the object begins here, though it knows other prompts
            session.next_frame = index
            yield from session.forward(LazyFrame(i, read) for i in range(index, end))
            if backwards:
                yield from session.backward(read)


def merge_prompts(prompts: PromptSet, corrections: PromptSet) -> PromptSet:
    """All prompts of the objects that the corrections are for, old and new; the new one where both have one."""
    before = {one.object_id: one for one in prompts.objects}
    objects = []
    for new in corrections.objects:
        old = before.get(new.object_id)
        if old is None:
            objects.append(new)
            continue
        frames: dict[int, FramePrompt] = {frame.frame_index: frame for frame in (*old.frames, *new.frames)}
        objects.append(replace(old, frames=tuple(frames[index] for index in sorted(frames))))
    return prompt_set(objects, f"{prompts.source} corrected by {corrections.source}")


@dataclass(frozen=True, slots=True)
class LazyFrame:
    """A frame that is read when it is looked at.

    Args:
        index: its position. read: gives its pixels, (image_size, image_size, 3) uint8 RGB.
    """

    index: int
    read: ReadFrame

    @property
    def rgb_hw3(self) -> NDArray[np.uint8]:
        return self.read(self.index)


def _replay(session: Session, stored: StoredMasks, t: int, read: ReadFrame) -> None:
    """Rebuild what a step on frame `t` attends to."""
    for index in frames_remembered(session.model, session.num_frames, t):
        followed: dict[int, tuple[Track, StoredMask]] = {}
        for track in session.tracks:
            if index <= track.first or index in track.prompts:
                continue
            mask = stored.get(track.object_id, index)
            if mask is not None:
                followed[track.object_id] = track, mask
            elif _must_be_followed(track, index, session.barriers):
                raise PropagationError(
                    f"a stored mask of object {track.object_id} on frame {index}",
                    "none",
                    "give the masks of all `frames_remembered`, and the cuts that no object was followed across",
                )
        if followed:
            tracks = [track for track, _ in followed.values()]
            session.replay(tracks, index, read(index), partial(_review, index, followed))


def _must_be_followed(track: Track, index: int, barriers: Collection[int]) -> bool:
    """Whether the object was surely followed; one that only the product has prompted so far may have been ended."""
    given = [frame for frame, prompt in track.prompts.items() if frame <= index and not prompt.auto]
    return bool(given) and not any(max(given) < barrier <= index for barrier in barriers)


def _review(
    index: int,
    followed: dict[int, tuple[Track, StoredMask]],
    steps: Steps,
    feats: Features,
    results: dict[int, FrameResult],
) -> None:
    """Where the replay strayed from a stored mask, remember the stored one."""
    for object_id, (track, mask) in followed.items():
        if not _agree(results[object_id], mask):
            track.propagated[index] = _encoded(steps, feats, mask)


def _agree(result: FrameResult, mask: StoredMask) -> bool:
    assert result.logits_hw is not None
    made = rle.encode_logits(result.logits_hw.float().cpu().numpy(), mask.height, mask.width)
    return rle.iou(made.counts, mask.counts, mask.height, mask.width) >= AGREE_IOU


def _encoded(steps: Steps, feats: Features, mask: StoredMask) -> Memory:
    """The memory of a stored mask by itself.

    Source: the pointer as `SAM2Base._use_mask_as_output` makes it, for a mask that a person gave.
    """
    model, device = steps.model, feats.vision[-1].device
    size = (model.image_size,) * 2
    mask_11hw = torch.from_numpy(mask.mask_hw())[None, None].to(device).float()
    soft_11hw = functional.interpolate(mask_11hw, size=size, mode="bilinear", align_corners=False, antialias=True)
    pointer_1c = model.no_obj_ptr
    if mask.present:
        *finer, last = (
            level.permute(1, 2, 0).reshape(1, -1, *place)
            for level, place in zip(feats.vision, feats.sizes, strict=True)
        )
        pointer_1c = model._use_mask_as_output(last, finer, (soft_11hw >= 0.5).float())[5]
    score_11 = torch.full((1, 1), 1.0 if mask.present else -1.0, device=device)
    spatial_1chw = steps.remember(feats, _logits(soft_11hw, mask.present), score_11, from_points=False)
    return Memory(spatial_1chw, pointer_1c)


def _logits(soft_11hw: Tensor, present: bool) -> Tensor:
    """Logits at the model's size as the model would have made them: steep at the edge, flat elsewhere."""
    if not present:
        return torch.full_like(soft_11hw, NO_OBJECT_LOGIT)
    padded = functional.pad(soft_11hw, (EDGE_PX,) * 4, mode="replicate")
    return (2 * functional.avg_pool2d(padded, 2 * EDGE_PX + 1, 1) - 1) * EDGE_LOGIT
