"""What is decoded for the frames that are wanted, by whom, and in which time."""

from __future__ import annotations

import dataclasses
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from pipeline.settings import DecodeSettings
from pipeline.video.index import FrameIndex
from pipeline.video.job import Job
from pipeline.video.probe import VideoInfo, probe_video
from pipeline.video.stream import FrameStream, new_job

from .conftest import write_video


def info_of(num_frames: int, entries: list[int], decoder: str = "pyav") -> VideoInfo:
    index = FrameIndex(np.arange(num_frames), Fraction(1, 25), True, np.array(entries))
    return VideoInfo(
        Path("x.mp4"), 64, 48, num_frames, 25.0, num_frames / 25, "h264", "mov", 0, decoder, "test", index=index  # type: ignore[arg-type]
    )  # fmt: skip


def job_of(info: VideoInfo, start: int = 0, indices: list[int] | None = None) -> Job:
    return new_job(info, DecodeSettings(), start, indices)


@pytest.mark.parametrize(
    ("start", "indices", "expected"),
    [
        (0, None, [(0, None)]),
        (70, None, [(60, None)]),
        (0, [], []),
        (0, [0, 3, 60], [(0, 4), (60, 61)]),
        (0, [5, 12, 29], [(0, 30)]),  # the entry at 20 saves less than a seek costs
        (0, [1, 21, 95], [(0, 2), (20, 22), (80, 96)]),
        (21, [1, 21, 95], [(20, 22), (80, 96)]),
    ],
)
def test_stretches_begin_where_an_entry_saves_decoding(
    start: int, indices: list[int] | None, expected: list[tuple[int, int | None]]
) -> None:
    assert list(job_of(info_of(100, [0, 20, 40, 60, 80]), start, indices).stretches()) == expected


def test_the_wanted_frames_of_a_long_video_are_told_at_once() -> None:
    """A search in a tuple would turn it into an array for every frame."""
    indices = list(range(0, 600_000, 2))
    job = job_of(info_of(600_000, [0]), indices=indices)
    started = time.process_time()
    wanted = [index for index in range(0, 600_000, 60) if job.wants(index)]
    assert wanted == list(range(0, 600_000, 60))
    assert not job.wants(599_999)
    assert list(job.stretches()) == [(0, 599_999)]
    assert time.process_time() - started < 5


@pytest.mark.parametrize("frames", [[0, 3, 60], [2, 50, 70]])
def test_an_inexact_seek_delivers_each_frame_once(tmp_path: Path, frames: list[int]) -> None:
    settings = DecodeSettings(decoder="pyav")
    info = probe_video(write_video(tmp_path / "clip.mp4", 80, options={"g": "80"}), settings)
    assert info.index is not None
    lying = dataclasses.replace(info, index=dataclasses.replace(info.index, entries_n=np.array([0, 45])))
    with FrameStream(info, settings, indices=frames) as stream:
        expected = list(stream)
    with FrameStream(lying, settings, indices=frames) as stream:
        found = list(stream)
    assert [one.index for one in found] == frames
    assert all(np.array_equal(a.rgb_hw3, b.rgb_hw3) for a, b in zip(found, expected, strict=True))


def test_who_reads_is_known_before() -> None:
    info = info_of(100, [0, 50], "decord")
    assert info.for_frames(None) is info
    assert info.for_frames(range(0, 100, 2)) is info
    told = info.for_frames([0, 60])
    assert (told.decoder, told.decoder_reason) == ("pyav", "a seek passes over frames that are not wanted")
    for indices in (None, range(0, 100, 2), [0, 60]):
        assert job_of(info, indices=indices).decoder == info.for_frames(indices).decoder  # type: ignore[arg-type]


@pytest.mark.parametrize("indices", [None, list(range(0, 100, 2)), [0, 60, 90]])
def test_a_later_start_changes_no_decoder(indices: list[int] | None) -> None:
    """What a resumed run says of its decoder is what the whole run says."""
    info = info_of(100, [0, 50, 75], "decord")
    for start in (0, 60, 90):
        assert job_of(info, start, indices).decoder == info.for_frames(indices).decoder


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("indices", [None, [0, 3, 4, 20, 39]])
def test_a_later_start_leaves_out_what_comes_before(clip: Path, decoder: str, indices: list[int] | None) -> None:
    settings = DecodeSettings(decoder=decoder)  # type: ignore[arg-type]
    info = probe_video(clip, settings)
    with FrameStream(info, settings, start=4, indices=indices) as stream:
        assert [one.index for one in stream] == [i for i in indices or range(40) if i >= 4]
