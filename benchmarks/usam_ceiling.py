"""What could be known: boosted trees on tokens, heads and track features, beside the shipped score, on the same rows.

    python benchmarks/usam_ceiling.py --training runs/usam/training --exam runs/usam/heldout

Trees read all that heads and stacker read, at once, and learn from the same rows. Where they are not ahead, more would
have to come from other inputs or more data, not from another model of these. Needs scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingRegressor

from pipeline.models import load_model
from usam.curves import RelativeArea
from usam.features import FEATURES
from usam.judge import exam_of
from usam.metrics import pearson
from usam.shard import Shard
from usam.targets import GAP_HEADS, TRACKED_HEAD, shift_of


def inputs(shard: Shard, rows: NDArray[np.intp], tokens: bool) -> NDArray[np.float64]:
    """Track features, and tokens, of some rows."""
    parts = [np.stack([shard.column(name)[rows] for name in FEATURES], 1)]
    return np.concatenate([*parts, shard.pairs(rows)] if tokens else parts, 1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, default=Path("runs/usam/training"))
    parser.add_argument("--exam", type=Path, default=Path("runs/usam/heldout"))
    parser.add_argument("--model", default="sam2_nano")
    args = parser.parse_args()
    torch.set_num_threads(1)
    training, bank = Shard.open(args.training), load_model(args.model).bank
    assert bank is not None
    exam = exam_of(Shard.open(args.exam))
    judged = exam.rows_n[exam.judged_n]
    fit = np.flatnonzero(training.column("predicted"))
    shipped = bank(torch.from_numpy(exam.shard.pairs(judged)))
    table = Table(title=f"{len(judged)} judged rows of {args.exam.name}")
    for heading in ("target", "figure", "shipped", "trees: track", "trees: track + tokens"):
        table.add_column(heading, justify="left" if heading in ("target", "figure") else "right")
    own: dict[str, Any] = {}
    if bank.stacker is not None:
        features = torch.from_numpy(inputs(exam.shard, judged, False)).float()
        heads_nh = torch.stack([shipped[name] for name in bank.stacker.card.heads], 1)
        own = dict(zip(bank.stacker.card.targets, bank.stacker.stacked(heads_nh, features), strict=True))
    there = [head for head in (TRACKED_HEAD, *GAP_HEADS) if np.isfinite(exam.shard.target(head)[judged]).all()]
    for head in there:
        truth = exam.shard.target(head)[judged] - shift_of(head)
        said = own.get(head, shipped[head])
        columns = [said.numpy()]
        for tokens in (False, True):
            trees = HistGradientBoostingRegressor(
                max_iter=300, learning_rate=0.05, max_leaf_nodes=15, l2_regularization=1.0, random_state=0
            )
            trees.fit(inputs(training, fit, tokens), training.target(head)[fit] - shift_of(head))
            columns.append(trees.predict(inputs(exam.shard, judged, tokens)))
        table.add_row(head, "Pearson", *(f"{pearson(column, truth):.3f}" for column in columns))
        name = {"iou_tracked": "segmentation"}.get(head, head.removesuffix("_gap"))
        if name in exam.applications:
            change = exam.applications[name]
            swap = type(change)(change.base_n[exam.judged_n], change.better_n[exam.judged_n])
            sign = -1 if head == TRACKED_HEAD else 1
            areas = [RelativeArea(swap, sign * column)() for column in columns]
            table.add_row(head, f"relative area, {name}", *(f"{area:.3f}" for area in areas))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
