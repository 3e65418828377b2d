"""The exam of the embedded model: `python benchmarks/heldout.py [--clips N] [--generator module:function]`.

Prints a table per difficulty class and writes it as JSON. The exam itself is fixed in heldout.yaml.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from pipeline.models import load_model
from pipeline.nano.clips import Clip, render_clip
from pipeline.nano.follow import FollowedRow, first_frame_prompts, follow

EXAM = yaml.safe_load(Path(__file__).with_name("heldout.yaml").read_text())
_state: dict[str, Any] = {}


def generator(name: str | None) -> Callable[..., Clip]:
    """The exam's own generator, or `module:function` with the same arguments (seed, frames, size)."""
    if name is None:
        return lambda seed: render_clip(seed, frames=EXAM["frames"], size=EXAM["size"], mix=EXAM["mix"])
    module, function = name.split(":")
    other = getattr(importlib.import_module(module), function)
    return lambda seed: other(seed, frames=EXAM["frames"], size=EXAM["size"])


def check_fingerprint() -> None:
    """Stop if the generator no longer draws the exam's pixels."""
    digest = hashlib.sha256()
    for seed in range(EXAM["seeds"]["first"], EXAM["seeds"]["first"] + 4):
        clip = generator(None)(seed)
        digest.update(clip.frames_thw3.tobytes())
        digest.update(clip.ids_thw.tobytes())
    if digest.hexdigest() != EXAM["first_pixels_sha256"]:
        sys.exit(
            f"expected exam pixels {EXAM['first_pixels_sha256'][:12]}, got {digest.hexdigest()[:12]}; restore clips.py"
        )


def classes_of(clip: Clip, object_id: int, area_px: int) -> list[str]:
    """The difficulty classes of one target."""
    rules = EXAM["classes"]
    own = clip.object_tags[object_id]
    tags = (clip.tags & set(rules["clip_wide"])) | (own & set(rules["object_wide"]))
    found = ["all", *sorted(tags)]
    for name in ("easy", "easy_large"):
        if not tags & set(rules[name]["without"]) and area_px >= rules[name].get("min_area_px", 0):
            found.append(name)
    return found


def _start(weights: str | None, name: str | None, config: str) -> None:
    torch.set_num_threads(1)
    _state["loaded"] = load_model(config, device="cpu", weights=Path(weights) if weights else None)
    _state["draw"] = generator(name)


def _examine(seed: int) -> list[dict[str, Any]]:
    """All rows of one clip, both prompts, as plain values."""
    loaded, clip = _state["loaded"], _state["draw"](seed)
    bank = loaded.bank
    out = []
    for kind in ("click", "box"):
        prompts = first_frame_prompts(clip, kind, EXAM["min_area_px"])
        if prompts is None:
            continue
        rows: list[FollowedRow] = follow(loaded.model, clip, prompts, keep_tokens=bank is not None)
        tracked = [None] * len(rows)
        if bank is not None:
            tracked = bank(torch.stack([row.result.tokens_2d for row in rows]))["iou_tracked"].tolist()
        classes = {
            o.object_id: classes_of(clip, o.object_id, int(clip.mask(o.object_id)[0].sum())) for o in prompts.objects
        }
        for row, predicted in zip(rows, tracked, strict=True):
            out.append(
                {
                    "kind": kind,
                    "seed": seed,
                    "object": row.object_id,
                    "frame": row.frame_index,
                    "iou": row.iou,
                    "best_of_3": row.best_of_3,
                    "truth": row.truth_px > 0,
                    "empty": row.empty,
                    "sam_score": row.result.sam_score,
                    "iou_tracked": predicted,
                    "classes": classes[row.object_id],
                    "object_score": row.result.object_score,
                }
            )
    return out


def _pearson(a: list[float], b: list[float]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and np.std(a) > 0 and np.std(b) > 0 else float("nan")


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The exam's figures over some rows; tracked means are over rows of visible truth."""

    def mean(values: list[float]) -> float:
        return float(np.mean(values)) if values else float("nan")

    out: dict[str, float] = {"targets": len({(r["seed"], r["object"]) for r in rows})}
    for kind in ("click", "box"):
        of_kind = [r for r in rows if r["kind"] == kind]
        first = [r for r in of_kind if r["frame"] == 0]
        if kind == "click":
            out["click_best_of_3_frame0"] = mean([r["best_of_3"] for r in first])
        out[f"{kind}_frame0"] = mean([r["iou"] for r in first])
        out[f"{kind}_tracked"] = mean([r["iou"] for r in of_kind if r["frame"] > 0 and r["truth"]])
    later = [r for r in rows if r["frame"] > 0]
    gone = [r for r in later if not r["truth"]]
    out["absent_share"] = len(gone) / max(1, len(later))
    out["absent_recognised"] = mean([float(r["empty"]) for r in gone])
    out["visible_called_absent"] = mean([float(r["empty"]) for r in later if r["truth"]])
    judged = [r for r in later if r["truth"] and not r["empty"]]
    out["pearson_sam_score"] = _pearson([r["sam_score"] for r in judged], [r["iou"] for r in judged])
    if judged and judged[0]["iou_tracked"] is not None:
        out["pearson_iou_tracked"] = _pearson([r["iou_tracked"] for r in judged], [r["iou"] for r in judged])
    return out


def main() -> None:
    """Run the exam and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sam2_nano")
    parser.add_argument("--weights", help="a checkpoint other than the shipped one")
    parser.add_argument("--clips", type=int, default=EXAM["seeds"]["clips"], help="the first N clips of the exam")
    parser.add_argument("--generator", help="module:function(seed, frames=, size=) -> Clip, for clips of another kind")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write figures as JSON")
    parser.add_argument("--rows", type=Path, help="write every row as Parquet")
    args = parser.parse_args()
    if args.generator is None:
        check_fingerprint()
    seeds = range(EXAM["seeds"]["first"], EXAM["seeds"]["first"] + args.clips)
    started = time.monotonic()
    with ProcessPoolExecutor(
        args.processes,
        mp_context=get_context("spawn"),
        initializer=_start,
        initargs=(args.weights, args.generator, args.model),
    ) as pool:
        rows = [row for part in pool.map(_examine, seeds, chunksize=4) for row in part]
    table_rows = {"all": figures(rows)}
    for name in sorted({c for r in rows for c in r["classes"]} - {"all"}):
        table_rows[name] = figures([r for r in rows if name in r["classes"]])
    table = Table(title=f"held-out: {args.clips} clips of {EXAM['frames']} frames, {time.monotonic() - started:.0f} s")
    columns = ["targets", *EXAM["figures"], "absent_share"]
    table.add_column("class")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, values in table_rows.items():
        cells = [f"{values.get(c, float('nan')):.{0 if c == 'targets' else 3}f}" for c in columns]
        table.add_row(name, *cells)
    Console(width=200).print(table)
    if args.out:
        args.out.write_text(json.dumps(table_rows, indent=1) + "\n")
    if args.rows:
        import pandas as pd

        pd.DataFrame(rows).to_parquet(args.rows)


if __name__ == "__main__":
    main()
