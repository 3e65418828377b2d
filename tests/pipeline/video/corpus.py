"""Videos of every kind that users bring, good and damaged, made with Debian's ffmpeg."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAMES = 36
SOURCE = "testsrc2=size={size}:rate=25,noise=alls=10:all_seed=7:allf=t"
# What a good file's frames are compared with. No frame is added or dropped for the sake of a rate; rotation and flips
# are applied as FFmpeg does on its own; matrix and range are the file's own (BT.601 where it names none); chroma is
# bicubic, field by field in interlaced frames.
REFERENCE = (
    "ffmpeg -v error -threads 1 -autorotate 1 -i {path} -map 0:v:0 -fps_mode passthrough "
    "-vf scale=flags=bicubic:interl=-1:in_color_matrix=auto:in_range=auto:out_range=full{siting} "
    "-pix_fmt rgb24 -f rawvideo -"
)
# Where chroma lies in 10-bit 4:2:0, which this ffmpeg does not read from the file: beside the left luma sample.
LEFT_SITED = ":in_h_chr_pos=0:in_v_chr_pos=128"
# Greatest and mean difference in grey levels. Versions of swscale round formats besides 8-bit 4:2:0 in their own ways.
EXACT, ROUNDED = (0, 0.0), (2, 0.5)

H264 = "-c:v libx264 -pix_fmt yuv420p -preset fast -g 12"
HEVC = "-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=12"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 400k -g 12"
AV1 = "-c:v libaom-av1 -cpu-used 8 -usage realtime -b:v 400k -g 12"
AUDIO = "-f lavfi -i sine=440:sample_rate=16000"


@dataclass(frozen=True)
class Good:
    """How a good file is made, and how exactly its frames are known.

    Args:
        options: of ffmpeg, after the source.
        size: of the source in px.
        frames: number of source frames.
        inputs: more inputs.
        bound: (greatest, mean) difference from the reference in grey levels.
        siting: more options of the reference's scaler.
        times_shift: whether the container stores no presentation times, and versions of FFmpeg guess them with another
            start.
        finish: what is done to the finished file.
    """

    options: str
    size: str = "96x64"
    frames: int = FRAMES
    inputs: str = ""
    bound: tuple[int, float] = EXACT
    siting: str = ""
    times_shift: bool = False
    finish: Callable[[Path], None] | None = None


def oriented(a: int, b: int, c: int, d: int) -> Callable[[Path], None]:
    """Write the matrix (a b; c d) into an mp4's track header: x' = a x + c y, y' = b x + d y."""

    def finish(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes from version and flags to the matrix
        values = [a, b, 0, c, d, 0, 0, 0, 1]
        fixed = [value << (30 if place % 3 == 2 else 16) for place, value in enumerate(values)]
        data[at : at + 36] = struct.pack(">9i", *fixed)
        path.write_bytes(data)

    return finish


def shortened_edit(path: Path) -> None:
    """Make an mp4's edit list show half of its media."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    (length,) = struct.unpack(">I", data[at : at + 4])
    data[at : at + 4] = struct.pack(">I", length // 2)
    path.write_bytes(data)


GOOD: Mapping[str, Good] = {
    "h264.mp4": Good(H264),
    "h264_faststart.mp4": Good(f"{H264} -movflags faststart"),
    "h264_no_b.mp4": Good(f"{H264} -bf 0"),
    "h264_pyramid.mp4": Good(f"{H264} -bf 8 -x264-params b-pyramid=normal:b-adapt=0"),
    "h264_intra.mp4": Good("-c:v libx264 -pix_fmt yuv420p -g 1"),
    "h264_open_gop.mp4": Good(f"{H264} -bf 3 -x264-params open-gop=1:b-adapt=0:scenecut=0"),
    "h264_open_gop.mkv": Good(f"{H264} -bf 3 -x264-params open-gop=1:b-adapt=0:scenecut=0"),
    "h264.mkv": Good(H264),
    "h264.mov": Good(H264),
    "h264.ts": Good(f"{H264} -bf 0"),
    "h264_b.ts": Good(f"{H264} -bf 3"),
    "h264_open_gop.ts": Good(f"{H264} -bf 3 -x264-params open-gop=1:b-adapt=0"),
    "h264.flv": Good(H264),
    "h264_no_b.avi": Good(f"{H264} -bf 0", times_shift=True),
    "h264_slices.mp4": Good(f"{H264} -x264-params slices=4"),
    "h264_refresh.mp4": Good(f"{H264} -x264-params intra-refresh=1 -bf 0"),
    "fragmented.mp4": Good(f"{H264} -movflags frag_keyframe+empty_moov+default_base_moof"),
    "edit_list.mp4": Good(f"{H264} -bf 0", finish=shortened_edit),
    "edit_list_b.mp4": Good(f"{H264} -bf 3", finish=shortened_edit),
    "rotated_90.mp4": Good(H264, finish=oriented(0, 1, -1, 0)),
    "rotated_180.mp4": Good(H264, finish=oriented(-1, 0, 0, -1)),
    "rotated_270.mp4": Good(H264, finish=oriented(0, -1, 1, 0)),
    "hflip.mp4": Good(H264, finish=oriented(-1, 0, 0, 1)),
    "vflip.mp4": Good(H264, finish=oriented(1, 0, 0, -1)),
    "transposed.mp4": Good(H264, finish=oriented(0, 1, 1, 0)),
    "antitransposed.mp4": Good(H264, finish=oriented(0, -1, -1, 0)),
    "vfr.mp4": Good(f"-vf select=not(mod(n\\,3))+not(mod(n\\,5)) -fps_mode passthrough {H264}"),
    "vfr.mkv": Good(f"-vf select=not(mod(n\\,3))+not(mod(n\\,5)) -fps_mode passthrough {H264}"),
    "late_start.mp4": Good(f"{H264} -output_ts_offset 5"),
    "late_start.mkv": Good(f"{H264} -output_ts_offset 5"),
    "late_start.ts": Good(f"{H264} -output_ts_offset 5"),
    "with_audio.mp4": Good(f"{H264} -c:a aac -shortest", inputs=AUDIO),
    "with_audio.mkv": Good(f"{H264} -c:a aac -shortest", inputs=AUDIO),
    "with_audio.ts": Good(f"{H264} -c:a aac -shortest", inputs=AUDIO),
    "one_frame.mp4": Good(H264, frames=1),
    "one_frame.mkv": Good(H264, frames=1),
    "one_frame.webm": Good(VP9, frames=1),
    "one_frame.ts": Good(H264, frames=1),
    "bt709.mp4": Good(f"{H264} -colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv"),
    "bt601.mp4": Good(f"{H264} -colorspace smpte170m -color_range tv"),
    "full_range.mp4": Good(f"{H264} -color_range pc", bound=ROUNDED),
    "full_range_bt709.mp4": Good(f"{H264} -color_range pc -colorspace bt709", bound=ROUNDED),
    "h264_10bit.mp4": Good("-c:v libx264 -pix_fmt yuv420p10le -g 12", bound=ROUNDED, siting=LEFT_SITED),
    "h264_422.mp4": Good("-c:v libx264 -pix_fmt yuv422p -g 12", bound=ROUNDED),
    "h264_444.mp4": Good("-c:v libx264 -pix_fmt yuv444p -g 12", bound=ROUNDED),
    "h264_444_odd.mp4": Good("-c:v libx264 -pix_fmt yuv444p -g 12", size="97x63", bound=ROUNDED),
    "h264_rgb.mp4": Good("-c:v libx264rgb -pix_fmt rgb24 -g 12"),
    "gray.mp4": Good("-c:v libx264 -pix_fmt gray -g 12", bound=ROUNDED),
    "interlaced.mp4": Good(f"{H264} -flags +ilme+ildct -x264-params tff=1"),
    "interlaced.ts": Good(f"{H264} -flags +ilme+ildct -x264-params tff=1"),
    "interlaced_mpeg2.ts": Good("-c:v mpeg2video -pix_fmt yuv420p -flags +ilme+ildct -b:v 2M -g 12 -bf 2"),
    "tiny.mp4": Good(H264, size="16x16"),
    "hevc.mp4": Good(f"{HEVC}:open-gop=0 -pix_fmt yuv420p"),
    "hevc_open_gop.mp4": Good(f"{HEVC}:open-gop=1:bframes=4 -pix_fmt yuv420p"),
    "hevc.mkv": Good(f"{HEVC}:hash=1 -pix_fmt yuv420p"),
    "hevc.ts": Good(f"{HEVC} -pix_fmt yuv420p"),
    "hevc_10bit.mp4": Good(f"{HEVC} -pix_fmt yuv420p10le", bound=ROUNDED, siting=LEFT_SITED),
    "vp8.webm": Good("-c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -b:v 400k -g 12"),
    "vp9.webm": Good(VP9),
    "vp9_alt_ref.webm": Good("-c:v libvpx-vp9 -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 16 -b:v 400k -g 12"),
    "vp9.mp4": Good(VP9),
    "live.webm": Good(f"{VP9} -live 1"),
    "vp9_odd.webm": Good(VP9, size="97x63", bound=ROUNDED),
    "vp9_10bit.webm": Good(f"{VP9} -pix_fmt yuv420p10le -profile:v 2", bound=ROUNDED),
    "av1.mp4": Good(AV1),
    "av1.mkv": Good(AV1),
    "av1_alt_ref.webm": Good("-c:v libaom-av1 -cpu-used 8 -lag-in-frames 16 -b:v 400k -g 12"),
    "mpeg4.avi": Good("-c:v mpeg4 -q:v 4 -g 12"),
    "mpeg4_odd.avi": Good("-c:v mpeg4 -q:v 4 -g 12", size="97x63", bound=ROUNDED),
    "mpeg4_b.mp4": Good("-c:v mpeg4 -q:v 4 -bf 2 -g 12"),
    "mjpeg.avi": Good("-c:v mjpeg -q:v 3", bound=ROUNDED),
    "prores.mov": Good("-c:v prores_ks -pix_fmt yuv422p10le", bound=ROUNDED),
    "mpeg2.mpg": Good("-c:v mpeg2video -b:v 2M -g 12 -bf 2 -f vob"),
}


def have_ffmpeg() -> bool:
    """Whether ffmpeg and ffprobe are there; on Debian as root they are installed when they are not."""
    if shutil.which("ffmpeg") is None and shutil.which("apt-get") and os.geteuid() == 0:
        for command in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "install", "-y", "ffmpeg"]):
            subprocess.run(command, check=False, capture_output=True, timeout=600)
    return shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None


def run_ffmpeg(command: str, **paths: Path) -> bytes:
    """Run a command line whose words may name `paths` in braces; returns its standard output."""
    words = [word.format(**paths) for word in command.split()]
    done = subprocess.run(words, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.decode(errors='replace')[-500:]}")
    return done.stdout


def make_good(name: str, folder: Path) -> Path:
    """Make one good file of `GOOD`."""
    good, path = GOOD[name], folder / name
    source = f"-f lavfi -i {SOURCE.format(size=good.size)}"
    limit = f"-frames:v {good.frames}" if "select" not in good.options else f"-t {good.frames / 25}"
    limit += f" -t {good.frames / 25}" if good.inputs else ""
    command = f"ffmpeg -v error -y {source} {good.inputs} {good.options} {limit} -threads 1"
    run_ffmpeg(command + " {path}", path=path)
    if good.finish:
        good.finish(path)
    return path


def reference_frames(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """(N, H, W, 3) RGB as the reference command gives it."""
    return np.frombuffer(
        run_ffmpeg(REFERENCE.replace("{siting}", GOOD[path.name].siting), path=path), np.uint8
    ).reshape(-1, height, width, 3)


def reference_times(path: Path) -> list[Fraction]:
    """Presentation times in seconds as ffprobe says, exact."""
    import json

    entries = "frame=pts,best_effort_timestamp:stream=time_base"
    command = f"ffprobe -v error -threads 1 -select_streams v:0 -show_entries {entries} -of json {{path}}"
    found: dict[str, Any] = json.loads(run_ffmpeg(command, path=path))
    time_base = Fraction(found["streams"][0]["time_base"])
    return [time_base * int(frame.get("pts", frame.get("best_effort_timestamp"))) for frame in found["frames"]]
