"""The probing process: what a video is, how many frames it shows and when, and which decoder is exact for it.

Everything that touches the file with libav happens here, so a file that hangs or crashes libav ends this process alone.
Messages: ("alive", packets or frames so far), ("info", VideoInfo), ("error", VideoError).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.errors import VideoError
from pipeline.video.containers import open_container, require_container
from pipeline.video.damage import AGAIN, LibavLog, other_codecs
from pipeline.video.h264 import may_be_interlaced
from pipeline.video.index import FrameIndex, count_at_rate
from pipeline.video.orientation import orientation
from pipeline.video.packets import PacketScan, find_damage, has_exact_seek, is_countable, scan_packets, video_stream
from pipeline.video.probe import Limits, VideoInfo
from pipeline.video.process import enter_child
from pipeline.video.pyav import checked_frames, open_video

DECORD_CODECS = ("h264",)  # on VP9 it cannot be told from packets that the size changes, and decord would rescale
# Known by their first bytes, so that decord's own libav, which takes no whitelist, cannot see a list of files in them.
DECORD_CONTAINERS = ("mov", "matroska", "avi", "flv")
HEARTBEAT_SECONDS = 0.5

Pulse = Callable[[int], None]


def main(link_fd: int, parent_pid: int, memory_bytes: int) -> None:
    """Entry point of the process."""
    link = enter_child(link_fd, parent_pid, memory_bytes)
    path, limits = link.recv()
    spoke = time.monotonic()

    def pulse(count: int) -> None:
        nonlocal spoke
        if time.monotonic() - spoke > HEARTBEAT_SECONDS:
            spoke = time.monotonic()
            link.send(("alive", count))

    try:
        link.send(("info", inspect_video(path, limits, pulse)))
    except VideoError as error:
        link.send(("error", error))


def inspect_video(path: Path, limits: Limits, pulse: Pulse) -> VideoInfo:
    """Look at a video; see `probe.probe_video`."""
    import av

    LibavLog.listen()
    log = LibavLog()
    try:
        with open_container(path) as container:
            return _inspect(path, container, limits, pulse, log)
    except av.EOFError as error:
        got = f"{path}, which ends before its first frame"
        raise VideoError("a video with at least one frame", got, "copy or encode it again", path=path) from error
    except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
        said = log.first_error() or ""
        if "not on whitelist" in said:
            require_container(path, said.partition(":")[0])
        raise VideoError(
            "a readable video", _describe_unreadable(path, error), "check the file or encode it again", path=path
        ) from error


def _describe_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return f"{path}, an mp4 whose index is missing or damaged (a truncated copy?)"
    reason = getattr(error, "strerror", None) or str(error)
    return f"{path}, which starts with {head[:8]!r} and is no video that FFmpeg knows ({reason})"


def _inspect(path: Path, container: Any, limits: Limits, pulse: Pulse, log: LibavLog) -> VideoInfo:
    stream = _require_stream(path, container)
    codec, log.ignored = stream.codec_context, other_codecs(container, stream)
    _require_size(path, codec.width, codec.height, limits)
    _require_length(path, float(container.duration or 0) / 1e6, limits)
    scan = scan_packets(container, stream, pulse, limits.max_frames)
    if scan.packets - scan.discards <= 0:
        raise VideoError("a video with at least one frame", f"{path} with 0 frames", "check how the file was made")
    _require_count(path, scan.packets - scan.discards, limits)
    if scan.pts:
        _require_length(path, float((scan.pts[-1] - scan.pts[0]) * scan.time_base), limits)
    damage = find_damage(path, container, stream, scan, pulse)
    if damage is None and (error := log.first_error()) is not None:
        damage = VideoError("an undamaged video", f"damage in {path} ({error})", AGAIN, path=path)
    if damage is not None and not limits.keep_good_prefix:
        raise damage
    first = _first_frame(path, damage)
    turn = orientation(path, first)
    decoder, reason = _choose_decoder(container, stream, first, scan, turn.is_plain, limits)
    fps = _average_rate(stream, scan)
    if limits.keep_good_prefix or not is_countable(container, codec.codec.canonical_name, scan):
        index, damage = _index_by_decoding(path, fps, limits, pulse, damage)
    else:
        index = FrameIndex(np.array(scan.pts, np.int64), scan.time_base, True, np.zeros(1, np.int64))
    if damage is None and index.exact and has_exact_seek(container, stream, scan):  # a seek may run into damage
        index = index.with_entries(scan.entries)
    if damage is not None and decoder == "decord":
        decoder, reason = "pyav", "damaged: only the frames before it are read"
    width, height = (first.height, first.width) if turn.swaps_sides else (first.width, first.height)
    seconds = float((index.ticks_n[-1] - index.ticks_n[0]) * index.time_base)
    last_seconds = float(scan.last_duration * scan.time_base) if damage is None else 0.0
    return VideoInfo(
        path, width, height, len(index), fps, (seconds + last_seconds) or len(index) / fps, codec.codec.canonical_name,
        container.format.name, turn.rotation, decoder, reason, turn.mirrored,
        None if damage is None else damage.got.replace(str(path), "the file"), index,
    )  # fmt: skip


def _require_stream(path: Path, container: Any) -> Any:
    stream = video_stream(container)
    if stream is None:
        kinds = sorted({s.type for s in container.streams})
        if not kinds:
            raise VideoError("a video with at least one frame", f"{path} with 0 streams", "check how the file was made")
        only = f"{' and '.join(kinds)} only" if "audio" in kinds or "subtitle" in kinds else "none (a truncated copy?)"
        raise VideoError("a file with a video stream", f"{path} with {only}", "name a video")
    if stream.codec_context is None:
        got = f"{path} whose codec is unknown or cut off (a truncated copy?)"
        raise VideoError("a video codec that FFmpeg knows", got, "copy or download it again, or encode it as H.264")
    return stream


def _require_size(path: Path, width: int, height: int, limits: Limits) -> None:
    if width <= 0 or height <= 0:
        raise VideoError("a video with a size", f"{path} of {width}x{height}", "check the file or encode it again")
    if width > limits.max_width or height > limits.max_height:
        raise VideoError(
            f"at most {limits.max_width}x{limits.max_height} pixels",
            f"{width}x{height} in {path}",
            "scale the video down or raise decode.max_width and decode.max_height",
        )
    if width * height > limits.max_pixels:
        raise VideoError(
            f"at most {limits.max_pixels} pixels a frame",
            f"{width * height} ({width}x{height}) in {path}",
            "scale the video down or raise decode.max_pixels",
        )


def _require_length(path: Path, seconds: float, limits: Limits) -> None:
    if seconds > limits.max_seconds:
        raise VideoError(
            f"at most {limits.max_seconds:g} s",
            f"{seconds:.1f} s in {path}",
            "cut the video or raise decode.max_seconds",
        )


def _require_count(path: Path, count: int, limits: Limits) -> None:
    if count > limits.max_frames:
        raise VideoError(
            f"at most {limits.max_frames} frames",
            f"more in {path}",
            "cut the video or raise decode.max_frames",
            path=path,
        )


def _first_frame(path: Path, damage: VideoError | None) -> Any:
    import av

    with open_video(path) as (container, stream), contextlib.suppress(av.FFmpegError):
        for frame in container.decode(stream):
            return frame
    raise damage or VideoError(
        "a video with at least one frame", f"{path} of which none can be decoded", "encode it again"
    )


def _index_by_decoding(
    path: Path, fps: float, limits: Limits, pulse: Pulse, known: VideoError | None
) -> tuple[FrameIndex, VideoError | None]:
    """Frames and times as the decoder gives them out, up to the first damage.

    Args: known: damage that the container showed; it counts unless decoding meets damage earlier.
    """
    ticks: list[int] = []
    untimed = False
    damage = known
    time_base = None
    try:
        for frame in checked_frames(path):
            untimed |= frame.pts is None
            ticks.append(0 if frame.pts is None else frame.pts)
            time_base = frame.time_base
            pulse(len(ticks))
            _require_count(path, len(ticks), limits)
    except VideoError as error:
        if not limits.keep_good_prefix or not ticks or error.frame is None:
            raise
        damage = error
    if not ticks:
        raise damage or VideoError(
            "a video with at least one frame", f"{path} of which none can be decoded", "check it"
        )
    if untimed or time_base is None:
        return count_at_rate(len(ticks), fps), damage
    return FrameIndex(np.array(ticks, np.int64), time_base, True, np.zeros(1, np.int64)), damage


def _choose_decoder(
    container: Any, stream: Any, first: Any, scan: PacketScan, upright: bool, limits: Limits
) -> tuple[Literal["decord", "pyav"], str]:
    if limits.decoder == "pyav":
        return "pyav", "settings say pyav"
    unfit = _unfit_for_decord(container, stream, first, scan, upright)
    if unfit is None:
        return "decord", "settings say decord" if limits.decoder == "decord" else "clean packets, exact with decord"
    return "pyav", unfit


def _unfit_for_decord(container: Any, stream: Any, first: Any, scan: PacketScan, upright: bool) -> str | None:
    codec = stream.codec_context
    if codec.name not in DECORD_CODECS:
        return f"codec {codec.name} is not {' or '.join(DECORD_CODECS)}"
    if "mpegts" in container.format.name:
        return "MPEG-TS"
    if not any(name in container.format.name for name in DECORD_CONTAINERS):
        return f"container {container.format.name}"
    if first.format.name != "yuv420p":
        return f"pixel format {first.format.name}"
    if first.color_range == 2:  # full range under a limited-range name
        return "full colour range"
    if first.interlaced_frame:
        return "interlaced"
    if may_be_interlaced(bytes(codec.extradata or b"")):
        return "frames that may be interlaced"
    if first.width < 32 or first.height < 32:
        return f"tiny size {first.width}x{first.height}"
    if first.width % 2 or first.height % 2:
        return f"odd size {first.width}x{first.height}"
    if stream.frames > scan.packets:
        return f"an edit list that hides {stream.frames - scan.packets} frames"
    for count, what in (
        (scan.discards, "discarded packets"),
        (scan.leading, "leading packets"),
        (scan.unclear, "untimed packets"),
        (scan.changes, "changes of parameters"),
    ):
        if count:
            return f"{count} {what}"
    if not upright:
        return "rotated or mirrored"
    if sys.platform != "linux":
        return f"decord is read on Linux only, this is {sys.platform}"
    if find_spec("decord") is None:
        return "decord is not installed"
    return None


def _average_rate(stream: Any, scan: PacketScan) -> float:
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if fps <= 0 and len(scan.pts) > 1:
        fps = float((len(scan.pts) - 1) / ((scan.pts[-1] - scan.pts[0]) * scan.time_base))
    return fps if fps > 0 else 25.0
