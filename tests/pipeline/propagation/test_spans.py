"""Where an object is followed: between barriers, until its end, from where it was discovered."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import PropagationError
from pipeline.prompts import FramePrompt, ObjectPrompts
from pipeline.propagate import FrameResult, Session

from .conftest import Clip, box, click, mask, prompt_set


def start(model: Any, clip: Clip, *objects: list[FramePrompt], **options: Any) -> Session:
    session = Session(model, prompt_set(*objects), clip.video_hw, clip.num_frames, exact=True, **options)
    session.prepare(clip.read)
    return session


def followed(lists: list[list[FrameResult]], object_id: int) -> list[int]:
    return [r.frame_index for results in lists for r in results if r.object_id == object_id and r.logits_hw is not None]


def test_nothing_crosses_a_barrier_in_either_direction(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(2, 50, 35)], [click(14, 50, 35)], [click(4, 50, 35), click(16, 60, 40)])
    session.barriers.update({9, 12})
    ahead = list(session.forward(clip.frames()))
    back = list(session.backward(clip.read))
    assert followed(ahead, 1) == list(range(2, 9))
    assert followed(back, 1) == [1, 0]
    assert followed(ahead, 2) == list(range(14, 22))
    assert followed(back, 2) == [13, 12]
    assert followed(ahead, 3) == [*range(4, 9), *range(16, 22)]
    assert all(len(results) == 3 for results in ahead)
    assert session.backward_frames == [13, 12, 3, 2, 1, 0]


def test_a_barrier_may_come_while_frames_are_taken(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(0, 50, 35)], reverse=False)

    def frames() -> Any:
        for frame in clip.frames():
            if frame.index == 5:
                session.barriers.add(5)
            yield frame

    assert followed(list(session.forward(frames())), 1) == [0, 1, 2, 3, 4]


def test_the_reverse_pass_asks_for_the_barriers_once_per_object(model: Any, clip: Clip) -> None:
    class Counted(set[int]):
        asked = 0

        def __iter__(self) -> Any:
            Counted.asked += 1
            return super().__iter__()

    session = start(model, clip, [click(9, 50, 35)], [click(14, 50, 35)])
    session.barriers = Counted({3})
    assert len(list(session.backward(clip.read))) == 11
    assert Counted.asked <= 2 * len(session.tracks)


def test_a_prompt_on_a_barrier_counts(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(6, 50, 35)])
    session.barriers.add(6)
    assert followed(list(session.forward(clip.frames())), 1) == list(range(6, 22))
    assert list(session.backward(clip.read)) == []


def test_an_ended_object_is_followed_no_further(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(3, 50, 35), click(15, 50, 35)], [click(0, 60, 40)], reverse=False)
    lists = []
    for results in session.forward(clip.frames()):
        lists.append(results)
        if results[0].frame_index == 8:
            session.end(1)
    assert followed(lists, 1) == [*range(3, 9), 15]  # a person's prompt is shown all the same
    assert followed(lists, 2) == list(range(22))


def test_of_an_ended_object_the_reverse_pass_still_has_what_it_needs(model: Any, clip: Clip) -> None:
    backs, held = [], []
    for ended in (True, False):
        session = start(model, clip, [click(3, 50, 35)], [click(0, 60, 40)])
        for results in session.forward(clip.frames()):
            if ended and results[0].frame_index == 20:
                session.end(1)
        held.append(session.state_bytes())
        backs.append([results[0].logits_hw for results in session.backward(clip.read)])
    assert held[0] < held[1]
    assert len(backs[0]) == 3
    assert all(torch.equal(a, b) for a, b in zip(*backs, strict=True))


def test_a_discovered_object_is_followed_from_its_frame_and_back_to_its_earliest(model: Any, clip: Clip) -> None:
    seen: list[tuple[int, int]] = []

    def discover(index: int, feats: Any, results: list[FrameResult]) -> list[ObjectPrompts]:
        seen.append((index, len(results)))
        return [ObjectPrompts(7, None, (box(index, 30, 20, 70, 50),), earliest=6)] if index == 10 else []

    session = start(model, clip, [click(0, 50, 35)], discover=discover)
    lists = list(session.forward(clip.frames()))
    assert [len(results) for results in lists] == [1] * 10 + [2] * 12
    assert seen == [(i, 1 if i <= 10 else 2) for i in range(22)]
    assert session.backward_frames == [9, 8, 7, 6]
    back = list(session.backward(clip.read))
    given = start(model, clip, [click(0, 50, 35)], [box(10, 30, 20, 70, 50)])
    expected = list(given.forward(clip.frames()))
    for results, other in zip(lists[10:], expected[10:], strict=True):
        assert torch.equal(results[1].logits_hw, other[1].logits_hw)
    for results, other in zip(back, given.backward(clip.read), strict=False):
        assert torch.equal(results[0].logits_hw, other[0].logits_hw)


def test_a_session_may_start_without_objects_if_some_can_be_discovered(model: Any, clip: Clip) -> None:
    session = start(model, clip, discover=lambda index, feats, results: [])
    assert all(results == [] for results in session.forward(clip.frames()))
    assert session.backward_frames == []


def test_a_discovered_object_must_be_prompted_on_its_frame(model: Any, clip: Clip) -> None:
    session = start(
        model,
        clip,
        [click(0, 50, 35)],
        discover=lambda index, f, r: [ObjectPrompts(7, None, (click(index + 1, 5, 5),))],
    )
    with pytest.raises(PropagationError, match="frame 0 alone"):
        next(session.forward(clip.frames()))


def test_a_given_mask_after_a_barrier_starts_again(model: Any, clip: Clip) -> None:
    session = start(model, clip, [click(0, 50, 35), mask(12, 30, 20, 70, 50)], reverse=False)
    session.barriers.add(5)
    assert followed(list(session.forward(clip.frames())), 1) == [0, 1, 2, 3, 4, *range(12, 22)]
