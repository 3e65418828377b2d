"""Figures of what an answer is worth: a table of the arms, what the aims came to, and the curves as a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pipeline import rle

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BAD_IOU = 0.5
COLUMNS = ("video_uri", "frame_index", "object_id", "height", "width", "rle", "decision")
COLOURS = {"ours": "#1b6ca8", "random": "#d1495b"}
Point = tuple[float, float, float, float]


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Args: curve: (answers, seconds, mean IoU, accepted rows) after each round. bad: see `bad_share`, in the end.
    """

    name: str
    arm: dict[str, Any]
    curve: list[Point]
    found: dict[str, Any]
    bad: float | None = None

    def until(self, level: float, axis: int) -> float | None:
        """Answers (axis 0) or seconds (1) until a mean IoU is first reached, between two rounds by a straight line."""
        before = self.curve[0]
        for point in self.curve:
            if point[2] >= level:
                share = 1.0 if point[2] == before[2] else (level - before[2]) / (point[2] - before[2])
                return before[axis] + share * (point[axis] - before[axis])
            before = point
        return None


def tell(folder: Path, exam: dict[str, Any], docs: Path, measured: Path | None) -> None:
    """Print what the arms came to, and draw them.

    Args:
        folder: of their files.
        docs: gets the picture in `images/` and the numbers in `figures/`.
        measured: seconds of people, in place of the model.
    """
    runs = [_run(path, measured) for path in sorted(folder.glob("*.json"))]
    by_arm = {arm["name"]: [run for run in runs if run.arm["name"] == arm["name"]] for arm in exam["arms"]}
    console = Console(width=150)
    console.print(_table(runs))
    half = exam["aims"]["answers_of_random_at_midway"]
    for suffix in ("", ", 5% wrong"):
        ours, random = by_arm[f"ours{suffix}"], by_arm[f"random{suffix}"]
        if ours and random:
            console.print(_midway(ours[0], random, half, suffix or ", all answers right"), soft_wrap=True)
    if by_arm["ours"]:
        console.print(_headline(by_arm["ours"][0], by_arm["random"]), soft_wrap=True)
    for name in ("images", "figures"):
        (docs / name).mkdir(parents=True, exist_ok=True)
    if any(by_arm.values()):
        draw([run for runs in by_arm.values() for run in runs], docs / "images/review-worth.png")
    kept = ("verdicts", "seconds_by_verdict", "rows", "curve")
    told = {run.name: {name: run.found[name] for name in kept} | {"bad_of_accepted": run.bad} for run in runs}
    (docs / "figures/review-worth.json").write_text(json.dumps(told) + "\n")


def _run(path: Path, measured: Path | None) -> Run:
    found = json.loads(path.read_text())
    curve = [tuple(point) for point in found["curve"]]
    if measured is not None:
        stats = json.loads(measured.read_text())
        by_verdict = {name: one["mean"] for name, one in stats["seconds_by_verdict"].items()}
        total, sums = 0.0, [0.0]
        for verdict, *_, seconds in found["said"]:
            total += by_verdict.get(verdict, seconds)
            sums.append(total)
        curve = [(point[0], sums[int(point[0])], *point[2:]) for point in curve]
    return Run(found["name"], found["arm"], curve, found, bad_share(path.with_suffix("") / "out"))


def midway(ours: Run, random: Sequence[Run]) -> float:
    """The level half-way from no answers to where the orders end."""
    end = statistics.mean((ours.curve[-1][2], statistics.mean(run.curve[-1][2] for run in random)))
    return (ours.curve[0][2] + end) / 2


def _midway(ours: Run, random: Sequence[Run], half: float, what: str) -> str:
    level = midway(ours, random)
    told = [f"midway{what}: mean IoU {level:.4f}"]
    for axis, unit in ((0, "answers"), (1, "s")):
        mine, theirs = ours.until(level, axis), [run.until(level, axis) for run in random]
        reached = [one for one in theirs if one is not None]
        if mine is None or not reached:
            told.append(f"not reached in {unit}")
            continue
        mean = statistics.mean(reached)
        verdict = ("met" if mine <= half * mean else "MISSED") if axis == 0 else ""
        each = ", ".join(f"{one:.0f}" for one in reached)
        told.append(f"ours {mine:.0f} {unit}, random {mean:.0f} ({each}): {mine / mean:.2f} {verdict}".rstrip())
    return "; ".join(told)


def _headline(ours: Run, random: Sequence[Run]) -> str:
    def per_row(run: Run) -> float:
        start, end = run.curve[0], run.curve[-1]
        return end[1] / max(1.0, end[3] - start[3])

    theirs = ", ".join(f"{per_row(run):.2f}" for run in random)
    end = ours.curve[-1]
    return (
        f"headline: {per_row(ours):.2f} reviewer seconds per row that became accepted (random: {theirs}); "
        f"{end[1] / end[3]:.2f} per accepted row of all"
    )


def _table(runs: Sequence[Run]) -> Table:
    table = Table(title="Arms")
    for column in (
        "arm", "answers", "seconds", "IoU before", "after", "accepted before", "after", "bad of these", "s per new row",
        "answers by kind",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column in ("arm", "answers by kind") else "right")
    for run in runs:
        start, end = run.curve[0], run.curve[-1]
        gained = end[3] - start[3]
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(run.found["verdicts"].items()))
        table.add_row(
            run.name + ("" if run.found["finished"] else " (running)"), f"{end[0]:.0f}", f"{end[1]:.0f}",
            f"{start[2]:.4f}", f"{end[2]:.4f}", f"{start[3]:.0f}", f"{end[3]:.0f}",
            "-" if run.bad is None else f"{run.bad:.1%}",
            f"{end[1] / gained:.2f}" if gained > 0 else "-", kinds,
        )  # fmt: skip
    return table


def bad_share(out: Path) -> float | None:
    """Of the masks that an output accepts, the share with an IoU below 0.5; None without the output."""
    found, truth = [], dict[str, NDArray[np.uint8]]()
    for path in sorted(out.glob("labels/*/*.parquet")):
        for row in pq.ParquetFile(path).read(columns=list(COLUMNS)).to_pylist():
            if row["decision"] == "accept":
                uri, size = row["video_uri"], (row["height"], row["width"])
                if uri not in truth:
                    truth[uri] = np.load(Path(uri).with_suffix(".truth.npz"))["ids_thw"]
                true = rle.encode_mask(truth[uri][row["frame_index"]] == row["object_id"]).counts
                found.append(rle.iou(row["rle"] or rle.empty_mask(*size).counts, true, *size) < BAD_IOU)
    return sum(found) / len(found) if found else None


def draw(runs: Sequence[Run], path: Path) -> None:
    """Mean IoU and accepted rows over answers and over seconds."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharey="row", layout="constrained")
    for run in runs:
        order, wrong = run.arm["order"], bool(run.arm.get("wrong"))
        label = ("our order" if order == "ours" else "random order") + (", 5% wrong" if wrong else "")
        known = axes[0, 0].get_legend_handles_labels()[1]
        style = {"color": COLOURS[order], "linestyle": "--" if wrong else "-", "linewidth": 1.6 if not wrong else 1.2}
        for column, (axis, scale) in enumerate(((0, 1.0), (1, 60.0))):
            x = [point[axis] / scale for point in run.curve]
            name = label if column == 0 and label not in known else None
            axes[0, column].plot(x, [point[2] for point in run.curve], label=name, **style)
            shares = [100 * point[3] / run.found["rows"] for point in run.curve]
            axes[1, column].plot(x, shares, **style)
    plain = [run for run in runs if not run.arm.get("wrong")]
    ours, random = ([run for run in plain if run.arm["order"] == order] for order in COLOURS)
    if ours and random:
        for axis in axes[0]:
            axis.axhline(midway(ours[0], random), color="#888888", linewidth=0.8, linestyle=":")
        axes[0, 0].annotate(
            "midway", (1, midway(ours[0], random)), xycoords=("axes fraction", "data"), xytext=(-4, 3),
            textcoords="offset points", ha="right", fontsize=8, color="#666666",
        )  # fmt: skip
    axes[0, 0].set_ylabel("mean IoU of all masks")
    axes[1, 0].set_ylabel("accepted masks, %")
    axes[1, 0].set_xlabel("answers")
    axes[1, 1].set_xlabel("reviewer minutes (modelled)")
    axes[0, 0].legend(loc="lower right", fontsize=8, frameon=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
