"""Whether a stream may hold interlaced frames is read from its parameter sets."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from pipeline.settings import DecodeSettings
from pipeline.video.h264 import may_be_interlaced
from pipeline.video.probe import probe_video

from .conftest import write_video

SCALED = {"profile": "high", "x264-params": "cqm=jvt"}


def extradata(path: Path) -> bytes:
    with av.open(str(path)) as container:
        return bytes(container.streams.video[0].codec_context.extradata or b"")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
@pytest.mark.parametrize("options", [{"profile": "baseline"}, {"profile": "main"}, {"profile": "high"}, SCALED])
def test_progressive_and_interlaced_streams_are_told_apart(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    assert not may_be_interlaced(extradata(write_video(tmp_path / name, 3, options={**options, "bf": "0"})))
    if options["profile"] != "baseline":
        more = {"x264-params": ":".join([*filter(None, [options.get("x264-params")]), "interlaced=1"])}
        path = write_video(tmp_path / f"i{name}", 3, options={**options, "bf": "0", **more})
        assert may_be_interlaced(extradata(path))


def test_progressive_frames_before_interlaced_ones_go_to_pyav(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 3, options={"x264-params": "fake-interlaced=1"})
    with av.open(str(path)) as container:
        assert not any(frame.interlaced_frame for frame in container.decode(video=0))
    info = probe_video(path, DecodeSettings())
    assert (info.decoder, info.decoder_reason) == ("pyav", "frames that may be interlaced")


def test_parameter_sets_that_are_cut_or_missing_promise_nothing(clip: Path) -> None:
    whole = extradata(clip)
    assert not may_be_interlaced(whole)
    assert may_be_interlaced(b"")
    assert may_be_interlaced(whole[:12])
