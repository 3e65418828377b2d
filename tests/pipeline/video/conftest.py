"""Small videos written with PyAV, and the settings that the video tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipeline.settings import DecodeSettings
from pipeline.video.inspect import inspect_video
from pipeline.video.probe import Limits, VideoInfo, require_file

CLIPS = Path(__file__).parents[4] / "shared" / "data" / "clips"


def write_video(
    path: Path,
    num_frames: int = 12,
    *,
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    options: dict[str, str] | None = None,
    movflags: str = "",
    noise: int = 60,
) -> Path:
    """A moving gradient with noise; every frame differs from every other."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 120, width).astype(np.uint8)[None, :, None]
    picture = ramp + rng.integers(0, noise, (height, width, 3), np.uint8)
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        container.start_encoding()  # so that a video without frames has a header
        for index in range(num_frames):
            rgb = picture + np.array([index * 5 % 70, index * 3 % 70, 20], np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(rgb, index, axis=1), format="rgb24")))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_directly(path: Path) -> list[np.ndarray[Any, Any]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24", interpolation="BICUBIC") for frame in container.decode(video=0)]


def probe_here(path: Path, settings: DecodeSettings) -> VideoInfo:
    """`probe_video` without its process; for tests that use `stderr_file`."""
    require_file(path)
    return inspect_video(path, Limits.of(settings), lambda count: None)


@pytest.fixture
def stderr_file(tmp_path: Path) -> Iterator[None]:
    """Stderr is a file, as in the processes that decode: libav's log is read from it."""
    kept = os.dup(2)
    with (tmp_path / "stderr").open("w+b") as file:
        os.dup2(file.fileno(), 2)
        yield
        os.dup2(kept, 2)
    os.close(kept)


@pytest.fixture
def settings() -> Callable[..., DecodeSettings]:
    return DecodeSettings


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of 64x48 H.264 that decord reads."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 40)
