"""What all heads cost: their share of a propagated frame, and operations and host syncs against separate heads.

`python benchmarks/heads.py [--quick] [--only share,operations] [--out FILE.json]`

Share: SAM2 propagates a clip as the labelling job does, and the heads score it as the job does, once per chunk of 16
frames, tokens stacked and scores brought to the host included. Frames and head evaluations take turns, so that noise of
the machine meets both; figures are medians. Share = heads / (frame + heads), per frame.

Operations: nine heads on one batch, our bank against nine separate published-style MLPs whose scores are each read by
the host; every call that reaches the device except views is an operation, every read of values a sync. Both sides give
the same scores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from propagate import Counter, clicks_on, make_clip, prompt_set, random_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.label import SMALL_IMAGE_PX
from pipeline.models import load_model
from pipeline.propagate import FrameResult, Session
from usam.heads import HeadBank, HeadCard
from usam.targets import GAP_HEADS, HEADS, IOU_HEADS, shift_of

NINE = (*IOU_HEADS, *GAP_HEADS)
CHUNK = 16
console = Console(width=120)


class PublishedHead(nn.Module):
    """A head as published: three linear layers, ReLU between, sigmoid at the end."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)])

    def forward(self, x: Tensor) -> Tensor:
        """(n, 2d) to (n, 1)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        last: Tensor = self.layers[-1](x).sigmoid()
        return last


class Syncs(TorchFunctionMode):
    """Counts the calls by which a host reads values off the device."""

    READS = ("tolist", "item", "cpu", "numpy", "__float__", "__bool__", "__int__")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.READS:
            self.count += 1
        return func(*args, **(kwargs or {}))


def published_heads(width: int, names: tuple[str, ...]) -> list[PublishedHead]:
    torch.manual_seed(0)
    return [PublishedHead(width).eval().requires_grad_(False) for _ in names]


def bank_of(heads: list[PublishedHead], names: tuple[str, ...], members: int = 1) -> HeadBank:
    """The same weights as one bank, each head `members` times."""
    states = [dict(head.state_dict()) for head in heads for _ in range(members)]
    return HeadBank([name for name in names for _ in range(members)], states, HeadCard("", ""))


def scored(bank: HeadBank, chunk: list[FrameResult]) -> list[dict[str, float]]:
    """The job's own step: tokens of a chunk stacked, all heads at once, scores by name on the host."""
    tokens_n2d = torch.stack([tokens for result in chunk if (tokens := result.tokens_2d) is not None])
    return [dict(zip(bank.heads, row, strict=True)) for row in bank.stacked(tokens_n2d).T.tolist()]


# Share ---------------------------------------------------------------------------------------------------------------


def share_rows(name: str, model: Any, clip: Any, counts: list[int], warm: int, timed: int) -> list[dict[str, Any]]:
    """One row per number of objects and of MLPs per head."""
    threads, before = torch.get_num_threads(), torch.get_num_threads()
    if clip.size <= SMALL_IMAGE_PX:
        threads = 1  # as the job does
    torch.set_num_threads(threads)
    width, rows = 2 * int(model.hidden_dim), []
    for count in counts:
        session = Session(
            model, prompt_set(clicks_on(clip.size, count)), (clip.size, clip.size), warm + timed + 1, reverse=False
        )
        session.prepare(lambda index: clip.frames[0])
        stepper = session.forward(clip)
        banks = {m: bank_of(published_heads(width, HEADS), HEADS, m) for m in (1, 4)}
        frame_s: list[float] = []
        heads_s: dict[int, list[float]] = {m: [] for m in banks}
        for index in range(warm + timed + 1):
            start = time.perf_counter()
            results: list[FrameResult] = next(stepper)
            frame_s.append(time.perf_counter() - start)
            chunk = [result for result in results if result.tokens_2d is not None] * CHUNK
            for members, bank in banks.items() if index else ():
                start = time.perf_counter()
                found = scored(bank, chunk)
                heads_s[members].append((time.perf_counter() - start) / CHUNK)
                if len(found) != len(chunk):
                    raise RuntimeError(f"{len(found)} scores for {len(chunk)} masks")
        frame = statistics.median(frame_s[-timed:])
        console.print(f"[dim]{name}, {count} objects: {1e3 * frame:.0f} ms per frame[/]")
        for members, seconds in heads_s.items():
            cost = statistics.median(seconds[-timed:])
            rows.append({
                "model": name, "threads": threads, "objects": count, "heads": len(HEADS), "mlps_per_head": members,
                "frames": timed, "frame_ms": 1e3 * frame, "heads_ms": 1e3 * cost, "share": cost / (frame + cost),
            })  # fmt: skip
    torch.set_num_threads(before)
    return rows


# Operations ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def operation_rows(width: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Nine heads on one batch of tokens: separate, as one bank, and as a bank of ensembles."""
    heads = published_heads(width, NINE)
    tokens = torch.randn(batch, width)
    one, four = bank_of(heads, NINE), bank_of(heads, NINE, 4)

    def separate() -> list[list[float]]:
        return [head(tokens)[:, 0].tolist() for head in heads]

    sides: dict[str, Any] = {
        "nine separate MLPs": separate,
        "our bank": lambda: one.stacked(tokens).tolist(),
        "our bank, ensembles of 4": lambda: four.stacked(tokens).tolist(),
    }
    shifts = torch.tensor([[shift_of(name)] for name in NINE])
    wanted = torch.tensor(separate()) - shifts
    for side in list(sides)[1:]:
        torch.testing.assert_close(torch.tensor(sides[side]()), wanted, atol=1e-5, rtol=1e-4)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats):
        for side in list(sides) if turn % 2 else reversed(sides):
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    rows = []
    for side, run in sides.items():
        operations, syncs = Counter(), Syncs()
        with operations, syncs:
            run()
        rows.append({
            "side": side, "width": width, "batch": batch, "operations": operations.count, "host_syncs": syncs.count,
            "ms": 1e3 * statistics.median(seconds[side]),
        })  # fmt: skip
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("model", "side") else "right")
    for row in rows:
        cells = {
            k: f"{v:.3%}" if k == "share" else f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()
        }
        table.add_row(*cells.values())
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sam2_nano only, fewer frames")
    parser.add_argument("--only", default="share,operations")
    parser.add_argument("--objects", default="1,3,8")
    parser.add_argument("--warm", type=int, default=17, help="frames of sam2_nano before timing; hiera_tiny has 8")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    args = parser.parse_args()
    parts, counts = set(args.only.split(",")), [int(n) for n in args.objects.split(",")]
    found: dict[str, list[dict[str, Any]]] = {}
    if "operations" in parts:
        found["operations"] = [
            row for width in (256, 512) for batch in (16, 128) for row in operation_rows(width, batch, 30)
        ]
        show(f"nine heads on one batch, {torch.get_num_threads()} threads", found["operations"])
    if "share" in parts:
        with tempfile.TemporaryDirectory() as folder:
            nano = load_model("sam2_nano").model
            timed = 8 if args.quick else 24
            clip = make_clip(Path(folder) / "nano", args.warm + timed + 1, nano.image_size)
            found["share"] = share_rows("sam2_nano", nano, clip, counts, args.warm, timed)
            if not args.quick:
                tiny = random_model("sam2.1_hiera_tiny", 1024)
                clip = make_clip(Path(folder) / "tiny", 12, 1024)
                found["share"] += share_rows("hiera_tiny 1024 px", tiny, clip, counts, 8, 3)
        show("all heads' share of a propagated frame", found["share"])
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
