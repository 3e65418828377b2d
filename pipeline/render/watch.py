"""Draws a watch: the e-value of the audit over videos with its limit, and the p-value of every look at the mix."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.watch_record import Look

_LINE, _LIMIT, _INK = "#0072B2", "#D55E00", "#222222"
_LEAST_E = 1e-3
_WIDTH = 120


def draw_watch(
    e_values: Sequence[float], looks: Sequence[Look], *, alpha: float, title: str, verdict: str, promise: str
) -> bytes:
    """Two panels.

    Args:
        e_values: after every judged video. looks: at the mix.
        alpha: of both tests; the audit's limit is its inverse.
        title: what is watched. verdict: where it stands, in words. promise: in words.
    Returns: a PNG.
    """
    figure = Figure(figsize=(10.5, 6.4), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    words = "\n".join([title, *textwrap.wrap(verdict, _WIDTH)])
    figure.suptitle(words, fontsize=11, color=_INK, x=0.01, ha="left", parse_math=False)
    audit, mix = figure.subplots(2, 1)
    for axis in (audit, mix):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    _draw_audit(audit, e_values, alpha, promise)
    _draw_mix(mix, looks)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw_audit(axis: Axes, e_values: Sequence[float], alpha: float, promise: str) -> None:
    values = [1.0, *(max(value, _LEAST_E) for value in e_values)]
    axis.plot(range(len(values)), values, color=_LINE, linewidth=1.6)
    axis.axhline(1 / alpha, color=_LIMIT, linewidth=1.2, linestyle=(0, (5, 2)))
    axis.annotate(
        f"void at {1 / alpha:g}", (1, 1 / alpha), xycoords=("axes fraction", "data"), xytext=(-2, 3),
        textcoords="offset points", ha="right", va="bottom", color=_LIMIT, fontsize=9,
    )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(min(0.3, min(values) / 2), max(2 / alpha, max(values) * 2))
    axis.set_xlim(0, max(10, len(values) - 1))
    axis.set_title(f"Audit: evidence against “{promise}”", loc="left", fontsize=10)
    axis.set(xlabel="judged videos, in the order of their commits", ylabel="e-value")
    if not e_values:
        _say(axis, "no video is judged yet")


def _draw_mix(axis: Axes, looks: Sequence[Look]) -> None:
    numbers = range(1, len(looks) + 1)
    axis.plot(numbers, [look.p for look in looks], "o", color=_LINE, markersize=5, label="p of the batch")
    ends = ([number - 0.5 for number in numbers], [number + 0.5 for number in numbers])
    axis.hlines([look.level for look in looks], *ends, color=_LIMIT, linewidth=1.4, label="level of the look")
    for number, look in zip(numbers, looks, strict=True):
        if look.changed:
            axis.annotate(
                f"{look.further} {look.by:+.1f} sd", (number, look.p), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=9, color=_LIMIT,
            )  # fmt: skip
    axis.set_yscale("log")
    axis.set_xlim(0.5, max(10.5, len(looks) + 0.5))
    axis.set_title("Mix: is a batch of videos drawn like those that calibrated?", loc="left", fontsize=10)
    axis.set(xlabel="batch", ylabel="p-value")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if looks:
        axis.set_ylim(min(1e-3, *(min(look.p, look.level) / 2 for look in looks)), 2)
        axis.legend(loc="lower left", frameon=False, fontsize=9)
    else:
        axis.set_ylim(1e-3, 1)
        _say(axis, "no batch is full yet")


def _say(axis: Axes, words: str) -> None:
    axis.text(0.5, 0.5, words, transform=axis.transAxes, ha="center", va="center", fontsize=11, color="#8a8a8a")
