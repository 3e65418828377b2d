"""Propagation on a GPU against upstream: `python benchmarks/gpu.py` prints tables for the card at hand.

Random weights, real sizes (1024 px): speed and rounding do not depend on what a model has learnt. Parts as in
benchmarks/propagate.py; bfloat16 in batches is compared over single steps from one state, because a free run drifts
without a bound as soon as the best of three candidates switches. `--device cpu --size 128` is a check of the script.
"""

from __future__ import annotations

import argparse
import copy
import platform
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from propagate import (
    WARM_FRAMES,
    Clip,
    clicks_on,
    console,
    identity_rows,
    make_clip,
    operations,
    our_session,
    prompt_set,
    random_model,
    show,
    wall_rows,
)

from pipeline.propagate import Session


def single_step_rows(name: str, model: Any, clip: Clip, counts: list[int]) -> list[list[str]]:
    """One bfloat16 frame in a batch against the same frame object by object, from the same state."""
    rows = []
    for count in counts:
        objects = clicks_on(clip.size, count)
        options: dict[str, Any] = {"reverse": False, "precision": "bfloat16"}
        alone = our_session(model, clip, objects, exact=True, **options)
        frames = iter(clip)
        for _ in range(WARM_FRAMES):
            next(alone.forward([next(frames)]))
        together = Session.from_state(
            model, prompt_set(objects), (clip.size, clip.size), len(clip.frames), copy.deepcopy(alone.state()),
            keep_tokens=False, max_group=64, **options,
        )  # fmt: skip
        frame = next(frames)
        one, other = next(alone.forward([frame])), next(together.forward([frame]))
        pairs = [(a.logits_hw, b.logits_hw) for a, b in zip(one, other, strict=True)]
        worst = max(float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None)
        flips = sum(int(((a > 0) != (b > 0)).sum()) for a, b in pairs if a is not None and b is not None)
        pixels = sum(a.numel() for a, _ in pairs if a is not None)
        rows.append([name, str(count), f"{worst:.1e}", f"{flips / pixels:.1e}"])
    return rows


def memory_rows(name: str, model: Any, clip: Clip, marks: list[int]) -> list[list[str]]:
    """Allocated device memory and session state, 4 objects, the clip played over and over."""
    session = Session(model, prompt_set(clicks_on(clip.size, 4)), (clip.size, clip.size), marks[-1] + 1, reverse=False)
    session.prepare(lambda index: clip.frames[0])
    count, rows = len(clip.frames), []
    endless = (SimpleNamespace(index=i, rgb_hw3=clip.frames[i % count]) for i in range(marks[-1] + 1))
    for index, _ in enumerate(session.forward(endless)):
        if index in marks:
            used = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
            rows.append([name, str(index), f"{used / 2**20:.1f}", f"{session.state_bytes() / 2**20:.2f}"])
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=1024, help="image size, px")
    parser.add_argument("--models", default="sam2.1_hiera_tiny,sam2.1_hiera_large")
    parser.add_argument("--objects", default="1,4,8,16")
    parser.add_argument("--frames", type=int, default=40)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("expected a CUDA card, got none; use --device cpu --size 128 to check the script")
    counts = [int(n) for n in args.objects.split(",")]
    card = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "CPU"
    console.print(f"{card}, torch {torch.__version__}, {args.size} px")
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder) / "clip", args.frames, args.size)
        for name in args.models.split(","):
            model = random_model(name, args.size, args.device)
            show(
                "free-running against separate upstream sessions",
                ["model", "prompts", "precision", "side", "max difference", "flips", "ties"],
                identity_rows(name, model, clip),
            )
            show(
                "one bfloat16 step in a batch against one by one",
                ["model", "objects", "max difference", "flips"],
                single_step_rows(name, model, clip, counts),
            )
            show(
                "device operations per frame besides the encoder",
                ["model", "objects", "upstream", "exact", "batched"],
                [
                    [name, str(n), *(str(operations(model, clip, n, side, **options)) for side, options in (
                        ("upstream", {}), ("exact", {"exact": True}), ("batched", {"max_group": 64}),
                    ))]
                    for n in counts
                ],
            )  # fmt: skip
            for precision in ("float32", "bfloat16"):
                show(
                    f"wall per frame, encoder included, {precision}; ratio above 1: faster than upstream",
                    ["model", "CPU threads", "objects", "side", "ms", "ratio"],
                    wall_rows(name, model, clip, counts, {"exact": {"exact": True}, "default": {}}, precision),
                )
            show(
                "device memory, 4 objects",
                ["model", "frame", "allocated MiB", "state MiB"],
                memory_rows(name, model, clip, [50, 200, 500]),
            )


if __name__ == "__main__":
    main()
