"""Second looks: when, what for, how far back, and which tracks end; proposals are scripted, so only the rules act."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import discover
from pipeline.auto_prompts import Proposals
from pipeline.discover import Discovery, automatic_prompts
from pipeline.errors import DiskSpaceError, ShapeError
from pipeline.lookback import Lookback
from pipeline.prompts import ObjectPrompts
from pipeline.propagate import FrameResult
from pipeline.settings import AutoPromptSettings
from pipeline.video.stream import Frame

SIZE = 16


@dataclass
class Scene:
    """A session's stand-in: it knows its length and cuts, and notes what is ended."""

    num_frames: int = 100
    barriers: set[int] = field(default_factory=set)
    ended: list[int] = field(default_factory=list)
    image_size: int = SIZE

    def end(self, object_id: int) -> None:
        self.ended.append(object_id)


def proposals(n: int) -> Proposals:
    boxes = torch.tensor([[1.0, 2.0, 5.0, 6.0]]).expand(n, -1)
    return Proposals(boxes, torch.zeros(n, 4, 4, dtype=torch.bool), torch.ones(n), torch.ones(n))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many objects the next looks see, first look first; then none."""
    counts: list[int] = []
    monkeypatch.setattr(discover, "propose", lambda *_: proposals(counts.pop(0) if counts else 0))
    return counts


def discovery(scene: Scene, **rules: Any) -> Discovery:
    made = Discovery(scene, (SIZE, 2 * SIZE), AutoPromptSettings(**rules))
    made.attach(scene)  # type: ignore[arg-type]
    return made


def rows(index: int, **visibility: Any) -> list[FrameResult]:
    return [FrameResult(index, int(name[1:]), "forward", None, seen) for name, seen in visibility.items()]


def look(made: Discovery, index: int, **visibility: Any) -> list[ObjectPrompts]:
    return made(index, None, rows(index, **visibility))  # type: ignore[arg-type]


def test_new_objects_are_numbered_on_and_reach_back_to_the_look_before(shown: list[int]) -> None:
    shown += [2, 0, 1]
    made = discovery(Scene(), every_frames=5)
    first = look(made, 0)
    assert [(one.object_id, one.frames[0].frame_index, one.earliest) for one in first] == [(1, 0, 0), (2, 0, 0)]
    assert all(one.auto and one.label is None and one.frames[0].kind == "auto" for one in first)
    assert first[0].frames[0].box_xyxy.tolist() == [2, 2, 10, 6]  # in the video's own pixels
    here: dict[str, Any] = {"o1": "visible", "o2": "visible"}
    assert not any(look(made, index, **here) for index in range(1, 10))
    (late,) = look(made, 10, **here)
    assert (late.object_id, late.earliest) == (3, 5)
    assert made.reaches_back


def test_an_object_absent_for_long_enough_is_ended_once(shown: list[int]) -> None:
    shown += [2]
    scene = Scene()
    made = discovery(scene, every_frames=50, end_after_absent=3)
    look(made, 0)
    for index, second in enumerate(["absent", "absent", "visible", "absent", "absent", "absent", "untracked"], start=1):
        look(made, index, o1="visible", o2=second)
        assert scene.ended == ([2] if index >= 6 else [])


def test_no_more_are_followed_at_once_or_found_in_all_than_allowed(shown: list[int]) -> None:
    shown += [5, 5, 5]
    scene = Scene()
    made = discovery(scene, every_frames=2, max_objects=3, max_total=4, end_after_absent=1)
    assert len(look(made, 0)) == 3
    look(made, 1, o1="visible", o2="visible", o3="visible")
    assert look(made, 2, o1="visible", o2="visible", o3="visible") == []
    look(made, 3, o1="absent", o2="absent", o3="visible")
    assert [one.object_id for one in look(made, 4, o3="visible")] == [4]
    look(made, 5, o3="absent", o4="absent")
    assert look(made, 6) == []
    assert scene.ended == [1, 2, 3, 4]


def test_after_a_cut_that_stops_tracks_it_looks_at_once_and_not_back(shown: list[int]) -> None:
    shown += [1, 1]
    scene = Scene(barriers={7})
    made = discovery(scene, every_frames=50)
    look(made, 0)
    assert not any(look(made, index, o1="visible") for index in range(1, 7))
    (fresh,) = look(made, 7)
    assert (fresh.object_id, fresh.earliest) == (2, 7)
    assert scene.ended == [1]
    assert not made.reaches_back


def test_where_a_shot_begins_it_looks_at_once_though_tracks_go_on(shown: list[int]) -> None:
    shown += [1, 1]
    made = discovery(Scene(), every_frames=50)
    look(made, 0)
    made.shot_starts.add(7)
    other = discovery(Scene(), every_frames=50)
    other.restore(made.state())
    assert other.looks_at(7)
    (fresh,) = look(made, 7, o1="visible")
    assert (fresh.object_id, fresh.earliest, made.reaches_back) == (2, 7, False)


@given(st.integers(1, 12), st.integers(1, 40), st.sets(st.integers(1, 39)))
def test_between_two_looks_lie_at_most_so_many_frames(every: int, num_frames: int, cuts: set[int]) -> None:
    made = discovery(Scene(num_frames, cuts), every_frames=every)
    looks = [index for index in range(num_frames) if made.looks_at(index)]
    assert looks[0] == 0
    assert looks[-1] == num_frames - 1
    assert max(np.diff(looks), default=1) <= every
    assert {cut for cut in cuts if cut < num_frames} <= set(looks)


def test_without_second_looks_only_the_first_frame_is_looked_at() -> None:
    made = discovery(Scene(10, {4}), every_frames=None)
    assert [index for index in range(10) if made.looks_at(index)] == [0]


def test_a_restored_discovery_goes_on_the_same(shown: list[int]) -> None:
    shown += [2, 3, 3]
    made = discovery(Scene(), every_frames=4, end_after_absent=5)
    look(made, 0)
    for index in range(1, 4):
        look(made, index, o1="absent", o2="visible")
    scene = Scene()
    other = discovery(scene, every_frames=4, end_after_absent=5)
    other.restore(made.state())
    again, there = look(other, 4, o1="absent", o2="visible"), look(made, 4, o1="absent", o2="visible")
    assert [(one.object_id, one.earliest) for one in again] == [(one.object_id, one.earliest) for one in there]
    look(other, 5, o1="absent", o2="visible", o3="visible", o4="visible", o5="visible")
    assert scene.ended == [1]


def test_other_settings_are_other_work() -> None:
    rules = AutoPromptSettings()
    assert automatic_prompts(rules).sha256 == automatic_prompts(AutoPromptSettings()).sha256
    changed = rules.model_copy(update={"min_score": 0.5})
    assert automatic_prompts(changed).sha256 != automatic_prompts(rules).sha256


@given(st.integers(1, 6), st.integers(1, 30), st.data())
def test_the_frames_before_a_look_that_found_something_can_be_read_again(
    tmp_path_factory: pytest.TempPathFactory, every: int, num_frames: int, data: st.DataObject
) -> None:
    made = discovery(Scene(num_frames), every_frames=every)
    kept: set[int] = set()
    with Lookback(tmp_path_factory.mktemp("lookback"), made, SIZE) as lookback:
        previous = 0
        for index in range(num_frames):
            lookback.append(Frame(index, index / 10, np.full((SIZE, SIZE, 3), index, np.uint8)))
            if made.looks_at(index):
                made.reaches_back = index > 0 and data.draw(st.booleans())
                kept |= set(range(previous, index)) if made.reaches_back else set()
                previous = index
        for index in range(num_frames):
            if index in kept:
                frame = lookback.read(index)
                assert (frame.index, frame.pts_seconds, frame.rgb_hw3[0, 0, 0]) == (index, index / 10, index)
            else:
                with pytest.raises(ShapeError):
                    lookback.read(index)


def test_a_lookback_gives_back_what_no_look_needed(tmp_path: Path) -> None:
    made = discovery(Scene(1000), every_frames=5)
    with Lookback(tmp_path, made, SIZE) as lookback:
        for index in range(200):
            lookback.append(Frame(index, 0.0, np.zeros((SIZE, SIZE, 3), np.uint8)))
            made.reaches_back = index == 50
        assert len(lookback._segments) == 1


def append(lookback: Lookback, made: Discovery, frames: range) -> None:
    for index in frames:
        lookback.append(Frame(index, 0.0, np.zeros((SIZE, SIZE, 3), np.uint8)))
        if made.looks_at(index):
            made.reaches_back = False


@pytest.mark.parametrize("saves", [0, 1])
def test_the_disk_does_not_grow_while_no_checkpoint_comes_about(tmp_path: Path, saves: int) -> None:
    made = discovery(Scene(1000), every_frames=5)
    with Lookback(tmp_path, made, SIZE, stays=True) as lookback:
        for first in range(0, 500, 10):
            append(lookback, made, range(first, first + 10))
            lookback.mark()
            if first < 10 * saves:
                lookback.saved()
            assert len(list(tmp_path.iterdir())) <= 1 + saves


@given(st.integers(1, 5), st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 20))
def test_what_the_latest_safe_mark_names_can_be_restored_at_any_time(
    tmp_path_factory: pytest.TempPathFactory, every: int, safe: list[bool], after: int
) -> None:
    folder, made, mark, at = tmp_path_factory.mktemp("lookback"), discovery(Scene(1000), every_frames=every), None, 0
    with Lookback(folder, made, SIZE, stays=True) as lookback:
        for number, good in enumerate(safe):
            append(lookback, made, range(3 * number, 3 * number + 3))
            new = lookback.mark()
            if good:
                lookback.saved()
                mark, at = new, 3 * number + 3
        append(lookback, made, range(3 * len(safe), 3 * len(safe) + after))
    if mark is None:
        return
    with Lookback(folder, made, SIZE, stays=True) as again:
        again.restore(mark)
        append(again, made, range(at, at + 40))
        again.mark()
        again.saved()
        assert len(again._all()) == 1


def test_room_is_asked_for_the_frames_that_may_come_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=(64 << 20) + 20 * SIZE * SIZE * 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    made = discovery(Scene(20), every_frames=1_000_000)
    with Lookback(tmp_path / "short", made, SIZE) as lookback:
        append(lookback, made, range(20))
    made = discovery(Scene(21), every_frames=1_000_000)
    with Lookback(tmp_path / "long", made, SIZE) as lookback, pytest.raises(DiskSpaceError, match="every_frames") as no:
        append(lookback, made, range(2))
    assert "prompt on" not in str(no.value)


@given(st.integers(1, 12), st.integers(1, 40), st.sets(st.integers(1, 39)))
def test_the_next_look_is_never_farther_than_is_said(every: int, num_frames: int, cuts: set[int]) -> None:
    made = discovery(Scene(num_frames, cuts), every_frames=every)
    looks = [index for index in range(num_frames) if made.looks_at(index)]
    for index, following in zip(looks, [*looks[1:], num_frames], strict=True):
        assert following - index <= made.frames_to_next_look(index) <= min(every, num_frames - index)
