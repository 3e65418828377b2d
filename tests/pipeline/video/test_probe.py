"""The probe: what it says of good files, and one clear line for each kind of bad one."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import VideoError
from pipeline.settings import DecodeSettings
from pipeline.video.probe import presentation_times, probe_video
from pipeline.video.stream import FrameStream

from .conftest import CLIPS, decode_directly, probe_here, write_audio, write_video


def test_says_what_a_clean_file_is(clip: Path) -> None:
    info = probe_video(clip, DecodeSettings())
    assert (info.width, info.height, info.num_frames, info.fps, info.rotation) == (64, 48, 40, 25.0, 0)
    assert info.duration_seconds == pytest.approx(1.6)
    assert (info.codec, info.decoder, info.path) == ("h264", "decord", clip)
    np.testing.assert_allclose(presentation_times(info), np.arange(40) / 25)


def test_pyav_can_be_asked_for(clip: Path) -> None:
    info = probe_video(clip, DecodeSettings(decoder="pyav"))
    assert (info.decoder, info.decoder_reason) == ("pyav", "settings say pyav")


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    assert probe_video(write_video(tmp_path / "one.mp4", 1), DecodeSettings()).num_frames == 1


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("clip.avi", {"codec": "mpeg4"}, "codec mpeg4"),
        ("clip.ts", {}, "MPEG-TS"),
        ("clip.mp4", {"pix_fmt": "yuv444p", "width": 63, "height": 47}, "pixel format yuv444p"),
        ("clip.mp4", {"rotation": 90}, "rotated"),
    ],
)
def test_files_that_decord_misreads_go_to_pyav(
    tmp_path: Path, name: str, kwargs: dict[str, object], reason: str
) -> None:
    path = write_video(tmp_path / name, 9, **kwargs)  # type: ignore[arg-type]
    for wanted in ("auto", "decord"):
        info = probe_video(path, DecodeSettings(decoder=wanted))  # type: ignore[arg-type]
        assert info.decoder == "pyav"
        assert reason in info.decoder_reason
        assert info.num_frames == len(decode_directly(path)) == 9


def test_rotation_swaps_the_sides(tmp_path: Path) -> None:
    info = probe_video(write_video(tmp_path / "clip.mp4", 2, rotation=-90), DecodeSettings())
    assert (info.width, info.height, info.rotation) == (48, 64, 270)


def test_hidden_vp8_frames_are_not_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.webm", 30, codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"})
    assert probe_video(path, DecodeSettings()).num_frames == 30


def test_an_edit_list_is_no_truncation(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 40)
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # after the name, version and flags, and the number of entries
    assert struct.unpack(">I", data[at : at + 4]) == (1600,)
    data[at : at + 4] = struct.pack(">I", 800)
    path.write_bytes(data)
    info = probe_video(path, DecodeSettings())
    assert info.num_frames == len(decode_directly(path)) < 40
    assert info.decoder == "pyav"


def text_file(path: Path) -> Path:
    path.write_text("this is no video\n" * 100)
    return path


def truncated(part: float, **kwargs: object) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        data = write_video(path, 100, **kwargs).read_bytes()  # type: ignore[arg-type]
        path.write_bytes(data[: int(len(data) * part)])
        return path

    return make


def empty_file(path: Path) -> Path:
    path.touch()
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda path: path, "missing.mp4", "expected a video file, got no such file"),
        (folder, "folder.mp4", "expected a video file, got something that is not a file"),
        (empty_file, "empty.mp4", "expected a video file, got an empty file"),
        (text_file, "text.mp4", "expected a readable video, got .* starts with b'this is '"),
        (write_audio, "audio.mp4", "expected a file with a video stream, got .* with audio only"),
        (lambda path: write_video(path, 0), "zero.mp4", "expected a video with at least one frame"),
        (lambda path: write_video(path, 0), "zero.mkv", "expected a video with at least one frame"),
        (lambda path: write_video(path, 0, codec="mpeg4"), "zero.avi", "expected a video with at least one frame"),
        (truncated(0.3), "cut.mp4", "expected a readable video, got .* index is missing or damaged"),
        (truncated(0.5, movflags="faststart"), "cut.mp4", "expected an undamaged video, got .* 1 damaged packets"),
        (truncated(0.5), "cut.mkv", "expected 4.00 s as the file declares, got an end after"),
        (truncated(0.99), "cut.mkv", "expected 4.00 s as the file declares, got an end after"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], Path], name: str, message: str
) -> None:
    path = make(tmp_path / name)
    with pytest.raises(VideoError, match=message) as caught:
        probe_video(path, DecodeSettings())
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.usefixtures("stderr_file")
@pytest.mark.parametrize("movflags", ["", "faststart"])
def test_an_mp4_cut_anywhere_is_refused_or_whole(tmp_path: Path, movflags: str) -> None:
    path = write_video(tmp_path / "cut.mp4", 60, movflags=movflags)
    data = path.read_bytes()
    refused = 0
    for size in range(8, len(data), 97):
        path.write_bytes(data[:size])
        try:
            frames = probe_here(path, DecodeSettings()).num_frames
        except VideoError:
            refused += 1
        else:
            assert (size, frames, len(decode_directly(path))) == (size, 60, 60)
    assert refused > 20


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    import av

    Image.new("RGB", (32, 32), (200, 10, 10)).save(tmp_path / "cover.png")
    write_audio(tmp_path / "audio.m4a")
    with (
        av.open(str(tmp_path / "audio.m4a")) as audio,
        av.open(str(tmp_path / "cover.png")) as cover,
        av.open(str(tmp_path / "song.mp4"), "w") as song,
    ):
        pairs = [(source, source.streams[0]) for source in (audio, cover)]
        outputs = [song.add_stream_from_template(stream) for _, stream in pairs]
        outputs[1].disposition = av.stream.Disposition.attached_pic
        for (source, stream), output in zip(pairs, outputs, strict=True):
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = output
                    song.mux(packet)
    with pytest.raises(VideoError, match="with audio"):
        probe_video(tmp_path / "song.mp4", DecodeSettings())


def test_an_unreadable_file_is_refused(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.copy(clip, tmp_path / "locked.mp4")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, whom no permission stops
    with pytest.raises(VideoError, match=r"expected a readable video, got .*locked.mp4 \(Permission denied\)"):
        probe_video(path, DecodeSettings())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_width": 63}, "expected at most 63x8192 pixels, got 64x48"),
        ({"max_height": 47}, "expected at most 8192x47 pixels, got 64x48"),
        ({"max_frames": 39}, "expected at most 39 frames, got more"),
    ],
)
def test_too_large_is_refused(clip: Path, limits: dict[str, int], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        probe_video(clip, DecodeSettings(**limits))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips are not beside this checkout")
def test_the_real_clips_are_what_their_table_says() -> None:
    found = {path.stem: probe_video(path, DecodeSettings()) for path in CLIPS.glob("*.mp4")}
    counts = {"bedroom": 200, "blocks": 292, "coffee": 287, "cups": 300, "juggle": 247}
    assert {name: info.num_frames for name, info in found.items()} == counts
    assert {info.decoder for info in found.values()} == {"decord"}
    assert (found["bedroom"].width, found["bedroom"].height) == (960, 540)
    assert found["cups"].fps == pytest.approx(29.97, abs=0.001)


@pytest.mark.parametrize(("width", "height"), [(2, 2), (16, 16), (16, 64)])
def test_a_tiny_video_is_read_by_the_decoder_that_can(tmp_path: Path, width: int, height: int) -> None:
    path = write_video(tmp_path / "tiny.mp4", 3, width=width, height=height)
    info = probe_video(path, DecodeSettings())
    assert info.decoder == "pyav"
    with FrameStream(info, DecodeSettings()) as stream:
        assert [frame.rgb_hw3.shape for frame in stream] == [(height, width, 3)] * 3
