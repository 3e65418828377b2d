"""Carries a person's masks on: from each both ways, to the next prompt or to where masks are trusted and agree."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline import rle
from pipeline.prompts import PromptSet
from pipeline.propagate import ReadFrame, Session
from pipeline.results import FrameResult
from pipeline.resume import LazyFrame
from pipeline.stored_masks import StoredMask

Stored = Callable[[int, int], StoredMask | None]
"""From object_id and position to the mask that is there; None where the object has none."""


@dataclass(frozen=True)
class Stopping:
    """Where a person's mask is carried no further, besides the next prompt of the object.

    Args:
        agree_iou: on a trusted row whose mask has at least this IoU with what arrives there. 0 stops at any trusted
            row, whatever arrives; None at none, so that the next prompt or the end of the video is the end.
        frames: so many such rows in a row are needed, at least 1.
        accepts: whether an accepted mask is carried on as well, and not only one that was corrected.
    """

    agree_iou: float | None = 0.9
    frames: int = 1
    accepts: bool = False


STOPPING = Stopping()


@dataclass(frozen=True)
class Walk:
    """One way that a mask is carried.

    Args:
        object_id, position: the mask that it starts from.
        direction: forward includes the frame of the mask itself.
        results: one frame each, ascending or descending; read it to its end before the next walk.
    """

    object_id: int
    position: int
    direction: Literal["forward", "reverse"]
    results: Iterator[list[FrameResult]]


def repropagate(
    model: Any,
    prompts: PromptSet,
    new: Mapping[int, Collection[int]],
    stored: Stored,
    trusted: Callable[[int, int], bool],
    read: ReadFrame,
    video_hw: tuple[int, int],
    num_frames: int,
    *,
    rule: Stopping = STOPPING,
    reverse: bool = True,
    barriers: Collection[int] = (),
    **options: Any,
) -> Iterator[Walk]:
    """Propagate from new prompts of a finished video, each no further than it has to go.

    Like `pipeline.resume.corrected` with `fast`: what is remembered are the prompts alone, as masks next to a wrong one
    are likely wrong as well.

    Args:
        prompts: all prompts of the objects, old and new, at positions.
        new: by object_id, the positions of those to start from.
        stored: the masks that are there. A row without one (not followed there) ends a walk.
        trusted: whether the mask that is there may be relied on, by object_id and position.
        read: gives the frame of a position, (image_size, image_size, 3) uint8 RGB.
        rule: where else to stop.
        reverse: whether frames before an object's first prompt are reached.
        barriers: scene cuts that no object is followed across.
        options: as `Session` takes them.
    Yields: walks, by object and position.
    Raises: PropagationError, PromptError as `Session`.
    """
    for one in prompts.objects:
        positions = [frame.frame_index for frame in one.frames]
        done: set[int] = set()
        for number, position in enumerate(positions):
            if position not in new.get(one.object_id, ()):
                continue
            before = positions[number - 1] if number else None
            end = positions[number + 1] if number + 1 < len(positions) else num_frames
            earliest = one.earliest if before is None else before + 1
            alone = replace(prompts, objects=(replace(one, earliest=earliest),))
            backwards = before is not None or reverse
            session = Session(model, alone, video_hw, num_frames, reverse=backwards, **options)
            session.barriers.update(barriers)
            session.prepare(read)
            session.tracks[0].first = position  # here the object begins, though it knows other prompts
            session.next_frame = position
            stop = _Stop(one.object_id, stored, trusted, rule)
            results = session.forward(LazyFrame(index, read) for index in range(position, end))
            yield Walk(one.object_id, position, "forward", _until(results, stop, done, position))
            if backwards:
                stop = _Stop(one.object_id, stored, trusted, rule)
                yield Walk(one.object_id, position, "reverse", _until(session.backward(read), stop, done, position))


@dataclass
class _Stop:
    """Says of one frame after the other whether what arrived there need not go further."""

    object_id: int
    stored: Stored
    trusted: Callable[[int, int], bool]
    rule: Stopping
    met: int = 0

    def __call__(self, result: FrameResult) -> bool:
        mask = self.stored(self.object_id, result.frame_index)
        if mask is None or result.logits_hw is None:
            return True
        agree = self.rule.agree_iou
        if agree is None or not self.trusted(self.object_id, result.frame_index):
            self.met = 0
            return False
        if agree > 0:
            made = rle.encode_logits(result.logits_hw.float().cpu().numpy(), mask.height, mask.width)
            if rle.iou(made.counts, mask.counts, mask.height, mask.width) < agree:
                self.met = 0
                return False
        self.met += 1
        return self.met >= self.rule.frames


def _until(passes: Iterable[list[FrameResult]], stop: _Stop, done: set[int], start: int) -> Iterator[list[FrameResult]]:
    """The results up to where they may end; what an earlier walk reached is not done again."""
    for results in passes:
        (result,) = results
        if result.frame_index != start and (result.frame_index in done or stop(result)):
            return
        done.add(result.frame_index)
        yield results
