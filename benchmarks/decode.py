"""Decoding: memory under a slow consumer, and frames per second of decord, PyAV and plain ffmpeg on the same file.

    .venv/bin/python benchmarks/decode.py                 # 3,000 frames of 1080p at 100 ms each: ten minutes
    .venv/bin/python benchmarks/decode.py --frames 300 --delay-ms 10

Memory is the resident set of the decoding process (the ring's pages are in it), sampled while a consumer takes one
frame every --delay-ms: its peak, and what it grew from the first quarter to the last. Rates are read to the end as fast
as possible, three times in turn; the median counts. ffmpeg decodes to rgb24 with one thread and throws the frames away.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.settings import DecodeSettings
from pipeline.video.probe import VideoInfo, probe_video
from pipeline.video.stream import FrameStream

RUNS = 3


def write_film(path: Path, frames: int) -> None:
    """1080p H.264 at 30 frames/s: a pattern that moves over noise, so that no frame is cheap to decode."""
    import av

    rng = np.random.default_rng(0)
    tile = rng.integers(0, 60, (1080, 1920 + 64, 3), np.uint8)
    tile[:, ::64] += 120
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for index in range(frames):
            at = index % 64
            picture = np.ascontiguousarray(tile[:, at : at + 1920])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def resident_mb(pid: int | None, field: str = "VmRSS") -> float:
    """A line of /proc/PID/status, MB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return float(status.partition(f"{field}:")[2].split()[0]) * 1024 / 1e6 if f"{field}:" in status else 0.0


def memory(info: VideoInfo, settings: DecodeSettings, delay_seconds: float) -> tuple[float, float, float]:
    """Peak, growth and address space of the decoding process while its consumer is slow, MB."""
    samples, space = [], 0.0
    with FrameStream(info, settings, resize=1024) as stream:
        for _ in stream:
            time.sleep(delay_seconds)
            if (now := resident_mb(stream.child_pid)) > 0:
                samples.append(now)
                space = max(space, resident_mb(stream.child_pid, "VmPeak"))
    quarter = max(1, len(samples) // 4)
    first, last = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    return max(samples), statistics.median(last) - statistics.median(first), space


def product_rate(info: VideoInfo, settings: DecodeSettings) -> float:
    """Frames per second of a whole `FrameStream`, start of the process included."""
    started = time.perf_counter()
    with FrameStream(info, settings) as stream:
        count = sum(1 for _ in stream)
    return count / (time.perf_counter() - started)


def ffmpeg_rate(path: Path, frames: int) -> float:
    """Frames per second of the ffmpeg of the system, to rgb24 and /dev/null; one thread decodes."""
    command = ["ffmpeg", "-v", "error", "-y", "-threads", "1", "-i", str(path), "-fps_mode", "passthrough"]
    started = time.perf_counter()
    subprocess.run([*command, "-pix_fmt", "rgb24", "-f", "rawvideo", os.devnull], check=True)
    return frames / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="a file to read instead of a synthetic one")
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument(
        "--rate-frames", type=int, default=600, help="frames of the synthetic file that rates are read from"
    )
    parser.add_argument("--delay-ms", type=float, default=100.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        slow = fast = args.video
        if args.video is None:
            slow, fast = Path(folder) / "slow.mp4", Path(folder) / "fast.mp4"
            write_film(slow, args.frames)
            write_film(fast, min(args.rate_frames, args.frames))
        lines = ["| decoder | peak MB | growth MB | address space MB | frames/s |", "|---|---|---|---|---|"]
        decoders = [DecodeSettings(decoder=name) for name in ("decord", "pyav")]  # type: ignore[arg-type]
        rates: dict[str, list[float]] = {}
        for _ in range(RUNS):
            for settings in decoders:
                rates.setdefault(settings.decoder, []).append(product_rate(probe_video(fast, settings), settings))
            if shutil.which("ffmpeg"):
                rates.setdefault("ffmpeg", []).append(ffmpeg_rate(fast, probe_video(fast, decoders[1]).num_frames))
        for settings in decoders:
            peak, growth, space = memory(probe_video(slow, settings), settings, args.delay_ms / 1000)
            rate = statistics.median(rates[settings.decoder])
            lines.append(f"| {settings.decoder} | {peak:.0f} | {growth:+.1f} | {space:.0f} | {rate:.0f} |")
        if "ffmpeg" in rates:
            lines.append(f"| ffmpeg, one thread | | | | {statistics.median(rates['ffmpeg']):.0f} |")
        started = time.perf_counter()
        probe_video(fast, decoders[1])
        lines.append(f"\nprobe: {time.perf_counter() - started:.2f} s, its process included")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
