"""Propagation against upstream: identity, device operations, wall time and memory, both sides on the same frames.

`python benchmarks/propagate.py [--quick] [--only identity,operations,wall,memory]` prints a table for each part.

Wall: all sides hold a session of their own and take the same frame in turn, so that noise of the machine meets all of
them; figures are medians over frames, ratios medians of paired ratios. Upstream's enlargement of masks to the video's
size is left out on its side (ours happens later, on packed bits). Operations: every call that reaches the device except
views, counted by a dispatch mode; the image encoder is not counted. Memory: what the process holds of its own.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.label import SMALL_IMAGE_PX
from pipeline.models import build_model, load_model
from pipeline.nano.clips import render_clip
from pipeline.prompts import FramePrompt, ObjectPrompts
from pipeline.propagate import Session

WARM_FRAMES = 17  # after that every memory and pointer that can be attended to is there
console = Console(width=130)


@dataclass
class Clip:
    """Frames at model size, in memory and as the JPEG folder that upstream reads."""

    frames: list[np.ndarray]
    folder: Path
    size: int

    def __iter__(self) -> Iterator[Any]:
        return (SimpleNamespace(index=i, rgb_hw3=frame) for i, frame in enumerate(self.frames))


def make_clip(folder: Path, count: int, size: int) -> Clip:
    """A rendered clip, decoded from JPEG for both sides."""
    folder.mkdir(parents=True)
    rendered = render_clip(11, frames=count, size=256).frames_thw3
    frames = []
    for i, frame in enumerate(rendered):
        Image.fromarray(frame).resize((size, size)).save(folder / f"{i:05d}.jpg", quality=95)
        frames.append(np.array(Image.open(folder / f"{i:05d}.jpg").convert("RGB")))
    return Clip(frames, folder, size)


def click(frame: int, x: float, y: float) -> FramePrompt:
    return FramePrompt(frame, np.array([[x, y]], np.float32), np.array([1], np.int32))


def clicks_on(size: int, objects: int) -> list[list[FramePrompt]]:
    """One click per object on frame 0, spread over the picture."""
    rng = np.random.default_rng(5)
    return [[click(0, *rng.uniform(0.1 * size, 0.9 * size, 2))] for _ in range(objects)]


def prompt_set(objects: list[list[FramePrompt]]) -> Any:
    found = [ObjectPrompts(i, None, tuple(frames)) for i, frames in enumerate(objects, 1)]
    return SimpleNamespace(objects=found)


def upstream_session(model: Any, clip: Clip, objects: list[list[FramePrompt]]) -> dict[str, Any]:
    state: dict[str, Any] = model.init_state(str(clip.folder))
    # its enlargement to video size: done to the mask's own size, so as good as left out
    prompt_scale = state["video_height"], state["video_width"]
    for number, prompts in enumerate(objects, 1):
        for p in prompts:
            if p.mask_hw is not None:
                model.add_new_mask(state, p.frame_index, number, p.mask_hw)
            else:
                model.add_new_points_or_box(
                    state, p.frame_index, number, points=p.points_n2, labels=p.labels_n, box=p.box_xyxy
                )
    assert prompt_scale == (clip.size, clip.size)
    state["video_height"] = state["video_width"] = clip.size // 4
    return state


def our_session(model: Any, clip: Clip, objects: list[list[FramePrompt]], **options: Any) -> Session:
    session = Session(
        model, prompt_set(objects), (clip.size, clip.size), len(clip.frames), keep_tokens=False, **options
    )
    session.prepare(lambda index: clip.frames[index])
    return session


def random_model(name: str, size: int, device: str = "cpu") -> Any:
    """A registered architecture at `size` px with amplified random weights: no skill, but every path carries signal."""
    torch.manual_seed(0)
    model = build_model(name, {"image_size": size})
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "pos_embed" in key or "no_obj" in key or key.endswith("gamma"):
                parameter.normal_(std=0.3)
            elif parameter.ndim > 1 and "image_encoder" not in key:
                parameter.mul_(2.0)
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(2.0)  # present on most frames
    return model.to(device)


# Wall ----------------------------------------------------------------------------------------------------------------


def wall_rows(
    name: str,
    model: Any,
    clip: Clip,
    counts: list[int],
    sides: dict[str, dict[str, Any]],
    precision: str = "float32",
) -> list[list[str]]:
    """One row per number of objects and side: ms per frame and the ratio to upstream (above 1: faster)."""
    device = next(model.parameters()).device.type
    rows, before = [], torch.get_num_threads()
    if device == "cpu" and clip.size <= SMALL_IMAGE_PX:
        torch.set_num_threads(1)  # as the job does; faster on both sides
    for count in counts:
        objects = clicks_on(clip.size, count)
        with torch.inference_mode(), autocast(precision, device):
            steppers: dict[str, Iterator[Any]] = {
                "upstream": model.propagate_in_video(upstream_session(model, clip, objects))
            }
            for side, options in sides.items():
                session = our_session(model, clip, objects, reverse=False, precision=precision, **options)
                steppers[side] = session.forward(clip)
            seconds: dict[str, list[float]] = {side: [] for side in steppers}
            for index in range(len(clip.frames)):
                order = list(steppers) if index % 2 else list(reversed(steppers))
                for side in order:
                    started = time.perf_counter()
                    next(steppers[side])
                    if device == "cuda":
                        torch.cuda.synchronize()
                    if index >= WARM_FRAMES:
                        seconds[side].append(time.perf_counter() - started)
        for side in steppers:
            ratio = statistics.median(a / b for a, b in zip(seconds["upstream"], seconds[side], strict=True))
            ms = 1e3 * statistics.median(seconds[side])
            rows.append([name, str(torch.get_num_threads()), str(count), side, f"{ms:.1f}", f"{ratio:.2f}"])
    torch.set_num_threads(before)
    return rows


# Operations ----------------------------------------------------------------------------------------------------------


class Counter(TorchDispatchMode):
    """Counts operators that do work on the device: all but views and metadata."""

    FREE = frozenset({"aten.detach", "aten.lift_fresh", "aten._unsafe_view", "aten.is_same_size", "aten.sym_size"})

    def __init__(self) -> None:
        super().__init__()
        self.count, self.paused = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func._overloadpacket)
        if not (self.paused or func.is_view or name in self.FREE or "empty" in name):
            self.count += 1
        return func(*args, **(kwargs or {}))


def operations(model: Any, clip: Clip, count: int, side: str, **options: Any) -> int:
    """Operations of one frame with full memories, the image encoder left out."""
    objects = clicks_on(clip.size, count)
    counter = Counter()
    encode = model.forward_image

    def uncounted(image: Any) -> Any:
        counter.paused = True
        try:
            return encode(image)
        finally:
            counter.paused = False

    with torch.inference_mode():
        if side == "upstream":
            stepper = model.propagate_in_video(upstream_session(model, clip, objects))
        else:
            stepper = our_session(model, clip, objects, reverse=False, **options).forward(clip)
        for _ in range(WARM_FRAMES + 1):
            next(stepper)
        model.forward_image = uncounted
        try:
            with counter:
                next(stepper)
        finally:
            del model.forward_image
    return counter.count


# Identity ------------------------------------------------------------------------------------------------------------


def matrix(size: int) -> dict[str, list[list[FramePrompt]]]:
    """Prompts of every kind, several frames, late objects."""
    box = FramePrompt(0, box_xyxy=np.array([0.2, 0.2, 0.6, 0.7], np.float32) * size)
    mask_hw = np.zeros((size, size), bool)
    mask_hw[size // 4 : size // 2, size // 3 : size // 2] = True
    many = FramePrompt(0, np.array([[0.4, 0.4], [0.1, 0.1]], np.float32) * size, np.array([1, 0], np.int32))
    late = FramePrompt(9, box_xyxy=np.array([0.5, 0.4, 0.9, 0.8], np.float32) * size)
    second_box = FramePrompt(8, box_xyxy=np.array([0.3, 0.3, 0.7, 0.7], np.float32) * size)
    corrected = [click(0, 0.5 * size, 0.5 * size), second_box]
    return {
        "four clicks": clicks_on(size, 4),
        "click, box, mask, clicks": [
            [click(0, 0.3 * size, 0.6 * size)], [box], [FramePrompt(0, mask_hw=mask_hw)], [many],
        ],
        "corrected and plain": [corrected, [click(0, 0.7 * size, 0.3 * size)]],
        "late objects": [[click(0, 0.5 * size, 0.5 * size)], [late], [click(5, 0.2 * size, 0.2 * size)]],
    }  # fmt: skip


def separate_logits(model: Any, clip: Clip, prompts: list[FramePrompt], precision: str) -> dict[int, torch.Tensor]:
    """Upstream's logits by frame, in a session of this object alone."""
    with torch.inference_mode(), autocast(precision, next(model.parameters()).device.type):
        state = upstream_session(model, clip, [prompts])
        for _ in model.propagate_in_video(state):
            pass
    parts = state["output_dict_per_obj"][0].values()
    return {t: out["pred_masks"][0, 0].float() for part in parts for t, out in part.items()}


def autocast(precision: str, device: str = "cpu") -> Any:
    return torch.autocast(device, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def identity_rows(name: str, model: Any, clip: Clip) -> list[list[str]]:
    """Differences to upstream, free-running over the whole clip: exact and batched."""
    rows = []
    for kind, objects in matrix(clip.size).items():
        for precision in ("float32", "bfloat16"):
            theirs = [separate_logits(model, clip, prompts, precision) for prompts in objects]
            sides: dict[str, dict[str, Any]] = {"exact": {"exact": True}}
            if precision == "float32":  # bfloat16 in batches drifts without a bound: the best of three can switch
                sides["batched"] = {"max_group": 8}
            for side, options in sides.items():
                worst, flips, pixels, equal, ties = 0.0, 0, 0, True, 0
                session = our_session(
                    model, clip, objects, reverse=False, precision=precision, keep_candidates=True, **options
                )
                tied: set[int] = set()
                for results in session.forward(clip):
                    for number, r in enumerate(results):
                        if r.logits_hw is None or number in tied:
                            continue
                        if side == "batched" and r.candidate_scores_3 is not None and r.chosen:
                            best = r.candidate_scores_3.sort(descending=True).values
                            if float(best[0] - best[1]) < 1e-5:
                                ties += 1
                                tied.add(number)
                                continue
                        other = theirs[number][r.frame_index]
                        equal &= torch.equal(r.logits_hw, other)
                        worst = max(worst, float((r.logits_hw - other).abs().max()))
                        flips += int(((r.logits_hw > 0) != (other > 0)).sum())
                        pixels += other.numel()
                said = "equal" if equal else f"{worst:.1e}"
                rows.append([name, kind, precision, side, said, f"{flips / max(pixels, 1):.1e}", str(ties)])
    return rows


# Memory --------------------------------------------------------------------------------------------------------------


def own_mib() -> float:
    """Anonymous memory of this process: pages of libraries come and go with other processes that use them."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


def memory_rows(model: Any, clip: Clip, marks: list[int]) -> list[list[str]]:
    """Process memory and session state on chosen frames of a long video, 4 objects, the clip played to and fro."""
    last = marks[-1]
    session = Session(model, prompt_set(clicks_on(clip.size, 4)), (clip.size, clip.size), last + 1, reverse=False)
    session.prepare(lambda index: clip.frames[0])
    period = 2 * (len(clip.frames) - 1)
    endless = (
        SimpleNamespace(index=i, rgb_hw3=clip.frames[min(i % period, period - i % period)]) for i in range(last + 1)
    )
    rows, first = [], 0.0
    for index, _ in enumerate(session.forward(endless)):
        if index in marks:
            gc.collect()
            now = own_mib()
            first = first or now
            rows.append([str(index), f"{now:.1f}", f"{now - first:+.1f}", f"{session.state_bytes() / 2**20:.2f}"])
    return rows


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in ("model", "prompts", "side", "precision") else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer frames, sam2_nano only")
    parser.add_argument("--only", default="identity,operations,wall,memory")
    args = parser.parse_args()
    parts: set[str] = set(args.only.split(","))
    frames = 24 if args.quick else 40
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        nano = load_model("sam2_nano").model
        models: list[tuple[str, Any, Clip]] = [
            ("sam2_nano", nano, make_clip(Path(name) / "nano", frames, nano.image_size))
        ]
        if not args.quick:
            models.append(
                (
                    "hiera_tiny 512 px",
                    random_model("sam2.1_hiera_tiny", 512),
                    make_clip(Path(name) / "tiny", frames, 512),
                )
            )
        run: list[tuple[str, Callable[[], None]]] = [
            ("identity", lambda: show(
                f"free-running against separate upstream sessions, {frames} frames, {threads} threads",
                ["model", "prompts", "precision", "side", "max difference", "flips", "ties"],
                [row for label, model, clip in models[:1] for row in identity_rows(label, model, clip)],
            )),
            ("operations", lambda: show(
                "device operations per frame besides the encoder",
                ["model", "objects", "upstream", "exact", "batched"],
                [
                    [label, str(n), *(str(operations(model, clip, n, side, **options)) for side, options in (
                        ("upstream", {}), ("exact", {"exact": True}), ("batched", {"max_group": 64}),
                    ))]
                    for label, model, clip in models[-1:] for n in (1, 4, 8)
                ],
            )),
            ("wall", lambda: show(
                "wall per frame, encoder included; ratio above 1: faster than upstream",
                ["model", "threads", "objects", "side", "ms", "ratio"],
                [row for label, model, clip in models for row in wall_rows(label, model, clip, [1, 4, 8], {
                    "exact": {"exact": True}, "default": {}, "groups of 2": {"max_group": 2},
                    "groups of 4": {"max_group": 4}, "groups of 8": {"max_group": 8},
                })],
            )),
            ("memory", lambda: show(
                "memory of the process and of the session's state, sam2_nano, 4 objects",
                ["frame", "MiB", "growth", "state MiB"],
                memory_rows(nano, models[0][2], [50, 200] if args.quick else [50, 500, 1000, 2000]),
            )),
        ]  # fmt: skip
        for part, measure in run:
            if part in parts:
                measure()


if __name__ == "__main__":
    main()
