"""What happens to a video with one wrong byte: found, harmless, or silently wrong; as a script it prints a table.

`python tests/pipeline/video/flips.py [FLIPS]` takes minutes for 200 flips a file. Each flip changes one random byte
anywhere in the file; the product's own probe and readers judge it, in one process per file whose stderr is a file, as
it is in the decoding process.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

FILES = {
    "h264": "h264.mp4",
    "h264_intra": "h264_intra.mp4",
    "hevc": "hevc.mp4",
    "vp8": "vp8.webm",
    "vp9": "vp9.webm",
    "av1": "av1.mp4",
    "h264_ts": "h264_b.ts",
    "hevc_hash": "hevc.mkv",
}
OUTCOMES = ("found", "harmless", "silent")


def measure(path: Path, decoder: str, flips: int, seed: int = 0) -> dict[str, int]:
    """Count the outcomes of `flips` single wrong bytes; must run in a process whose stderr is a file."""
    from pipeline.errors import VideoError
    from pipeline.video.decord import read_decord
    from pipeline.video.inspect import inspect_video
    from pipeline.video.job import Job
    from pipeline.video.probe import Limits
    from pipeline.video.pyav import read_pyav

    limits = Limits(decoder, False, 8192, 8192, 36_000_000, 1_000_000, 86_400.0)

    def frames(one: Path) -> list[bytes]:
        info = inspect_video(one, limits, lambda count: None)
        job = Job(
            one, info.decoder, info.num_frames, info.fps, info.rotation, info.mirrored, info.height, info.width, False,
            info.index, 0, None, 2,
        )  # fmt: skip
        reader = read_decord if info.decoder == "decord" else read_pyav
        return [rgb.tobytes() for _, _, rgb in reader(job) if rgb is not None]

    good, data, rng = frames(path), path.read_bytes(), np.random.default_rng(seed)
    counts = dict.fromkeys(OUTCOMES, 0)
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / path.name
        for _ in range(flips):
            changed = bytearray(data)
            changed[rng.integers(len(data))] ^= int(rng.integers(1, 256))
            broken.write_bytes(changed)
            try:
                counts["harmless" if frames(broken) == good else "silent"] += 1
            except VideoError:
                counts["found"] += 1
    return counts


def measure_apart(path: Path, decoder: str, flips: int) -> dict[str, int]:
    """`measure` in a process of its own."""
    import subprocess

    code = f"import sys; sys.path[:] = {[*sys.path, str(Path(__file__).parent)]!r}; import flips, json, pathlib\n"
    code += f"print(json.dumps(flips.measure(pathlib.Path({str(path)!r}), {decoder!r}, {flips})))"
    with tempfile.TemporaryFile() as stderr:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr, check=False)
        if done.returncode:
            stderr.seek(0)
            raise RuntimeError(stderr.read()[-2000:].decode(errors="replace"))
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


def main() -> None:
    """Print the table."""
    from corpus import make_good  # type: ignore[import-not-found]

    flips = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    sys.stdout.write("| file | decoder | found | harmless | silently wrong |\n|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES.values():
            path = make_good(name, Path(folder))
            for decoder in ("decord", "pyav") if name in ("h264.mp4", "h264_intra.mp4") else ("pyav",):
                counts = measure_apart(path, decoder, flips)
                shares = " | ".join(f"{100 * counts[one] / flips:.1f}%" for one in OUTCOMES)
                sys.stdout.write(f"| {name} | {decoder} | {shares} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
