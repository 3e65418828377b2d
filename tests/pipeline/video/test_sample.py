"""Which frames are chosen: the rule itself, over every rate, range and frame rate."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PromptError, PropagationError, SettingsError, VideoError
from pipeline.prompts import parse_prompts
from pipeline.settings import DecodeSettings, load_settings
from pipeline.video.probe import VideoInfo
from pipeline.video.sample import Sample, select_frames

TICKS_PER_SECOND = 1000
EARLY = Fraction(501, 1_000_000)

gaps = st.lists(st.integers(1, 300), min_size=0, max_size=40)
rates = st.fractions(min_value=Fraction(1, 5), max_value=240, max_denominator=1001)
seconds = st.none() | st.integers(0, 8_000).map(lambda ms: ms / 1000)


def _times(first_ms: int, gaps_ms: list[int]) -> list[Fraction]:
    """Presentation times of a variable frame rate, exact."""
    return [Fraction(first_ms + sum(gaps_ms[:i]), TICKS_PER_SECOND) for i in range(len(gaps_ms) + 1)]


def _info(num_frames: int, fps: float = 25.0) -> VideoInfo:
    fields: dict[str, Any] = {
        "path": Path("clip.mp4"), "width": 64, "height": 48, "num_frames": num_frames, "fps": fps,
        "duration_seconds": num_frames / fps, "codec": "h264", "container": "mp4", "rotation": 0, "decoder": "pyav",
        "decoder_reason": "",
    }  # fmt: skip
    return VideoInfo(**fields)


def _by_definition(times: list[Fraction], fps: Fraction, start: Fraction, end: Fraction | None) -> list[int]:
    """For each tick the first frame at or after it, found by looking at every frame of every tick."""
    since = [time - times[0] for time in times]
    inside = [i for i, t in enumerate(since) if t + EARLY >= start and (end is None or t + EARLY < end)]
    chosen: list[int] = []
    tick = start
    while inside and tick <= since[inside[-1]] + EARLY:
        found = next(i for i in inside if since[i] + EARLY >= tick)
        chosen += [found] if found not in chosen else []
        tick += 1 / fps
    return chosen


@settings(max_examples=150, deadline=None)
@given(first=st.integers(-5000, 5000), gaps_ms=gaps, fps=rates, start=seconds, end=seconds)
def test_a_rate_takes_for_each_tick_the_first_frame_at_or_after_it(
    first: int, gaps_ms: list[int], fps: Fraction, start: float | None, end: float | None
) -> None:
    times = _times(first, gaps_ms)
    if end is not None and end <= (start or 0):
        end = None
    wanted = DecodeSettings(fps=float(fps), start_seconds=start, end_seconds=end)
    exact_start = Fraction(start or 0).limit_denominator(1000)
    exact_end = None if end is None else Fraction(end).limit_denominator(1000)
    expected = _by_definition(times, fps, exact_start, exact_end)
    if not expected:
        with pytest.raises(VideoError):
            select_frames(list(map(float, times)), wanted)
        return
    assert select_frames(list(map(float, times)), wanted).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(first=st.integers(0, 5000), gaps_ms=gaps, stride=st.integers(1, 12), start=seconds, end=seconds, data=st.data())
def test_a_stride_starts_at_the_first_frame_of_the_range_and_prompts_always_belong(
    first: int, gaps_ms: list[int], stride: int, start: float | None, end: float | None, data: st.DataObject
) -> None:
    times = list(map(float, _times(first, gaps_ms)))
    if end is not None and end <= (start or 0):
        end = None
    wanted = DecodeSettings(stride=stride, start_seconds=start, end_seconds=end)
    since = [round((time - times[0]) * 1000) for time in times]
    inside = [
        i for i, ms in enumerate(since)
        if ms >= round((start or 0) * 1000) and (end is None or ms < round(end * 1000))
    ]  # fmt: skip
    if not inside:
        with pytest.raises(VideoError):
            select_frames(times, wanted)
        return
    always = data.draw(st.lists(st.sampled_from(inside)))
    found = select_frames(times, wanted, always).tolist()
    assert found == sorted({*inside[::stride], *always})
    outside = sorted(set(range(len(times))) - set(inside))
    if outside:
        with pytest.raises(PromptError, match="start_seconds"):
            select_frames(times, wanted, [data.draw(st.sampled_from(outside))])


@pytest.mark.parametrize("source", [24, 30, 60, Fraction(30000, 1001)])
@pytest.mark.parametrize("times", ["exact", "milliseconds"])
def test_half_the_rate_is_every_other_frame_also_where_times_are_rounded(source: Fraction | int, times: str) -> None:
    exact = [Fraction(i) / source for i in range(600)]
    rounded = [Fraction(round(t * 1000), 1000) for t in exact] if times == "milliseconds" else exact
    found = select_frames(list(map(float, rounded)), DecodeSettings(fps=float(Fraction(source) / 2)))
    assert found.tolist() == list(range(0, 600, 2))


def test_ranges_that_meet_cover_every_frame_once() -> None:
    times = [round(i / 30, 3) + 1.4 for i in range(90)]
    cuts = [0.0, 0.1, 1 / 3, 1.0, 2.5, 10.0]
    parts = [
        select_frames(times, DecodeSettings(start_seconds=a, end_seconds=b)).tolist()
        for a, b in itertools.pairwise(cuts)
    ]
    assert list(itertools.chain(*parts)) == list(range(90))


def test_more_frames_a_second_than_there_are_takes_every_frame_once() -> None:
    assert select_frames([0, 0.04, 1.0, 1.04], DecodeSettings(fps=1000)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decode.stride": 0}, "decode.stride"),
        ({"decode.stride": 2, "decode.fps": 5.0}, "not together with a stride"),
        ({"decode.fps": 0.0}, "decode.fps"),
        ({"decode.start_seconds": 2.0, "decode.end_seconds": 2.0}, "not after start_seconds"),
        ({"decode.start_seconds": -1.0}, "decode.start_seconds"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, float], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load_settings(None, changes)


def _prompts(*frames: int) -> Any:
    prompts = [{"frame_index": index, "points": [[1, 1, 1]]} for index in frames]
    return parse_prompts({"version": 1, "objects": [{"object_id": 1, "prompts": prompts}]}, source="test")


def test_without_sampling_nothing_is_computed_and_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Sample.of(_info(10), DecodeSettings(stride=3), _prompts(4)).indices == [0, 3, 4, 6, 9]
    monkeypatch.setattr("pipeline.video.probe.presentation_times", lambda info: pytest.fail("looked at times"))
    sample = Sample.of(_info(10), DecodeSettings(), _prompts(3))
    assert (len(sample), sample.indices) == (10, None)
    prompts = _prompts(3)
    assert sample.prompts(prompts) is prompts


def test_positions_and_frame_indices_translate_both_ways_and_in_refusals() -> None:
    sample = Sample(20, np.array([3, 6, 8, 9]))
    assert [sample.position(sample.frame_index(p)) for p in range(len(sample))] == [0, 1, 2, 3]
    assert [frame.frame_index for frame in sample.prompts(_prompts(6, 9)).objects[0].frames] == [1, 3]
    with pytest.raises(VideoError, match="frame 7"):
        sample.position(7)
    with pytest.raises(PropagationError, match="object 5 on frame 8;"), sample.told_by_frame_index():
        raise PropagationError("finite logits", "a non-finite value for object 5 on frame 2", "check the weights")
