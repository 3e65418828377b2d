"""A video that is really a list of other files is refused, and so is a still picture; nothing else is opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import pipeline.video
from pipeline.errors import VideoError
from pipeline.settings import DecodeSettings
from pipeline.video.containers import require_container
from pipeline.video.probe import probe_video

HLS = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:0.8,\nreal.ts\n#EXT-X-ENDLIST\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
DASH = (
    '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT8S" minBufferTime="PT1S" profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1" width="64" height="48">'
    "<BaseURL>real.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>"
)
SVG = (
    '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'width="64" height="48"><image xlink:href="real.png"/></svg>'
)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


def picture(kind: str) -> Callable[[Path], object]:
    return lambda path: Image.new("RGB", (64, 48), (200, 10, 10)).save(path, kind)


@pytest.mark.parametrize(
    ("name", "make", "reads_as"),
    [
        ("concat.mp4", text("ffconcat version 1.0\nfile real.mp4\n"), "concat"),
        ("unopened.mp4", text("ffconcat version 1.0\nfile absent.mp4\n"), "reads as concat"),  # or it would be missed
        ("hls.m3u8", text(HLS), "hls|m3u8"),
        ("hls.mp4", text(HLS), "hls|readable"),
        ("sdp.mp4", text(SDP), "sdp|readable"),
        ("dash.mpd", text(DASH), "dash|readable"),
        ("dash.mp4", text(DASH), "dash|readable"),
        ("svg.mp4", text(SVG), "svg_pipe|readable"),
        ("png.mp4", picture("PNG"), "png_pipe"),
        ("jpeg.mp4", picture("JPEG"), "jpeg_pipe"),
        ("%03d.png", picture("PNG"), "image2"),
    ],
)
def test_what_opens_other_files_or_is_no_video_is_refused(
    clip: Path, tmp_path: Path, name: str, make: Callable[[Path], object], reads_as: str
) -> None:
    shutil.copy(clip, tmp_path / "real.mp4")
    shutil.copy(clip, tmp_path / "real.ts")
    path = tmp_path / name
    make(path)
    with pytest.raises(VideoError, match=reads_as) as caught:
        probe_video(path, DecodeSettings())
    assert "\n" not in str(caught.value)
    assert "encode it" in str(caught.value)


def test_a_name_that_looks_like_a_list_is_a_file(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = Path(shutil.copy(clip, tmp_path / "concat:a.mp4|b.mp4")).name
    monkeypatch.chdir(tmp_path)
    assert probe_video(name, DecodeSettings()).num_frames == 40


def test_containers_go_by_name_too() -> None:
    require_container(Path("x.mp4"), "mov,mp4,m4a,3gp,3g2,mj2")
    for name in ("concat", "hls", "dash", "image2", "sdp", "concatf", "rtsp", "lavfi", "tee", ""):
        with pytest.raises(VideoError, match="name the video itself"):
            require_container(Path("x.mp4"), name)


def test_videos_are_opened_nowhere_else() -> None:
    files = Path(pipeline.video.__path__[0]).glob("*.py")
    assert [file.name for file in files if "av.open(" in file.read_text()] == ["containers.py"]
