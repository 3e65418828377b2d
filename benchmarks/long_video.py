"""A long video at constant memory: `python benchmarks/long_video.py [--video FILE] [--minutes 10] [--objects 1]`.

The clip is looped without re-encoding until it lasts that long, and labelled in a process of its own with the defaults.
Every two seconds the memory of that process and its decoder is read (anonymous and shared, no libraries); the table
gives the peak of each tenth of the run, and what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))

from end_to_end import SHARED, loop_video, synthetic, tree_memory_mib

from pipeline.prompts import load_prompts, prompt_set
from pipeline.settings import load_settings
from pipeline.video.probe import probe_video

CODE = """
import json, sys
from pipeline.label import label_video
from pipeline.settings import load_settings
report = label_video(sys.argv[1], sys.argv[2], sys.argv[3], load_settings())
print(json.dumps({name: getattr(report, name) for name in ("frames", "rows", "accepted", "wall_seconds")}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=SHARED if SHARED.exists() else None)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--objects", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip: Path = args.video or synthetic(folder)
        found = load_prompts(clip.with_name(clip.stem + ".prompts.json"))
        prompts = folder / "long.prompts.json"
        prompts.write_text(prompt_set(found.objects[: args.objects], found.source).to_json())
        video = folder / f"long{clip.suffix}"
        settings = load_settings()
        once = probe_video(clip, settings.decode)
        loop_video(clip, video, math.ceil(60 * args.minutes / once.duration_seconds))
        info = probe_video(video, settings.decode)
        child = subprocess.Popen(
            [sys.executable, "-c", CODE, str(video), str(prompts), str(folder / "out")], stdout=subprocess.PIPE
        )
        started, samples = time.monotonic(), list[tuple[float, float]]()
        while child.poll() is None:
            samples.append((time.monotonic() - started, tree_memory_mib(child.pid)))
            time.sleep(2)
        if child.returncode:
            sys.exit(f"labelling failed with exit code {child.returncode}")
        assert child.stdout is not None
        report = json.loads(child.stdout.read())
    wall = samples[-1][0]
    table = Table(
        title=f"{clip.name} looped to {info.duration_seconds:.0f} s, {info.width}x{info.height}: "
        f"{args.objects} objects, {report['frames']} frames, {report['rows']} rows, "
        f"{report['frames'] / report['wall_seconds']:.1f} frames/s"
    )
    table.add_column("tenth of the run", justify="right")
    table.add_column("peak MiB", justify="right")
    for tenth in range(10):
        part = [pss for at, pss in samples if tenth <= 10 * at / wall < tenth + 1] or [0.0]
        table.add_row(str(tenth + 1), f"{max(part):.0f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
