"""What the whole job costs over bare propagation, and whether memory grows with the video.

`python benchmarks/end_to_end.py [--video FILE] [--runs 5] [--seconds 2] [--model hiera_tiny_512] [--objects 2]
[--device cuda --precision bfloat16]` prints one table, and without options a second one. All sides work on the same
frames in one run, alternating; ratios are medians. The whole job is measured with its defaults, and without the
pictures of the review list. Memory is the peak of what the labelling process and its decoder hold of their own
(anonymous and shared memory, each page once; the pages of libraries come and go with other processes that use them),
for the clip and for the same clip looped five times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))

from propagate import random_model

from pipeline.label import label_video, torch_threads
from pipeline.models import LoadedModel, load_model
from pipeline.nano.clips import render_clip
from pipeline.prompts import PromptSet, load_prompts, prompt_set
from pipeline.propagate import Session
from pipeline.render.film import FilmWriter
from pipeline.settings import Settings, load_settings
from pipeline.video.probe import probe_video
from pipeline.video.sample import Sample
from pipeline.video.stream import FrameStream

SHARED = Path(__file__).resolve().parents[2] / "shared/data/clips/cups.mp4"


def loop_video(source: Path, target: Path, times: int) -> None:
    """Write the same packets several times over: same frames, no re-encoding."""
    with av.open(str(target), "w") as out:
        stream = None
        shift = 0
        for _ in range(times):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                end = 0
                for packet in container.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or int(1 / (video.average_rate * video.time_base))))
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    out.mux(packet)
                shift += end


def chosen_model(name: str, device: str) -> LoadedModel:
    """sam2_nano, or an architecture with random weights at some size: hiera_tiny_512."""
    if name == "sam2_nano":
        return load_model(name, device=device)
    architecture, _, size = name.rpartition("_")
    model = random_model(f"sam2.1_{architecture}", int(size), device)
    return LoadedModel(name, model, int(size), name, None, device, Path(name))


def bare_seconds(video: Path, prompts: PromptSet, settings: Settings, loaded: LoadedModel) -> float:
    """Wall of propagation alone: frames at model size in memory, no scoring, no masks at video size, no files."""
    info = probe_video(video, settings.decode)
    sample = Sample.of(info, settings.decode, prompts)
    with FrameStream(info, settings.decode, resize=loaded.image_size, indices=sample.indices) as stream:
        frames = list(sample.frames(stream))
    started = time.perf_counter()
    session = Session(
        loaded.model, prompts, (info.height, info.width), len(frames), reverse=False, keep_tokens=False,
        precision=settings.model.precision,
    )  # fmt: skip
    with torch_threads(settings, loaded):  # the same thread count on both sides
        session.prepare(lambda index: frames[index].rgb_hw3)
        for _ in session.forward(frames):
            pass
    return time.perf_counter() - started


def whole_seconds(video: Path, prompts: PromptSet, settings: Settings, loaded: LoadedModel, out: Path) -> float:
    """Wall of `label_video`: hash, probe, decode, propagate, score, encode, commit, derive, review pictures."""
    started = time.perf_counter()
    label_video(str(video), prompts, str(out), settings, model=loaded)
    return time.perf_counter() - started


def tree_memory_mib(pid: int) -> float:
    """Anonymous and shared memory of a process and its descendants, each page counted once, MiB."""
    total, waiting = 0.0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            own = ("Pss_Anon:", "Pss_Shmem:")
            total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(own)) / 1024
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, StopIteration):
            continue
    return total


def peak_mib(video: Path, out: Path) -> float:
    """Peak memory while another process labels the video."""
    prompts = video.with_name(video.stem + ".prompts.json")
    code = (
        "import sys; from pipeline.label import label_video; from pipeline.settings import load_settings;"
        "label_video(sys.argv[1], sys.argv[2], sys.argv[3], load_settings())"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(video), str(prompts), str(out)])
    peak = 0.0
    while child.poll() is None:
        peak = max(peak, tree_memory_mib(child.pid))
        time.sleep(0.05)
    if child.returncode:
        sys.exit(f"labelling {video} failed")
    return peak


def synthetic(folder: Path) -> Path:
    """A clip for machines without the shared ones."""
    clip = render_clip(7, frames=240, size=480)
    video = folder / "synthetic.mp4"
    with FilmWriter(video, 25.0, quality=8) as film:
        for frame in clip.frames_thw3:
            film.append(frame)
    area = clip.ids_thw[0] == clip.object_ids[0]
    y, x = (int(v.mean()) for v in area.nonzero())
    video.with_name("synthetic.prompts.json").write_text(
        json.dumps(
            {"version": 1, "objects": [{"object_id": 1, "prompts": [{"frame_index": 0, "points": [[x, y, 1]]}]}]}
        )
    )
    return video


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=SHARED if SHARED.exists() else None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of the video; all of it if left out")
    parser.add_argument("--objects", type=int, help="how many of the prompted objects; all if left out")
    parser.add_argument("--model", default="sam2_nano", help="or hiera_SIZE_PIXELS with random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    overrides = {"decode.end_seconds": args.seconds, "model.precision": args.precision}
    settings = load_settings(None, overrides)
    plain = load_settings(None, {**overrides, "output.review_frames": False})
    loaded = chosen_model(args.model, args.device)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        video: Path = args.video or synthetic(folder)
        found = load_prompts(video.with_name(video.stem + ".prompts.json"))
        prompts = prompt_set(found.objects[: args.objects], found.source)
        info = probe_video(video, settings.decode)
        frames = len(Sample.of(info, settings.decode, prompts))
        runs = [
            (
                bare_seconds(video, prompts, settings, loaded),
                whole_seconds(video, prompts, settings, loaded, folder / f"out{run}"),
                whole_seconds(video, prompts, plain, loaded, folder / f"plain{run}"),
            )
            for run in range(args.runs)
        ]
        title = (
            f"whole job over bare propagation: {loaded.name}, {video.name}, {frames} frames, "
            f"{len(prompts.objects)} objects, {args.device} {args.precision}, {os.cpu_count()} cores"
        )
        table = Table(title=title)
        for column in ("run", "bare s", "whole s", "ratio", "frames/s", "without pictures s", "ratio", "frames/s"):
            table.add_column(column, justify="right")
        for run, (bare, whole, without) in enumerate(runs):
            cells = [f"{bare:.2f}"]
            for seconds in (whole, without):
                cells += [f"{seconds:.2f}", f"{seconds / bare:.3f}", f"{frames / seconds:.1f}"]
            table.add_row(str(run), *cells)
        middle = ["median", ""]
        for side in (1, 2):
            ratio = statistics.median(one[side] / one[0] for one in runs)
            rate = statistics.median(frames / one[side] for one in runs)
            middle += ["", f"{ratio:.3f}", f"{rate:.1f}"]
        table.add_row(*middle)
        console.print(table)
        if args.model != "sam2_nano" or args.seconds or args.device != "cpu":
            return

        looped = folder / f"looped{video.suffix}"
        loop_video(video, looped, 5)
        looped.with_name("looped.prompts.json").write_bytes(video.with_name(video.stem + ".prompts.json").read_bytes())
        once, five = peak_mib(video, folder / "once"), peak_mib(looped, folder / "five")
        memory = Table(title="peak memory of job and decoder, libraries left out")
        for column in ("clip MiB", "looped x5 MiB", "growth"):
            memory.add_column(column, justify="right")
        memory.add_row(f"{once:.0f}", f"{five:.0f}", f"{five / once - 1:+.1%}")
        console.print(memory)


if __name__ == "__main__":
    main()
