"""Draws a sweep as one picture: risk over coverage (coverage alone without truth), uncertainties, review load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter

from pipeline.render.palette import HOLD, object_colour, unit
from pipeline.render.sweep_page import BARS, histogram
from pipeline.sweep import Sweep
from pipeline.sweep_figures import current, figures

_INK, _FAINT, _LINE = "#222222", "#6a6a6a", "#dddddd"
_ACCENT = unit(object_colour(6))
_SETTLED_VIDEOS = 20


def draw_sweep(sweep: Sweep, path: Path, *, evidence: str, title: str) -> Path:
    """Write the picture.

    Args:    evidence: what stands behind the policy's threshold. title: where the labels lie, for people.
    Raises:  OSError if it cannot be written.
    """
    figure = Figure(figsize=(13, 4.3), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.055, right=0.985, top=0.77, bottom=0.14, wspace=0.24)
    axes = [figure.add_subplot(1, 3, i + 1) for i in range(3)]
    rows = [figures(sweep, sweep.overall, k) for k in sweep.told.tolist()]
    column = {name: np.array([np.nan if row[name] is None else row[name] for row in rows], float) for name in rows[0]}
    now = current(sweep)
    if sweep.overall.risk is None:
        _plain(axes[0], column["threshold"], column["coverage"], now["threshold"], now["coverage"])
        axes[0].set(xlabel="threshold (uncertainty)", xlim=(0, 1), ylim=(0, 1))
        axes[0].yaxis.set_major_formatter(PercentFormatter(1, 0))
        _title(axes[0], "Coverage by threshold", "share of masks accepted; risk unknown without truth")
    else:
        _risk(axes[0], column, now, sweep)
    _histogram(axes[1], sweep)
    _plain(axes[2], column["threshold"], column["stretches_per_video"], now["threshold"], now["stretches_per_video"])
    axes[2].set(xlabel="threshold (uncertainty)", xlim=(0, 1))
    axes[2].set_ylim(0, 1.15 * max(1e-6, float(np.nanmax(column["stretches_per_video"]))))
    _title(axes[2], "Review load by threshold", "stretches of flagged masks per video")
    figure.text(0.012, 0.945, title, fontsize=12.5, fontweight="bold", color=_INK, va="center", parse_math=False)
    at = "thresholds by group" if now["threshold"] is None else f"threshold {now['threshold']:g}"
    figure.text(
        0.985,
        0.945,
        f"policy {sweep.policy.name}, {at}; {evidence}",
        parse_math=False,
        fontsize=9.5,
        color=_FAINT,
        va="center",
        ha="right",
    )
    figure.savefig(path, metadata={"Software": None})
    return path


def _risk(axis: Axes, column: dict[str, Any], now: dict[str, Any], sweep: Sweep) -> None:
    order = column["coverage"] > 0
    coverage, error, low, high = (column[name][order] for name in ("coverage", "error_rate", "error_low", "error_high"))
    axis.fill_between(coverage, low, high, color=_ACCENT, alpha=0.18, linewidth=0)
    axis.plot(coverage, error, color=_ACCENT, linewidth=1.8)
    settled = column["truth_videos"][order] >= _SETTLED_VIDEOS
    tops = high[settled] if settled.any() else np.where(np.isfinite(high), high, error)
    top = float(np.nanmax(tops)) if np.isfinite(tops).any() else 1.0
    if not np.isfinite(error).any():
        axis.text(0.5, 0.5, "no accepted mask has truth", transform=axis.transAxes, ha="center", color=_FAINT)
    if now["error_rate"] is not None:
        _point(axis, now["coverage"], now["error_rate"], left=True)
    axis.set(xlabel="coverage (share of masks accepted)", xlim=(0, 1), ylim=(0, min(1.0, max(0.02, 1.05 * top))))
    axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axis.yaxis.set_major_formatter(PercentFormatter(1, 0 if top > 0.04 else 1))
    note = f"accepted masks with IoU below {sweep.bad_iou:g}; {100 * sweep.confidence:g}% interval, pointwise"
    _title(axis, "Error rate by coverage", note)


def _histogram(axis: Axes, sweep: Sweep) -> None:
    bars = histogram(sweep)
    left, at = np.arange(BARS) / BARS, sweep.policy.max_uncertainty
    passing, stopped = np.array(bars["passing"]), np.array(bars["stopped"])
    grey, taken = unit(HOLD), left + 0.5 / BARS <= at
    wide = 0.92 / BARS
    for where, colour, alpha in ((taken, _ACCENT, 1.0), (~taken, grey, 0.75)):
        axis.bar(left[where], passing[where], wide, align="edge", color=colour, alpha=alpha)
    axis.bar(left, stopped, wide, passing, align="edge", color=grey, alpha=0.3)
    axis.axvline(at, color=_INK, linewidth=1)
    axis.set(xlabel="uncertainty", xlim=(0, 1))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n / 1000:g}k" if n >= 10_000 else f"{n:,.0f}"))
    key = ((_ACCENT, 1.0, "accepted"), (grey, 0.75, "above the threshold"), (grey, 0.3, "stopped by another rule"))
    handles = [Patch(facecolor=colour, alpha=alpha, label=label) for colour, alpha, label in key]
    axis.legend(handles=handles, frameon=False, fontsize=8.5, labelcolor=_FAINT)
    _title(axis, "Masks by uncertainty", f"masks per step of {1 / BARS:g}")


def _plain(axis: Axes, x: Any, y: Any, now_x: float | None, now_y: float | None) -> None:
    axis.plot(x, y, color=_ACCENT, linewidth=1.8)
    if now_x is not None and now_y is not None:
        _point(axis, now_x, now_y)


def _point(axis: Axes, x: float, y: float, *, left: bool = False) -> None:
    """The policy, named at the side where the curve is not."""
    axis.plot([x], [y], marker="o", markersize=7, color=_ACCENT, markeredgecolor="white", zorder=5, clip_on=False)
    offset, side = ((-7, 8), "right") if left else ((6, 9), "left")
    axis.annotate("policy", (x, y), offset, textcoords="offset points", ha=side, fontsize=9, color=_INK)


def _title(axis: Axes, title: str, note: str) -> None:
    axis.text(0, 1.125, title, transform=axis.transAxes, fontsize=11, fontweight="bold", color=_INK)
    axis.text(0, 1.04, note, transform=axis.transAxes, fontsize=8.8, color=_FAINT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_LINE)
    axis.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5, colors=_FAINT, length=2)
    axis.xaxis.label.set(color=_FAINT, fontsize=9)
