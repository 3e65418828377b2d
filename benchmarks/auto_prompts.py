"""How well objects that nobody prompted are found and followed: `python benchmarks/auto_prompts.py`.

Prints the automatic prompter beside an oracle that clicks the true objects on the same frames, with and without second
looks. The exam is fixed in auto_prompts.yaml; choose thresholds on other seeds: `--first 920000000 --set KEY=VALUE`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from pipeline.discover import Discovery, automatic_prompts
from pipeline.models import LoadedModel, load_model
from pipeline.nano.batches import fit_frames
from pipeline.nano.clips import render_clip
from pipeline.nano.follow import innermost_pixel
from pipeline.policy import Policy
from pipeline.prompts import FramePrompt, ObjectPrompts
from pipeline.propagate import FrameResult, Session
from pipeline.score import ScoredResult, Scorer
from pipeline.settings import AutoPromptSettings
from pipeline.steps import Features

EXAM = yaml.safe_load(Path(__file__).with_name("auto_prompts.yaml").read_text())
VARIANTS = ("auto", "auto, first look only", "oracle", "oracle, first look only")
_loaded: list[LoadedModel] = []


@dataclass(frozen=True)
class _Frame:
    index: int
    rgb_hw3: NDArray[np.uint8]


class Oracle(Discovery):
    """Clicks each true object once, on the first look at which it is visible."""

    def __init__(self, ids_thw: NDArray[np.uint8], model: Any, rules: AutoPromptSettings) -> None:
        super().__init__(model, (ids_thw.shape[1], ids_thw.shape[2]), rules)
        self._ids_thw, self._clicked, self._look = ids_thw, set[int](), 0

    def __call__(self, index: int, features: Features, results: list[FrameResult]) -> list[ObjectPrompts]:
        """The objects that are visible on this frame for the first time at a look."""
        if not self.looks_at(index):
            return []
        found = []
        for object_id in sorted(set(np.unique(self._ids_thw[index]).tolist()) - {0} - self._clicked):
            truth_hw = self._ids_thw[index] == object_id
            if truth_hw.sum() < EXAM["min_area_px"]:
                continue
            point = np.array([innermost_pixel(truth_hw)], np.float32)
            prompt = FramePrompt(index, points_n2=point, labels_n=np.ones(1, np.int32), auto=True)
            found.append(ObjectPrompts(object_id, None, (prompt,), self._look))
            self._clicked.add(object_id)
        self._look = index
        return found


def follow(loaded: LoadedModel, frames_thw3: NDArray[np.uint8], discovery: Discovery) -> list[ScoredResult]:
    """Every row of every track that the discovery starts, forward and backward, scored."""
    small = fit_frames(frames_thw3, loaded.image_size)
    session = Session(
        loaded.model, automatic_prompts(discovery.rules), discovery.video_hw, len(small), discover=discovery
    )
    discovery.attach(session)
    session.prepare(lambda index: small[index])
    results = list(session.forward(_Frame(i, small[i]) for i in range(len(small))))
    results += session.backward(lambda index: small[index])
    return [one for frame in Scorer(loaded.bank).score(results) for one in frame]


def examine(seed: int, rules: AutoPromptSettings, variants: Sequence[str]) -> list[dict[str, Any]]:
    """Counts of one clip, one dict per variant."""
    loaded = _loaded[0]
    clip = render_clip(seed, frames=EXAM["frames"], size=EXAM["size"], mix=EXAM["mix"])
    frames_thw3, ids_thw = clip.frames_thw3[::-1], clip.ids_thw[::-1]
    out = []
    for variant in variants:
        every = None if variant.endswith("only") else EXAM["every_frames"]
        here = rules.model_copy(update={"every_frames": every})
        discovery = (
            Oracle(ids_thw, loaded.model, here)
            if variant.startswith("oracle")
            else Discovery(loaded.model, (EXAM["size"],) * 2, here)
        )
        rows = follow(loaded, frames_thw3, discovery)
        out.append({"variant": variant, "seed": seed, **judge(rows, ids_thw)})
    return out


def judge(rows: list[ScoredResult], ids_thw: NDArray[np.uint8]) -> dict[str, int]:
    """Compare a clip's tracks with the truth: sums, to be added over clips."""
    area_ot = np.stack([(ids_thw == one).sum((1, 2)) for one in range(1, max(2, ids_thw.max() + 1))])
    visible_ot = area_ot >= EXAM["min_area_px"]
    objects = [o for o in range(len(area_ot)) if visible_ot[o].sum() >= EXAM["min_visible_frames"]]
    tracks = sorted({row.result.object_id for row in rows})
    iou_kot = np.zeros((len(tracks), len(area_ot), len(ids_thw)))
    shown_kt = np.zeros((len(tracks), len(ids_thw)), bool)
    policy, accepted, accepted_right, absent = Policy(), 0, 0, 0
    for row in rows:
        k, t = tracks.index(row.result.object_id), row.result.frame_index
        assert row.result.logits_hw is not None
        logits_11hw = row.result.logits_hw[None, None].float()
        mask_hw = functional.interpolate(logits_11hw, size=ids_thw.shape[1:], mode="bilinear")[0, 0].numpy() > 0
        shown_kt[k, t] = mask_hw.any()
        absent += not mask_hw.any()
        inside_o = np.bincount(ids_thw[t][mask_hw], minlength=len(area_ot) + 1)[1:]
        iou_kot[k, :, t] = inside_o / np.maximum(mask_hw.sum() + area_ot[:, t] - inside_o, 1)
        sure = row.predicted_iou is not None and 1 - row.predicted_iou + policy.auto_margin <= policy.max_uncertainty
        if sure and mask_hw.any():  # absent rows go to review by the default policy
            accepted += 1
            accepted_right += int(iou_kot[k, :, t].max() >= EXAM["iou"])
    sums = dict.fromkeys(("objects", "followed", "late", "late_followed", "frames", "frames_followed"), 0)
    best_of = {}
    for o in objects:
        mean_k = iou_kot[:, o][:, visible_ot[o]].mean(1) if tracks else np.zeros(1)
        best_of[o] = int(mean_k.argmax())
        late = not visible_ot[o, : EXAM["late_from_frame"]].any()
        sums["objects"] += 1
        sums["late"] += late
        sums["followed"] += mean_k.max() >= EXAM["iou"]
        sums["late_followed"] += late and mean_k.max() >= EXAM["iou"]
        sums["frames"] += int(visible_ot[o].sum())
        sums["frames_followed"] += int((iou_kot[best_of[o], o, visible_ot[o]] >= EXAM["iou"]).sum()) if tracks else 0
    true = false = doubles = 0
    for k in range(len(tracks)):
        mean_o = [iou_kot[k, o, shown_kt[k]].mean() if shown_kt[k].any() else 0.0 for o in range(len(area_ot))]
        if max(mean_o) < EXAM["iou"]:
            false += 1
        else:
            true += 1
            doubles += best_of.get(int(np.argmax(mean_o)), k) != k
    return {
        **{name: int(value) for name, value in sums.items()},
        "true": true, "false": false, "doubles": doubles,
        "rows": len(rows), "absent_rows": absent, "accepted": accepted, "accepted_right": accepted_right,
    }  # fmt: skip


def figures(sums: dict[str, int]) -> dict[str, float]:
    """The exam's figures from the sums over clips."""

    def share(part: str, whole: str) -> float:
        return sums[part] / sums[whole] if sums[whole] else float("nan")

    return {
        "followed": share("followed", "objects"),
        "followed_late": share("late_followed", "late"),
        "frames_followed": share("frames_followed", "frames"),
        "false_per_true": share("false", "true"),
        "doubles_per_true": share("doubles", "true"),
        "coverage": share("accepted", "rows"),
        "coverage_iou": share("accepted_right", "accepted"),
        "absent": share("absent_rows", "rows"),
    }


def _start(model: str) -> None:
    torch.set_num_threads(1)
    _loaded.append(load_model(model))


def main() -> None:
    """Run the exam and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam2_nano")
    parser.add_argument("--first", type=int, default=EXAM["seeds"]["first"], help="first seed; another one: no exam")
    parser.add_argument("--clips", type=int, default=EXAM["seeds"]["clips"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of prompts.auto")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    changes = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in args.set)}
    rules = AutoPromptSettings.model_validate(changes)
    started = time.monotonic()
    with ProcessPoolExecutor(
        args.processes, mp_context=get_context("spawn"), initializer=_start, initargs=(args.model,)
    ) as pool:
        seeds = range(args.first, args.first + args.clips)
        found = [row for part in pool.map(partial(examine, rules=rules, variants=args.variants), seeds) for row in part]
    exam = args.first == EXAM["seeds"]["first"] and args.clips == EXAM["seeds"]["clips"] and not changes
    names = [name for name in found[0] if name not in ("variant", "seed")]
    sums = {v: {name: sum(row[name] for row in found if row["variant"] == v) for name in names} for v in args.variants}
    first = next(iter(sums.values()))
    table = Table(
        title=f"{'the exam' if exam else 'not the exam'}: {args.clips} clips of {EXAM['frames']} frames, "
        f"{first['objects']} objects, {first['late']} of them late, {time.monotonic() - started:.0f} s"
    )
    table.add_column("prompts")
    for name in [*EXAM["figures"], "tracks"]:
        table.add_column(name.replace("_", " "), justify="right")
    for variant, counts in sums.items():
        values = figures(counts)
        cells = [f"{values[name]:.3f}" for name in EXAM["figures"]]
        table.add_row(variant, *cells, str(counts["true"] + counts["false"]))
    Console(width=160).print(table)
    if args.out:
        report = {v: {**figures(counts), **counts} for v, counts in sums.items()}
        args.out.write_text(json.dumps({"exam": exam, "variants": report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
