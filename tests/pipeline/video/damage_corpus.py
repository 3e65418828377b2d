"""Damaged videos: each kind made from a good one of the corpus, and the reason for which it must be refused."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .corpus import FRAMES, H264, HEVC, SOURCE, make_good, run_ffmpeg

Break = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Damaged:
    """A damaged file.

    Args:
        base: good file that is broken, or a function that makes the whole file.
        break_it: bytes of the good file to bytes of the damaged one.
        reason: regular expression that the refusal matches.
        prefix: (fewest, most) frames that may be kept; None where nothing can be.
    """

    base: str | Callable[[Path], None]
    break_it: Break | None
    reason: str
    prefix: tuple[int, int] | None = None


def cut(share: float, align: int = 1, more: int = 0) -> Break:
    """Keep the first `share` of the bytes, at a multiple of `align`, and `more`."""
    return lambda data: data[: int(len(data) * share) // align * align + more]


def _media(data: bytes) -> tuple[int, int]:
    """First and last byte of an mp4's media."""
    at = data.index(b"mdat")
    return at + 4, at - 4 + struct.unpack(">I", data[at - 4 : at])[0]


def noise(start: float, length: int, seed: int = 1) -> Break:
    """Random bytes over part of the media (an mp4's mdat, else the whole file)."""

    def break_it(data: bytes) -> bytes:
        first, last = _media(data) if b"mdat" in data else (0, len(data))
        at = first + int((last - first) * start)
        junk = np.random.default_rng(seed).integers(0, 256, length, np.uint8).tobytes()
        return data[:at] + junk[: last - at] + data[min(at + length, last) :]

    return break_it


def zeros(start: float, length: int) -> Break:
    """Zero bytes over part of the media: a hole that a copy left."""

    def break_it(data: bytes) -> bytes:
        first, last = _media(data) if b"mdat" in data else (0, len(data))
        at = first + int((last - first) * start)
        return data[:at] + bytes(length) + data[at + length :]

    return break_it


def no_index(data: bytes) -> bytes:
    """An mp4 without its moov."""
    return data[: data.index(b"moov") - 4]


def _ts(data: bytes) -> list[bytes]:
    return [data[at : at + 188] for at in range(0, len(data), 188)]


def lose_packets(first: float, count: int) -> Break:
    """Some MPEG-TS packets never arrived."""

    def break_it(data: bytes) -> bytes:
        packets = _ts(data)
        at = int(len(packets) * first)
        return b"".join(packets[:at] + packets[at + count :])

    return break_it


def lose_video_packet(data: bytes) -> bytes:
    """One MPEG-TS packet from the middle of a picture never arrived."""
    packets = _ts(data)
    inside = [
        n
        for n, packet in enumerate(packets)
        if packet[1] & 0x5F == 0x01 and packet[2] == 0x00 and n > len(packets) // 2  # PID 0x100, no start of a unit
    ]
    return b"".join(packets[: inside[0]] + packets[inside[0] + 1 :])


def repeat_packets(first: float, count: int) -> Break:
    """Some MPEG-TS packets arrived twice, as a block."""

    def break_it(data: bytes) -> bytes:
        packets = _ts(data)
        at = int(len(packets) * first)
        return b"".join(packets[: at + count] + packets[at:])

    return break_it


def fewer_samples(data: bytes) -> bytes:
    """An mp4 index whose sample sizes are wrong from frame 20 on."""
    at = data.index(b"stsz") + 16  # after the name, version and flags, and the common size, the number comes
    (count,) = struct.unpack(">I", data[at - 4 : at])
    sizes = list(struct.unpack(f">{count}I", data[at : at + 4 * count]))
    sizes[20:] = [size + 7 for size in sizes[20:]]
    return data[:at] + struct.pack(f">{count}I", *sizes) + data[at + 4 * count :]


def wrong_offsets(data: bytes) -> bytes:
    """An mp4 index whose chunks lie elsewhere."""
    at = data.index(b"stco") + 8
    (count,) = struct.unpack(">I", data[at : at + 4])
    offsets = struct.unpack(f">{count}I", data[at + 4 : at + 4 + 4 * count])
    moved = struct.pack(f">{count}I", *(offset + 11 for offset in offsets))
    return data[: at + 4] + moved + data[at + 4 + 4 * count :]


def other_size(options: str) -> Callable[[Path], None]:
    """Two encodings of different size in one stream."""

    def make(path: Path) -> None:
        parts = []
        for size in ("96x64", "64x48"):
            part = path.with_name(f"{path.stem}-{size}.ts")
            run_ffmpeg(
                f"ffmpeg -v error -y -f lavfi -i {SOURCE.format(size=size)} {options} -frames:v {FRAMES} {{part}}",
                part=part,
            )
            parts.append(part)
        joined = path.with_name(f"{path.stem}-joined.ts")
        listing = path.with_name(f"{path.stem}.txt")
        listing.write_text("".join(f"file {part.name}\n" for part in parts))
        run_ffmpeg("ffmpeg -v error -y -f concat -safe 0 -i {listing} -c copy {joined}", listing=listing, joined=joined)
        run_ffmpeg("ffmpeg -v error -y -i {joined} -c copy {path}", joined=joined, path=path)

    return make


def audio_only(path: Path) -> None:
    """A tone."""
    run_ffmpeg("ffmpeg -v error -y -f lavfi -i sine=440 -t 1 -c:a aac {path}", path=path)


NOT_WHOLE = "damaged packet|declares|index is missing|truncated|damage|breaks|undamaged"
DAMAGED: Mapping[str, Damaged] = {
    "cut.mp4": Damaged("h264.mp4", cut(0.6), "index is missing or damaged"),
    "cut_faststart.mp4": Damaged("h264_faststart.mp4", cut(0.6), "damaged packets", (8, 30)),
    "cut_fragmented.mp4": Damaged("fragmented.mp4", cut(0.6), NOT_WHOLE),
    "cut.mkv": Damaged("h264.mkv", cut(0.6), "as the file declares|File ended", (8, 30)),
    "cut.webm": Damaged("vp9.webm", cut(0.6), "as the file declares|File ended", (8, 30)),
    "cut_live.webm": Damaged("live.webm", cut(0.6), "File ended", (8, 30)),
    "cut.mov": Damaged("h264.mov", cut(0.6), "index is missing or damaged"),
    "cut.avi": Damaged("mpeg4.avi", cut(0.6), NOT_WHOLE, (8, 30)),
    "cut.flv": Damaged("h264.flv", cut(0.6), NOT_WHOLE),
    "cut_in_packet.ts": Damaged("h264_b.ts", cut(0.6, 188, 77), "MPEG-TS packets of 188 bytes", (8, 30)),
    "cut_between_packets.ts": Damaged("h264_b.ts", cut(0.6, 188), "damage", (8, 30)),
    "no_moov.mp4": Damaged("h264.mp4", no_index, "index is missing or damaged"),
    "middle.mp4": Damaged("h264.mp4", noise(0.5, 600), "damage", (6, 20)),
    "middle_hevc.mp4": Damaged("hevc.mp4", noise(0.5, 600), "damage", (6, 20)),
    "middle_vp9.mp4": Damaged("vp9.mp4", noise(0.5, 1500), "damage", (6, 20)),
    "middle_av1.mp4": Damaged("av1.mp4", noise(0.5, 1500), "damage", (6, 24)),
    "middle.mkv": Damaged("h264.mkv", noise(0.5, 600), "damage", (6, 20)),
    "middle.ts": Damaged("h264_b.ts", noise(0.5, 600), "damage", (6, 20)),
    "middle.avi": Damaged("mpeg4.avi", noise(0.5, 1500), "damage", (6, 20)),
    "middle_444.mp4": Damaged("h264_444.mp4", noise(0.5, 600), "damage", (6, 20)),
    "first_keyframe.mp4": Damaged("h264.mp4", noise(0.04, 200), "damage"),
    "lost_packets.ts": Damaged("h264_b.ts", lose_packets(0.5, 3), "damage", (6, 20)),
    "lost_one_packet.ts": Damaged("hevc.ts", lose_video_packet, "damage", (6, 20)),
    "repeated_packets.ts": Damaged("h264_b.ts", repeat_packets(0.5, 40), "damage", (6, 22)),
    "repeated_sixteen.ts": Damaged("h264_b.ts", repeat_packets(0.5, 16), "damage", (6, 22)),
    "zeroed.mp4": Damaged("h264.mp4", zeros(0.5, 1500), "damage", (6, 20)),
    "zeroed.mkv": Damaged("h264.mkv", zeros(0.5, 1500), "damage|declares", (6, 20)),
    "sizes_lie.mp4": Damaged("h264.mp4", fewer_samples, "damage", (10, 21)),
    "offsets_lie.mp4": Damaged("h264.mp4", wrong_offsets, "damage|unreadable|readable|can be decoded"),
    "two_sizes.mp4": Damaged(other_size(H264), None, "frames of 96x64 yuv420p throughout", (36, 36)),
    "two_sizes.mkv": Damaged(other_size(H264), None, "frames of 96x64 yuv420p throughout", (36, 36)),
    "two_sizes.ts": Damaged(other_size(H264), None, "frames of 96x64 yuv420p throughout", (36, 36)),
    "two_sizes_hevc.mp4": Damaged(
        other_size(f"{HEVC} -pix_fmt yuv420p"), None, "frames of 96x64 yuv420p throughout", (34, 36)
    ),
    "audio.mp4": Damaged(audio_only, None, "a file with a video stream"),
    "empty.mp4": Damaged(lambda path: path.touch(), None, "an empty file"),
    "text.mp4": Damaged(lambda path: path.write_text("no video\n" * 50) and None, None, "a readable video"),
}


def make_damaged(name: str, folder: Path) -> tuple[Path, Path | None]:
    """Make one damaged file; returns it and the good file that it was made from."""
    damaged, path = DAMAGED[name], folder / name
    if not isinstance(damaged.base, str):
        damaged.base(path)
        return path, None
    good_folder = folder / "good"
    good_folder.mkdir(exist_ok=True)
    good = good_folder / damaged.base
    if not good.exists():
        make_good(damaged.base, good_folder)
    if damaged.break_it is None:
        shutil.copy(good, path)
    else:
        path.write_bytes(damaged.break_it(good.read_bytes()))
    return path, good
