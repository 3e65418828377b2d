"""The drop of the exam of thresholds: renders its videos with their truth, labels them; goes on where it was stopped.

    python benchmarks/promise_drop.py runs/promise          # drop/ with truth, labels/; half an hour on two cores

What is rendered is fixed in benchmarks/promise.yaml, or in another exam's file (--exam).
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

EXAM: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("promise.yaml").read_text())
OVERRIDES = {"output.review_frames": False, "output.checkpoint_seconds": None, "model.threads": 1}
_state: dict[str, Any] = {}


def _start(out: Path, exam: dict[str, Any]) -> None:
    from pipeline.models import load_model
    from pipeline.settings import load_settings

    torch.set_num_threads(1)
    _state["out"], _state["exam"] = out, exam
    _state["settings"] = load_settings(None, exam.get("settings", OVERRIDES))
    _state["model"] = load_model(exam["model"])


def _clip(seed: int) -> int:
    """Render and label one clip; the rows, 0 for a clip without an object to prompt."""
    from pipeline.label import label_video
    from pipeline.nano.clips import render_clip
    from pipeline.nano.follow import innermost_pixel
    from pipeline.render.film import FilmWriter

    drop, exam = _state["out"] / "drop", _state["exam"]
    done, video = drop / f"{seed}.truth.npz", drop / f"{seed}.mp4"
    if not done.exists():
        rules = exam["videos"]
        clip = render_clip(seed, frames=rules["frames"], size=rules["size"])
        first = clip.ids_thw[0]
        ids = [i for i in clip.object_ids if (first == i).sum() >= exam["prompts"]["min_area_px"]]
        objects = [
            {"object_id": i, "prompts": [{"frame_index": 0, "points": [[*innermost_pixel(first == i), 1]]}]}
            for i in ids
        ]
        with FilmWriter(video, 12.0, quality=8) as film:
            for frame in clip.frames_thw3:
                film.append(frame)
        if objects:
            (drop / f"{seed}.prompts.json").write_text(json.dumps({"version": 1, "objects": objects}))
        part = drop / f"{seed}.part.npz"
        np.savez_compressed(part, ids_thw=clip.ids_thw)
        part.replace(done)
    prompts = drop / f"{seed}.prompts.json"
    if not prompts.exists():
        return 0
    report = label_video(
        str(video), str(prompts), str(_state["out"] / "labels"), _state["settings"], drop="exam", model=_state["model"]
    )
    return report.rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--exam", type=Path, help="another exam's file")
    parser.add_argument("--videos", type=int, help="the first N")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    (args.out / "drop").mkdir(parents=True, exist_ok=True)
    exam = EXAM if args.exam is None else yaml.safe_load(args.exam.read_text())
    first, started, rows = exam["videos"]["first_seed"], time.monotonic(), 0
    spawn = get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=spawn, initializer=_start, initargs=(args.out, exam)) as pool:
        futures = [pool.submit(_clip, seed) for seed in range(first, first + (args.videos or exam["videos"]["count"]))]
        for count, future in enumerate(as_completed(futures), 1):
            rows += future.result()
            if count % 50 == 0 or count == len(futures):
                seconds = time.monotonic() - started
                print(f"{count}/{len(futures)} videos, {rows} rows, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
