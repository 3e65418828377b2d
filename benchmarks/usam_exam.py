"""The exam of USAM on the embedded models: harvests its clips, then prints how well each score finds bad masks.

    python benchmarks/usam_exam.py harvest heldout shifted training     # shards below runs/usam, hours on two cores
    python benchmarks/usam_exam.py frames heldout                       # the same clips one frame at a time

What is asked is fixed in benchmarks/usam.yaml. Harvests go on where they were stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from shifted_clips import render_shifted

from pipeline.harvest_tracked import Protocol, harvest_video, tracked_plan
from pipeline.models import LoadedModel, load_model
from pipeline.nano.clips import Clip, render_clip
from usam.datasets.synthetic import Rendered
from usam.harvest_frames import harvest_frames
from usam.shard import ShardWriter

EXAM: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("usam.yaml").read_text())
_state: dict[str, Any] = {}


def generator(name: str) -> Callable[..., Clip]:
    """Draws the clips of an exam or of a training set."""
    if name != "shifted":
        return render_clip
    draw: Callable[..., Clip] = render_shifted
    digest = hashlib.sha256()
    first = EXAM["exams"]["shifted"]["first_seed"]
    for seed in range(first, first + 10):
        clip = draw(seed, frames=EXAM["frames"], size=EXAM["size"])
        digest.update(clip.frames_thw3.tobytes())
        digest.update(clip.ids_thw.tobytes())
    if digest.hexdigest() != EXAM["shifted_first_pixels_sha256"]:
        sys.exit(f"expected pixels {EXAM['shifted_first_pixels_sha256'][:12]}, got {digest.hexdigest()[:12]}")
    return draw


def clips_of(name: str, limit: int | None) -> Rendered:
    """The clips of a set as a data set; `limit` takes the first ones."""
    rules = EXAM["exams"].get(name) or EXAM[name]
    draw, count = generator(name), min(limit or rules["clips"], rules["clips"])

    def render(video_id: str) -> tuple[Any, Any]:
        clip = draw(int(video_id), frames=EXAM["frames"], size=EXAM["size"])
        return clip.frames_thw3, clip.ids_thw

    first = rules["first_seed"]
    return Rendered(render, [str(seed) for seed in range(first, first + count)], name)


def models_of(args: argparse.Namespace) -> dict[str, LoadedModel]:
    """Models by size, other weights than the shipped ones where the call gives them."""
    out = {}
    for size, name in EXAM["tracked"]["models"].items():
        if size in args.sizes:
            given = getattr(args, f"{size}_weights")
            out[size] = load_model(name, weights=given)
    return out


def _start(args: argparse.Namespace, name: str) -> None:
    torch.set_num_threads(1)
    _state["models"], _state["set"] = models_of(args), clips_of(name, args.clips)
    _state["protocol"] = protocol_of(args)
    _state["writer"] = writer_of(args, name, _state["set"], _state["models"])


def protocol_of(args: argparse.Namespace) -> Protocol:
    """What the exam asks of every clip, less what the call leaves out."""
    return Protocol(EXAM["min_area_px"], True, not args.no_dense, tuple(args.entropies), 0)


def writer_of(args: argparse.Namespace, name: str, clips: Rendered, models: dict[str, LoadedModel]) -> ShardWriter:
    plan = tracked_plan(clips, models, "tiny", protocol_of(args))
    return ShardWriter(args.out / f"{name}{args.suffix}", plan)


def _clip(video_id: str) -> int:
    writer = _state["writer"]
    if writer.done(video_id):
        return 0
    video = next(video for video in _state["set"].videos() if video.video_id == video_id)
    columns, tokens = harvest_video(video, _state["models"], "tiny", _state["protocol"])
    writer.add(video_id, columns, tokens)
    return len(tokens)


def harvest(args: argparse.Namespace, name: str) -> None:
    """Harvest a set in worker processes that write into one shard."""
    clips, models = clips_of(name, args.clips), models_of(args)
    writer = writer_of(args, name, clips, models)
    if writer.complete:
        print(f"{name}: there already, {writer.path}")
        return
    started, rows = time.monotonic(), 0
    with ProcessPoolExecutor(
        args.processes, mp_context=get_context("spawn"), initializer=_start, initargs=(args, name)
    ) as pool:
        futures = [pool.submit(_clip, video_id) for video_id in clips.video_ids]
        for count, future in enumerate(as_completed(futures), 1):
            rows += future.result()
            if count % 20 == 0 or count == len(futures):
                print(
                    f"{name}: {count}/{len(futures)} clips, {rows} rows, {time.monotonic() - started:.0f} s", flush=True
                )
    shard = writer.finish(clips.video_ids)
    print(f"{name}: {len(shard)} rows in {shard.path}")


def frames(args: argparse.Namespace, name: str) -> None:
    """Harvest some frames of a set's clips one by one, without memory: the paper's protocol."""
    rules = EXAM["exams"].get(name) or EXAM[name]
    draw, count = generator(name), min(args.clips or rules["clips"], rules["clips"])

    def render(video_id: str) -> tuple[Any, Any]:
        clip = draw(int(video_id), frames=EXAM["frames"], size=EXAM["size"])
        ids = clip.ids_thw[:: EXAM["frames_alone"]["every"]].copy()
        for ids_hw in ids:
            values, counts = np.unique(ids_hw, return_counts=True)
            ids_hw[np.isin(ids_hw, values[counts < EXAM["min_area_px"]])] = 0
        return clip.frames_thw3[:: EXAM["frames_alone"]["every"]], ids

    clips = Rendered(render, [str(rules["first_seed"] + i) for i in range(count)], f"{name} frames")
    torch.set_num_threads(1)
    told = [0.0]

    def progress(video: str, done: int, total: int) -> None:
        if time.monotonic() - told[0] > 30:
            told[0] = time.monotonic()
            print(f"{name} frames: {done}/{total} clips", flush=True)

    path = args.out / f"{name}-frames{args.suffix}"
    shard = harvest_frames(clips, models_of(args), path, deployed="tiny", entropies=args.entropies, progress=progress)
    print(f"{name} frames: {len(shard)} rows in {shard.path}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("harvest", "frames"))
    parser.add_argument("sets", nargs="+", choices=(*EXAM["exams"], "training", "polishing"))
    parser.add_argument("--out", type=Path, default=Path("runs/usam"))
    parser.add_argument("--suffix", default="", help="of the shard's name")
    parser.add_argument("--clips", type=int, help="the first N clips of a set")
    parser.add_argument("--sizes", nargs="+", default=list(EXAM["tracked"]["models"]))
    parser.add_argument("--entropies", nargs="*", default=["H_Std", "H_A", "H_Theta"])
    parser.add_argument("--no-dense", action="store_true")
    parser.add_argument("--tiny-weights", type=Path)
    parser.add_argument("--large-weights", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    for name in args.sets:
        (harvest if args.action == "harvest" else frames)(args, name)


if __name__ == "__main__":
    main()
