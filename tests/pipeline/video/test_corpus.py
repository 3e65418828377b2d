"""Good videos of every kind come out as ffmpeg shows them; damaged ones are refused, or cut before the damage.

To save the start of a thousand processes the probe and PyAV run in this one; processes are tested in test_stream.py.
"""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import VideoError
from pipeline.settings import DecodeSettings
from pipeline.video.child import decoded_frames
from pipeline.video.probe import VideoInfo, presentation_times, probe_video
from pipeline.video.stream import Frame, FrameStream, new_job

from .conftest import probe_here as probe
from .corpus import GOOD, have_ffmpeg, make_good, reference_frames, reference_times
from .damage_corpus import DAMAGED, make_damaged

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("stderr_file")]
BOUNDED_SECONDS = 30.0


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not have_ffmpeg():
        pytest.skip("no ffmpeg: apt-get install ffmpeg")
    return tmp_path_factory.mktemp("corpus")


def good_file(name: str, folder: Path) -> Path:
    path = folder / name
    return path if path.exists() else make_good(name, folder)


def read(info: VideoInfo, settings: DecodeSettings, **choice: object) -> list[Frame]:
    job = new_job(info, settings, **choice)  # type: ignore[arg-type]
    if job.decoder == "decord":  # not in one process with PyAV: each brings its own libav
        with FrameStream(info, settings, **choice) as stream:  # type: ignore[arg-type]
            return list(stream)
    return [Frame(index, pts, rgb) for index, pts, rgb in decoded_frames(job) if rgb is not None]


def pictures(frames: list[Frame]) -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([frame.rgb_hw3 for frame in frames])


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(GOOD) >= 30
    assert len(DAMAGED) >= 12


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_comes_out_as_ffmpeg_shows_it(name: str, folder: Path) -> None:
    path, settings = good_file(name, folder), DecodeSettings()
    info = probe(path, settings)
    expected = reference_frames(path, info.height, info.width)
    times = np.array([float(one) for one in reference_times(path)])
    if GOOD[name].times_shift:
        times += presentation_times(info)[0] - times[0]
    whole = None
    for decoder in {info.decoder, "pyav"}:
        frames = read(dataclasses.replace(info, decoder=decoder), settings)
        assert info.num_frames == len(frames) == len(expected)
        assert [frame.index for frame in frames] == list(range(len(expected)))
        np.testing.assert_allclose([frame.pts_seconds for frame in frames], times, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(presentation_times(info), [frame.pts_seconds for frame in frames])
        difference = np.abs(pictures(frames).astype(np.int16) - expected)
        most, mean = GOOD[name].bound
        assert difference.max() <= most
        assert difference.mean() <= mean
        whole = pictures(frames)
    assert whole is not None
    _check_selections(info, whole)
    kept = probe(path, DecodeSettings(on_damage="keep_good_prefix"))
    assert (kept, kept.damage) == (info, None)


def _check_selections(info: VideoInfo, whole: np.ndarray) -> None:  # type: ignore[type-arg]
    """A later start and a selection give the same frames as the whole."""
    start = info.num_frames // 2
    frames = read(info, DecodeSettings(), start=start)
    assert [frame.index for frame in frames] == list(range(start, info.num_frames))
    np.testing.assert_array_equal(pictures(frames), whole[start:])
    few = sorted({0, info.num_frames // 5, info.num_frames - 1})
    frames = read(info, DecodeSettings(), indices=few)
    assert [frame.pts_seconds for frame in frames] == presentation_times(info)[few].tolist()
    np.testing.assert_array_equal(pictures(frames), whole[few])


def test_a_late_start_does_not_decode_what_comes_before(folder: Path) -> None:
    for name, entries in (("h264.mp4", [0, 12, 24]), ("vp9.webm", [0, 12, 24]), ("h264_open_gop.mp4", [0])):
        info = probe(good_file(name, folder), DecodeSettings())
        assert info.index is not None
        assert info.index.entries_n.tolist() == entries


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_with_its_reason(name: str, decoder: str, folder: Path, tmp_path: Path) -> None:
    path, _ = make_damaged(name, folder)
    settings = DecodeSettings(decoder=decoder)  # type: ignore[arg-type]
    started = time.monotonic()
    with pytest.raises(VideoError, match=f"({DAMAGED[name].reason})") as caught:
        read(probe(path, settings), settings)
    assert time.monotonic() - started < BOUNDED_SECONDS
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DAMAGED)
def test_the_good_prefix_ends_before_the_damage(name: str, folder: Path) -> None:
    path, source = make_damaged(name, folder)
    settings = DecodeSettings(on_damage="keep_good_prefix")
    if DAMAGED[name].prefix is None:
        with pytest.raises(VideoError):
            probe(path, settings)
        return
    info = probe(path, settings)
    fewest, most = DAMAGED[name].prefix or (0, 0)
    assert fewest <= info.num_frames <= most
    damage = FrameStream(info, settings).damage
    assert damage is not None
    assert (damage.frame, damage.path) == (info.num_frames, path)
    frames = read(info, settings)
    assert len(frames) == info.num_frames == len(presentation_times(info))
    assert info.damage is not None
    assert str(path) not in info.damage  # it goes into the facts, which know no machine
    if source is not None:
        whole = pictures(read(probe(source, DecodeSettings(decoder="pyav")), DecodeSettings()))
        np.testing.assert_array_equal(pictures(frames), whole[: len(frames)])
    assert [one.index for one in read(info, settings, start=info.num_frames - 1)] == [info.num_frames - 1]


def test_the_good_prefix_comes_through_the_processes_and_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = make_damaged("middle.mp4", folder)
    settings = DecodeSettings(on_damage="keep_good_prefix")
    info = probe_video(path, settings)
    assert (info, info.num_frames) == (probe(path, settings), len(read(info, settings)))
    assert f"only its first {info.num_frames} frames" in caplog.text
    with FrameStream(info, settings) as stream:
        assert len(list(stream)) == info.num_frames


def test_damage_carries_path_and_frame(folder: Path) -> None:
    path, _ = make_damaged("middle_hevc.mp4", folder)
    with pytest.raises(VideoError) as caught:
        read(probe(path, DecodeSettings()), DecodeSettings())
    assert caught.value.path == path
    assert caught.value.frame is not None
    assert re.search(rf"frame {caught.value.frame}\b", str(caught.value))
