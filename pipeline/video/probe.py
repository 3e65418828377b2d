"""Look at a video without decoding it through: what it is, how many frames, and which decoder is exact for it."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import VideoError

if TYPE_CHECKING:
    from pipeline.settings import DecodeSettings

log = logging.getLogger(__name__)

DECORD_CODECS = ("h264", "vp9")


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


@dataclass
class PacketScan:
    """What the packets of one video stream say, gathered in one pass over the container.

    Args:
        packets: packets that carry data, discarded ones too.
        discards: packets that the container says to decode and not to show.
        corrupt: packets flagged as damaged.
        leading: packets shown before the keyframe that precedes them (open GOP).
        unclear: packets without a time, or with one seen before.
        pts: presentation times of the shown packets, sorted, in time_base units.
        last_duration: length of the last packet in time_base units.
    """

    packets: int
    discards: int
    corrupt: int
    leading: int
    unclear: int
    pts: list[int]
    last_duration: int
    time_base: Fraction


def scan_packets(container: Any, stream: Any) -> PacketScan:
    """Demux `stream` from where the container stands to its end; nothing is decoded."""
    packets = discards = corrupt = leading = unclear = last_duration = 0
    pts: list[int] = []
    seen: set[int] = set()
    keyframe_pts: int | None = None
    for packet in container.demux(stream):
        if packet.size == 0:
            continue  # the flush packet at the end
        packets += 1
        corrupt += packet.is_corrupt
        if packet.is_discard:
            discards += 1
        elif packet.pts is None or packet.pts in seen:
            unclear += 1
        else:
            pts.append(packet.pts)
            seen.add(packet.pts)
            last_duration = packet.duration or last_duration
        if packet.pts is not None:
            if packet.is_keyframe:
                keyframe_pts = packet.pts
            elif keyframe_pts is not None and packet.pts < keyframe_pts:
                leading += 1
    pts.sort()
    return PacketScan(packets, discards, corrupt, leading, unclear, pts, last_duration, Fraction(stream.time_base or 1))


def presentation_times(path: Path) -> list[float]:
    """Exact times of the shown frames in seconds, in order, for a file that `probe_video` found regular."""
    import av

    with av.open(str(path)) as container:
        scan = scan_packets(container, video_stream(container))
    return [float(pts * scan.time_base) for pts in scan.pts]


def video_stream(container: Any) -> Any | None:
    """First video stream that is no cover picture, or None."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def probe_video(path: str | Path, settings: DecodeSettings) -> VideoInfo:
    """Inspect a local video file: demux it once and decode its first frame.

    Args:
        path: local file.
        settings: which decoder is wanted and the largest width, height and number of frames that are accepted.

    Returns:
        VideoInfo; `decoder` is decord only where its sequential reading is known to be exact, PyAV otherwise.

    Raises:
        VideoError: missing or unreadable file, no video stream, no frames, damage or truncation that the container
            shows, too large.
    """
    import av

    path = Path(path)
    _require_file(path)
    try:
        with av.open(str(path)) as container:
            return _probe_container(path, container, settings)
    except av.EOFError as error:
        got = f"{path}, which ends before its first frame"
        raise VideoError("a video with at least one frame", got, "copy or encode it again") from error
    except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
        raise VideoError(
            "a readable video", _describe_unreadable(path, error), "check the file or encode it again"
        ) from error


def _require_file(path: Path) -> None:
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


def _describe_unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return f"{path}, an mp4 whose index is missing or damaged (a truncated copy?)"
    reason = getattr(error, "strerror", None) or str(error)
    return f"{path}, which starts with {head[:8]!r} and is no video that FFmpeg knows ({reason})"


def _probe_container(path: Path, container: Any, settings: DecodeSettings) -> VideoInfo:
    stream = video_stream(container)
    if stream is None:
        kinds = sorted({s.type for s in container.streams})
        if not kinds:
            raise VideoError("a video with at least one frame", f"{path} with 0 streams", "check how the file was made")
        only = f"{' and '.join(kinds)} only" if "audio" in kinds or "subtitle" in kinds else "none (a truncated copy?)"
        raise VideoError("a file with a video stream", f"{path} with {only}", "name a video")
    codec = stream.codec_context
    if codec is None:
        got = f"{path} whose codec is unknown or cut off (a truncated copy?)"
        raise VideoError("a video codec that FFmpeg knows", got, "copy or download it again, or encode it as H.264")
    _require_size(path, codec.width, codec.height, settings)
    scan = scan_packets(container, stream)
    if scan.packets - scan.discards <= 0:
        raise VideoError("a video with at least one frame", f"{path} with 0 frames", "check how the file was made")
    _require_whole(path, container, stream, scan)
    container.seek(0)
    first = _first_frame(path, container, stream)
    rotation = round(first.rotation) % 360
    if rotation % 90:
        raise VideoError("a rotation by a multiple of 90 degrees", f"{path} with {rotation}", "encode it upright")
    decoder, reason = _choose_decoder(container, stream, first, scan, settings)
    num_frames = scan.packets - scan.discards
    if num_frames <= settings.max_frames and not _countable(container, codec.name, scan):
        num_frames = _count_by_decoding(path)
    if num_frames > settings.max_frames:
        raise VideoError(
            f"at most {settings.max_frames} frames",
            f"{num_frames} in {path}",
            "cut the video or raise decode.max_frames",
        )
    width, height = (first.height, first.width) if rotation in (90, 270) else (first.width, first.height)
    fps, duration_seconds = _timing(stream, scan, num_frames)
    return VideoInfo(
        path,
        width,
        height,
        num_frames,
        fps,
        duration_seconds,
        codec.name,
        container.format.name,
        rotation,
        decoder,
        reason,
    )


def _require_size(path: Path, width: int, height: int, settings: DecodeSettings) -> None:
    if width <= 0 or height <= 0:
        raise VideoError("a video with a size", f"{path} of {width}x{height}", "check the file or encode it again")
    if width > settings.max_width or height > settings.max_height:
        raise VideoError(
            f"at most {settings.max_width}x{settings.max_height} pixels",
            f"{width}x{height} in {path}",
            "scale the video down or raise decode.max_width and decode.max_height",
        )


def _require_whole(path: Path, container: Any, stream: Any, scan: PacketScan) -> None:
    """Refuse what the container itself contradicts: damaged packets, fewer packets than declared, an early end."""
    again = "copy or download it again, or encode it again"
    if scan.corrupt:
        raise VideoError("an undamaged video", f"{path} with {scan.corrupt} damaged packets (a truncated copy?)", again)
    if stream.frames > 0:
        if stream.frames != scan.packets and stream.frames != _packets_behind_edits(path):
            expected = f"{stream.frames} frames as the file declares"
            raise VideoError(expected, f"{scan.packets} in {path} (a truncated copy?)", again)
        return  # the declared length may cover what an edit list hides
    declared_seconds, slack_frames = _declared_seconds(container, stream)
    if declared_seconds is not None and scan.pts:
        end_seconds = float((scan.pts[-1] + scan.last_duration) * scan.time_base)
        slack_seconds = slack_frames / float(stream.average_rate or 10)
        if end_seconds < declared_seconds - slack_seconds:
            got = f"an end after {end_seconds:.2f} s in {path} (a truncated copy?)"
            raise VideoError(f"{declared_seconds:.2f} s as the file declares", got, again)


def _packets_behind_edits(path: Path) -> int:
    """Number of packets with an mp4's edit list ignored, which hides some from the usual count."""
    import av

    with av.open(str(path), options={"ignore_editlist": "1"}) as container:
        return sum(packet.size > 0 for packet in container.demux(video_stream(container)))


def _declared_seconds(container: Any, stream: Any) -> tuple[float | None, float]:
    """Declared end of the video stream, and the frames by which the last packet may fall short of it.

    Matroska has a tag per stream, exact; the whole container's length counts only where no other stream can be longer.
    """
    parts = stream.metadata.get("DURATION", "").split(":")
    if len(parts) == 3:
        hours, minutes, seconds = map(float, parts)
        return 3600 * hours + 60 * minutes + seconds, 1.5
    if container.duration is not None and len(container.streams) == 1 and "mpegts" not in container.format.name:
        return float(container.duration + max(container.start_time or 0, 0)) / 1e6, 8.0
    return None, 0.0


def _first_frame(path: Path, container: Any, stream: Any) -> Any:
    for frame in container.decode(stream):
        return frame
    raise VideoError("a video with at least one frame", f"{path} of which none can be decoded", "encode it again")


def _countable(container: Any, codec: str, scan: PacketScan) -> bool:
    """Whether one packet is one shown frame: VP8 hides some, MPEG-TS splits fields, leading ones can vanish."""
    return not (scan.unclear or scan.leading or codec == "vp8" or "mpegts" in container.format.name)


def _count_by_decoding(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video_stream(container)))


def _choose_decoder(
    container: Any, stream: Any, first: Any, scan: PacketScan, settings: DecodeSettings
) -> tuple[Literal["decord", "pyav"], str]:
    unfit = _unfit_for_decord(container, stream, first, scan)
    if settings.decoder == "pyav":
        return "pyav", "settings say pyav"
    if unfit is None:
        return "decord", "settings say decord" if settings.decoder == "decord" else "clean packets, exact with decord"
    if settings.decoder == "decord":
        log.warning("decord is not exact on %s (%s): reading it with PyAV", container.name, unfit)
    return "pyav", unfit


def _unfit_for_decord(container: Any, stream: Any, first: Any, scan: PacketScan) -> str | None:
    codec = stream.codec_context
    if codec.name not in DECORD_CODECS:
        return f"codec {codec.name} is not one of {', '.join(DECORD_CODECS)}"
    if "mpegts" in container.format.name:
        return "MPEG-TS"
    if first.format.name != "yuv420p":
        return f"pixel format {first.format.name}"
    if first.color_range == 2:  # full range under a limited-range name
        return "full colour range"
    if first.width < 32 or first.height < 32:
        return f"tiny size {first.width}x{first.height}"
    if first.width % 2 or first.height % 2:
        return f"odd size {first.width}x{first.height}"
    if stream.frames > scan.packets:
        return f"an edit list that hides {stream.frames - scan.packets} frames"
    for count, what in ((scan.discards, "discarded"), (scan.leading, "leading"), (scan.unclear, "untimed")):
        if count:
            return f"{count} {what} packets"
    if round(first.rotation) % 360:
        return f"rotation {round(first.rotation) % 360}"
    if sys.platform != "linux":
        return f"decord is read on Linux only, this is {sys.platform}"
    if find_spec("decord") is None:
        return "decord is not installed"
    return None


def _timing(stream: Any, scan: PacketScan, num_frames: int) -> tuple[float, float]:
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    seconds = 0.0
    if scan.pts:
        seconds = float((scan.pts[-1] - scan.pts[0] + scan.last_duration) * scan.time_base)
    if fps <= 0:
        fps = num_frames / seconds if seconds > 0 else 25.0
    return fps, seconds if seconds > 0 else num_frames / fps
