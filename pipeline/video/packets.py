"""One pass over a container's packets, nothing decoded: counts, times, keyframes, and what speaks of damage."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.errors import VideoError
from pipeline.video.containers import open_container
from pipeline.video.damage import AGAIN

ENTRY_NALS = {"h264": range(5, 6), "hevc": range(16, 24)}  # IDR; IRAP, whose leading pictures are counted apart
SEEKABLE = ("mov", "matroska")
TS_SYNC, TS_PACKET_BYTES = 0x47, (188, 192, 204)


@dataclass
class PacketScan:
    """What the packets of one video stream say.

    Args:
        packets: packets that carry data, discarded ones too.
        discards: packets that the container says to decode and not to show.
        corrupt: packets flagged as damaged.
        leading: packets shown before the keyframe that precedes them (open GOP).
        unclear: packets without a time, or with one seen before.
        changes: keyframes that bring parameters of their own (another size, for example).
        pts: presentation times of the shown packets, sorted, in time_base units.
        entries: times of the keyframes from which decoding may begin.
        last_duration: length of the last packet in time_base units.
    """

    time_base: Fraction
    packets: int = 0
    discards: int = 0
    corrupt: int = 0
    leading: int = 0
    unclear: int = 0
    changes: int = 0
    last_duration: int = 0
    pts: list[int] = field(default_factory=list)
    entries: array[int] = field(default_factory=lambda: array("q"))


def video_stream(container: Any) -> Any | None:
    """First video stream that is no cover picture, or None."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def scan_packets(
    container: Any, stream: Any, pulse: Callable[[int], None] = lambda packets: None, limit: int | None = None
) -> PacketScan:
    """Demux `stream` from where the container stands to its end.

    Args:
        pulse: called with the number of packets so far.
        limit: stop after more shown packets than this.
    """
    codec, extradata = stream.codec_context.name, bytes(stream.codec_context.extradata or b"")
    scan = PacketScan(Fraction(stream.time_base or 1))
    seen: set[int] = set()
    keyframe_pts: int | None = None
    for packet in container.demux(stream):
        if packet.size == 0:
            continue  # the flush packet at the end
        scan.packets += 1
        pulse(scan.packets)
        scan.corrupt += packet.is_corrupt
        if packet.is_discard:
            scan.discards += 1
        elif packet.pts is None or packet.pts in seen:
            scan.unclear += 1
        else:
            scan.pts.append(packet.pts)
            seen.add(packet.pts)
            scan.last_duration = packet.duration or scan.last_duration
        if packet.is_keyframe:
            nals = list(nal_units(bytes(packet), extradata, codec)) if codec in ENTRY_NALS else []
            if codec == "h264":
                scan.changes += any(nal[0] & 31 == 7 and nal not in extradata for nal in nals)
            scan.changes += packet.has_sidedata("new_extradata") and scan.packets > 1
            if packet.pts is not None and _may_begin(codec, nals):
                scan.entries.append(packet.pts)
        if packet.pts is not None:
            if packet.is_keyframe:
                keyframe_pts = packet.pts
            elif keyframe_pts is not None and packet.pts < keyframe_pts:
                scan.leading += 1
        if limit is not None and scan.packets - scan.discards > limit:
            break
    scan.pts.sort()
    return scan


def nal_units(data: bytes, extradata: bytes, codec: str) -> Iterator[bytes]:
    """NAL units of an H.264 or HEVC packet, whether prefixed by their length (mp4, mkv) or by start codes."""
    if extradata[:1] == b"\x01":
        prefix = extradata[21 if codec == "hevc" else 4] % 4 + 1
        at = 0
        while at + prefix < len(data):
            size = int.from_bytes(data[at : at + prefix], "big")
            unit = data[at + prefix : at + prefix + size]
            if unit:
                yield unit
            at += prefix + size
    else:
        for unit in data.split(b"\x00\x00\x01")[1:]:
            if unit.rstrip(b"\x00"):
                yield unit.rstrip(b"\x00")


def _may_begin(codec: str, nals: list[bytes]) -> bool:
    if codec == "h264":
        return any(nal[0] & 31 in ENTRY_NALS[codec] for nal in nals)
    if codec == "hevc":
        return any(nal[0] >> 1 & 63 in ENTRY_NALS[codec] for nal in nals)
    return codec in ("vp8", "vp9")


def is_countable(container: Any, codec: str, scan: PacketScan) -> bool:
    """Whether one packet is one shown frame: VP8 hides some, MPEG streams split fields, leading ones can vanish."""
    split = any(name in container.format.name for name in ("mpegts", "mpeg"))
    return not (scan.unclear or scan.leading or codec == "vp8" or split)


def has_exact_seek(container: Any, stream: Any, scan: PacketScan) -> bool:
    """Whether a seek to an entry gives that very frame and everything after it."""
    container_can = any(name in container.format.name for name in SEEKABLE)
    as_declared = stream.frames in (0, scan.packets)
    return container_can and as_declared and not (scan.unclear or scan.leading or scan.discards or scan.changes)


def find_damage(
    path: Path, container: Any, stream: Any, scan: PacketScan, pulse: Callable[[int], None]
) -> VideoError | None:
    """What the container itself contradicts: damaged packets, fewer packets than declared, an early end."""
    if scan.corrupt:
        got = f"{path} with {scan.corrupt} damaged packets (a truncated copy?)"
        return VideoError("an undamaged video", got, AGAIN, path=path)
    if stream.frames > 0:
        if stream.frames != scan.packets and stream.frames != _packets_behind_edits(path, pulse):
            expected, got = f"{stream.frames} frames as the file declares", f"{scan.packets} in {path}"
            return VideoError(expected, f"{got} (a truncated copy?)", AGAIN, path=path, frames=scan.packets)
        return None  # the declared length may cover what an edit list hides
    if "mpegts" in container.format.name:
        return _cut_transport_stream(path)
    declared_seconds, slack_frames = declared_end(container, stream)
    if declared_seconds is not None and scan.pts:
        end_seconds = float((scan.pts[-1] + scan.last_duration) * scan.time_base)
        slack_seconds = slack_frames / float(stream.average_rate or 10)
        if end_seconds < declared_seconds - slack_seconds:
            got = f"an end after {end_seconds:.2f} s in {path} (a truncated copy?)"
            return VideoError(f"{declared_seconds:.2f} s as the file declares", got, AGAIN, path=path)
    return None


def _packets_behind_edits(path: Path, pulse: Callable[[int], None]) -> int:
    """Number of packets with an mp4's edit list ignored, which hides some from the usual count."""
    with open_container(path, {"ignore_editlist": "1"}) as container:
        count = 0
        for packet in container.demux(video_stream(container)):
            count += packet.size > 0
            pulse(count)
        return count


def declared_end(container: Any, stream: Any) -> tuple[float | None, float]:
    """Declared end of the video stream in seconds, and the frames by which the last packet may fall short of it.

    Matroska has a tag per stream, exact; the whole container's length counts only where no other stream can be longer.
    """
    parts = stream.metadata.get("DURATION", "").split(":")
    if len(parts) == 3:
        try:
            hours, minutes, seconds = map(float, parts)
        except ValueError:
            return None, 0.0
        return 3600 * hours + 60 * minutes + seconds, 1.5
    if container.duration is not None and len(container.streams) == 1 and "mpegts" not in container.format.name:
        return float(container.duration + max(container.start_time or 0, 0)) / 1e6, 8.0
    return None, 0.0


def _cut_transport_stream(path: Path) -> VideoError | None:
    """An MPEG-TS whose last packet is not whole was cut off while it was copied or recorded."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
    for length in TS_PACKET_BYTES:
        start = 4 if length == 192 else 0
        syncs = head[start::length]
        if len(syncs) > 1 and set(syncs) == {TS_SYNC}:
            if size % length:
                got = f"{path}, whose last one has {size % length} (a truncated copy?)"
                return VideoError(f"MPEG-TS packets of {length} bytes", got, AGAIN, path=path)
            return None
    return None
