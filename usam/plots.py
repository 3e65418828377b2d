"""Draws replacement and risk-coverage curves into PNG files, without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from usam.curves import FloatArray
from usam.evaluate import Evaluation

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#444444")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)))


def plot_replacement(evaluation: Evaluation, path: Path) -> Path:
    """One panel per application: mean IoU over the share of masks replaced, with the oracle and random order in grey.

    Args:    evaluation: with at least one application. path: a .png.
    Returns: the path.
    """
    names = list(evaluation.curves)
    known = ("random", "oracle")
    order = list(
        dict.fromkeys(score for curves in evaluation.curves.values() for score in curves if score not in known)
    )
    figure, axes = _panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        curves = evaluation.curves[name]
        share = np.linspace(0, 1, len(curves["oracle"]))
        axis.fill_between(
            share, curves["random"], curves["oracle"], color="#eeeeee", linewidth=0, label="random to oracle"
        )
        _draw(axis, share, {k: v for k, v in curves.items() if k not in known}, order)
        axis.set(title=name.capitalize(), xlabel="share replaced, most uncertain first", ylabel="mean IoU", xlim=(0, 1))
    return _finish(figure, axes, path)


def plot_risk(evaluation: Evaluation, path: Path) -> Path:
    """Selective risk (1 - IoU) over coverage, with the oracle's in grey.

    Args:    evaluation: the evaluation. path: a .png.
    Returns: the path.
    """
    figure, (axis,) = _panels(1)
    oracle = evaluation.risks["oracle"]
    coverage = np.linspace(0, 1, len(oracle) + 1)[1:]
    axis.fill_between(coverage, oracle, oracle[-1], color="#eeeeee", linewidth=0, label="random to oracle")
    risks = {name: risk for name, risk in evaluation.risks.items() if name != "oracle"}
    _draw(axis, coverage, risks, list(risks))
    axis.set(xlabel="coverage, most certain first", ylabel="1 - IoU of accepted masks", xlim=(0, 1))
    axis.set_ylim(bottom=0)
    return _finish(figure, [axis], path)


def _panels(count: int) -> tuple[Figure, list[Any]]:
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.2 * columns + 2.0, 3.6 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _draw(axis: Any, x: FloatArray, curves: Mapping[str, FloatArray], order: Sequence[str]) -> None:
    """Lines whose style is their place in `order`, the same in every panel."""
    for name, y in curves.items():
        i = order.index(name)
        style = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i // len(_COLOURS) % len(_DASHES)]}
        axis.plot(x, y, label=name, linewidth=1.6, **style)


def _finish(figure: Figure, axes: Sequence[Any], path: Path) -> Path:
    entries = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Software": None})
    return path
