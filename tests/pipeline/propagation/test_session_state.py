"""A session goes on from its state bit for bit, in another process as well, and refuses a state that is not its own."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import PropagationError
from pipeline.prompts import FramePrompt
from pipeline.propagate import FrameResult, Session

from .conftest import FRAMES, Clip, box, click, mask, prompt_set

OBJECTS = [
    [click(0, 50, 35), click(9, 57, 42)],
    [box(6, 33, 25, 77, 57)],
    [mask(12, 43, 33, 83, 63)],
]


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def assert_same(one: list[FrameResult], other: list[FrameResult]) -> None:
    assert [(r.frame_index, r.object_id, r.visibility, r.prompted) for r in one] == [
        (r.frame_index, r.object_id, r.visibility, r.prompted) for r in other
    ]
    for a, b in zip(one, other, strict=True):
        assert (a.sam_score, a.object_score, a.chosen) == (b.sam_score, b.object_score, b.chosen)
        for name in ("logits_hw", "tokens_2d"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None)
            assert x is None or torch.equal(x, y)


CUT = 8  # parts objects 1 and 2 from what comes, and object 3 from what was


@pytest.fixture(scope="module")
def whole(model: Any, clip: Clip) -> list[list[FrameResult]]:
    session = Session(model, prompt_set(*OBJECTS), clip.video_hw, clip.num_frames, max_group=1)
    session.barriers.add(CUT)
    session.prepare(clip.read)
    return [*session.forward(clip.frames()), *session.backward(clip.read)]


@settings(max_examples=6, deadline=None)
@given(stop=st.integers(1, 33))
@example(stop=CUT)
@example(stop=FRAMES + 1)
def test_it_goes_on_from_any_frame_of_either_pass(
    model: Any, clip: Clip, whole: list[list[FrameResult]], stop: int
) -> None:
    prompts = prompt_set(*OBJECTS)
    first = Session(model, prompts, clip.video_hw, clip.num_frames, max_group=1)
    first.barriers.add(CUT)
    first.prepare(clip.read)
    done: list[list[FrameResult]] = []
    for results in first.forward(clip.frames()):
        done.append(results)
        if len(done) == stop:
            break
    if len(done) < stop:
        for results in first.backward(clip.read):
            done.append(results)
            if len(done) == stop:
                break
    state = through_a_file(first.state())
    second = Session.from_state(model, prompts, clip.video_hw, clip.num_frames, state, max_group=1)
    if second.stage == "forward":
        rest = [frame for frame in clip.frames() if frame.index >= second.next_frame]
        done += second.forward(rest)
    done += second.backward(clip.read)
    assert len(done) == len(whole)
    for one, other in zip(done, whole, strict=True):
        assert_same(one, other)


def test_a_state_holds_no_more_than_its_memories(model: Any, clip: Clip) -> None:
    session = Session(model, prompt_set(*OBJECTS), clip.video_hw, clip.num_frames, max_group=8)
    session.prepare(clip.read)
    for _ in session.forward(clip.frames()):
        pass
    file = io.BytesIO()
    torch.save(session.state(), file)
    assert file.tell() < 1.1 * session.state_bytes() + 200_000


@pytest.mark.parametrize(
    ("objects", "frames", "message"),
    [([[click(0, 50, 35)]], 22, r"objects \[1\]"), (OBJECTS, 21, "over 21 frames")],
)
def test_a_foreign_state_is_refused(
    model: Any, clip: Clip, objects: list[list[FramePrompt]], frames: int, message: str
) -> None:
    session = Session(model, prompt_set(*OBJECTS), clip.video_hw, clip.num_frames)
    session.prepare(clip.read)
    with pytest.raises(PropagationError, match=message):
        Session.from_state(model, prompt_set(*objects), clip.video_hw, frames, session.state())
