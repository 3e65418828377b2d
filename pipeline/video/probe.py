"""Look at a video without decoding it through: what it is, how many frames, and which decoder is exact for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import VideoError
from pipeline.video.index import FrameIndex
from pipeline.video.process import ChildProcess

if TYPE_CHECKING:
    from pipeline.settings import DecodeSettings

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
MEMORY_BASE_BYTES = 3 << 30
FRAMES_IN_DECODER = 40  # 16 reference pictures, as many that wait, and the RGB of a few


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before its frames are decoded.

    Args:
        path: local file.
        width, height: pixels, as presented (after rotation).
        num_frames: presented frames; frame_index runs from 0 to num_frames - 1.
        fps: average frames per second.
        duration_seconds: end of the last frame minus start of the first.
        codec, container: FFmpeg's names.
        rotation: degrees counter-clockwise to turn the stored picture, one of 0, 90, 180, 270.
        decoder, decoder_reason: which decoder reads it, and why.
        mirrored: whether left and right are swapped after the rotation.
        damage: what is wrong after the last of the `num_frames` frames, which are good; None if nothing is.
        index: times of the frames, and where decoding may begin.
    """

    path: Path
    width: int
    height: int
    num_frames: int
    fps: float
    duration_seconds: float
    codec: str
    container: str
    rotation: int
    decoder: Literal["decord", "pyav"]
    decoder_reason: str
    mirrored: bool = False
    damage: str | None = None
    index: FrameIndex | None = field(default=None, repr=False, compare=False)

    def for_frames(self, indices: Sequence[int] | NDArray[np.int64] | None) -> VideoInfo:
        """The same video with the decoder that reads these frames: PyAV where a seek pays, as decord's are not exact.

        Args: indices: frame_index, ascending; None for all frames.
        """
        if indices is None or self.index is None or self.decoder == "pyav":
            return self
        if any(begin for begin, _ in self.index.stretches(np.asarray(indices, np.int64))):
            return replace(self, decoder="pyav", decoder_reason="a seek passes over frames that are not wanted")
        return self


@dataclass(frozen=True)
class Limits:
    """What the probing process knows of `DecodeSettings`, which needs pydantic."""

    decoder: str
    keep_good_prefix: bool
    max_width: int
    max_height: int
    max_pixels: int
    max_frames: int
    max_seconds: float

    @classmethod
    def of(cls, settings: DecodeSettings) -> Limits:
        """What the settings say."""
        return cls(
            settings.decoder, settings.on_damage == "keep_good_prefix", settings.max_width, settings.max_height,
            settings.max_pixels, settings.max_frames, settings.max_seconds,
        )  # fmt: skip


def probe_video(path: str | Path, settings: DecodeSettings) -> VideoInfo:
    """Inspect a local video file in a process of its own: demux it once and decode its first frame.

    Files whose packets do not tell the number of frames (MPEG-TS, VP8, open GOP) are decoded once, and so are all with
    `on_damage` keep_good_prefix, which looks for the first damage.

    Args:
        path: local file.
        settings: which decoder is wanted, what to do with damage, and the largest video that is accepted.

    Returns:
        VideoInfo; `decoder` is decord only where its sequential reading is known to be exact, PyAV otherwise.

    Raises:
        VideoError: missing or unreadable file, no video stream, no frames, damage or truncation (unless its good prefix
            is wanted and has frames), too large, no progress for `watchdog_seconds`.
    """
    path = Path(path)
    require_file(path)
    child = ChildProcess("pipeline.video.inspect", memory_limit_bytes(settings.max_pixels))
    try:
        child.link.send((path, Limits.of(settings)))
        info = _answer(child, path, settings.watchdog_seconds)
    except (EOFError, OSError) as error:
        got = f"its death ({child.describe_death()})"
        step = "encode the video again"
        raise VideoError(f"a process to probe {path}", got, step, path=path) from error
    finally:
        child.close()
    if settings.decoder == "decord" and info.decoder == "pyav":
        log.warning("decord is not exact on %s (%s): reading it with PyAV", path, info.decoder_reason)
    if info.damage is not None:
        log.warning("%s is damaged: only its first %d frames are used (%s)", path, info.num_frames, info.damage)
    return info


def presentation_times(info: VideoInfo) -> NDArray[np.float64]:
    """(num_frames,) times in seconds at which the frames are shown, exactly as the decoder will deliver them.

    A file without times (some AVI) has frame_index / fps.
    """
    return np.arange(info.num_frames) / info.fps if info.index is None else info.index.seconds()


def memory_limit_bytes(pixels: int) -> int:
    """Address space that a process may take which decodes frames of so many pixels."""
    return MEMORY_BASE_BYTES + FRAMES_IN_DECODER * 3 * pixels


def _answer(child: ChildProcess, path: Path, watchdog_seconds: float) -> VideoInfo:
    done, deadline = 0, time.monotonic() + watchdog_seconds
    while True:
        if child.link.poll(min(TICK_SECONDS, watchdog_seconds)):
            kind, content = child.link.recv()
            if kind == "error":
                raise content
            if kind == "info":
                assert isinstance(content, VideoInfo)
                return content
            done, deadline = content, time.monotonic() + watchdog_seconds
        elif time.monotonic() > deadline:
            got = f"none after {done} packets and frames; the probing process was ended"
            step = "encode the video again, or raise decode.watchdog_seconds on a slow disk"
            raise VideoError(f"progress on {path} within {watchdog_seconds:g} s", got, step, path=path)


def require_file(path: Path) -> None:
    """Refuse what is missing, empty, unreadable or no file.

    Raises: VideoError.
    """
    if not path.exists():
        raise VideoError("a video file", f"no such file: {path}", "check the path")
    if not path.is_file():
        raise VideoError("a video file", f"something that is not a file: {path}", "name the video itself")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise VideoError(
            "a readable video", f"{path} ({error.strerror})", "check the permissions of the file"
        ) from error
    if empty:
        raise VideoError("a video file", f"an empty file: {path}", "copy or download it again")
