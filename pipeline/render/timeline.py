"""Draws uncertainty per object over time: decisions coloured, prompts marked, the threshold and its evidence named."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pipeline.certificate import UNCERTIFIED, Evidence
from pipeline.errors import StorageError
from pipeline.render.masklet import Masklet, runs
from pipeline.render.palette import decision_colour, object_colour, unit

_MOST_OBJECTS = 24
_INK, _FAINT, _PAPER = "#222222", "#8a8a8a", "#ffffff"
_CUT_WIDTH = 0.8


def draw_timeline(
    masklets: Sequence[Masklet],
    path: Path,
    *,
    title: str,
    threshold: float | None,
    support: Evidence = UNCERTIFIED,
    by_label: Mapping[str | None, float | None] | None = None,
) -> Path:
    """One panel per object: the uncertainty curve over a ground coloured by decision, scene cuts as upright lines.

    Args:
        masklets: objects to draw; above 24 the ones with the most review rows, and the picture says so.
        path: target PNG.
        title: usually the video's name.
        threshold: largest accepted uncertainty, None where the policy has none.
        support: what stands behind it.
        by_label: thresholds that differ by the object's label; None where they do not.
    Returns: path.
    Raises:  StorageError if the picture cannot be written.
    """
    shown = list(masklets)
    if len(shown) > _MOST_OBJECTS:
        worst = sorted(shown, key=lambda masklet: -masklet.review_share)[:_MOST_OBJECTS]
        shown = sorted(worst, key=lambda masklet: masklet.object_id)
        title = f"{title}   ({_MOST_OBJECTS} of {len(masklets)} objects, most review first)"
    panel = 1.35 if len(shown) <= 6 else 0.95
    head, foot = 0.72, 0.78
    height = head + foot + panel * max(1, len(shown))
    figure = Figure(figsize=(11.5, height), dpi=120, facecolor=_PAPER)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.135, right=0.975, top=1 - head / height, bottom=foot / height, hspace=0.22)
    axes = [figure.add_subplot(max(1, len(shown)), 1, i + 1) for i in range(max(1, len(shown)))]
    first = min((int(m.frame_index_n[0]) for m in shown if m.frame_index_n.size), default=0)
    last = max((int(m.frame_index_n[-1]) for m in shown if m.frame_index_n.size), default=1)
    for axis, masklet in zip(axes, shown, strict=False):
        _panel(axis, masklet, (by_label or {}).get(masklet.label, threshold))
    if not shown:
        axes[0].text(0.5, 0.5, "no object", transform=axes[0].transAxes, ha="center", fontsize=12, color=_INK)
        axes[0].set_axis_off()
    for axis in axes:
        axis.set_xlim(first - 0.5, last + 0.5)
        axis.set_xticklabels([]) if axis is not axes[-1] else None
    axes[-1].set_xlabel("frame", color=_INK, fontsize=9, labelpad=1)
    figure.text(
        0.012, 1 - 0.20 / height, title, fontsize=12, fontweight="bold", color=_INK, va="center", parse_math=False
    )
    limits = sorted({limit for limit in (by_label or {}).values() if limit is not None})
    evidence = f"threshold {threshold:.2f}" if threshold is not None else "no threshold"
    if len(limits) > 1:
        evidence = f"thresholds {limits[0]:.2f} to {limits[-1]:.2f} by label"
    evidence += f", {textwrap.shorten(support.brief, 72, placeholder=' …')}"
    figure.text(
        0.975,
        1 - 0.20 / height,
        evidence,
        parse_math=False,
        fontsize=10,
        color=_INK if support.certified else "#b3261e",
        va="center",
        ha="right",
    )
    figure.text(0.012, 1 - 0.45 / height, "uncertainty (0 sure, 1 lost)", fontsize=9, color=_FAINT, va="center")
    if shown:
        _legend(figure, shown, threshold)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"a writable place for {path}", str(error), "choose another --out") from error
    return path


def _panel(axis: Axes, masklet: Masklet, threshold: float | None) -> None:
    """One object's panel."""
    frames, colour = masklet.frame_index_n, unit(object_colour(masklet.object_id))
    state = np.char.add(np.char.add(masklet.decision_n, "/"), masklet.visibility_n)
    edges = _edges(frames)
    for start, stop in runs(state):
        x0, x1 = edges[start], edges[stop]
        decision, visibility = masklet.decision_n[start], masklet.visibility_n[start]
        ground = unit(decision_colour(str(decision)))
        axis.axvspan(x0, x1, color=ground, alpha=0.13, linewidth=0)
        axis.axvspan(x0, x1, ymin=0, ymax=0.055, color=ground, linewidth=0)
        if visibility in ("absent", "untracked"):
            axis.axvspan(
                x0,
                x1,
                facecolor="none",
                edgecolor=_FAINT,
                hatch="////" if visibility == "absent" else "....",
                linewidth=0,
                alpha=0.55,
            )
            if (stop - start) > 0.06 * frames.size:
                axis.text(
                    (x0 + x1) / 2,
                    0.5,
                    visibility,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="#555555",
                    style="italic",
                )
    for cut in masklet.cut_frames_n:
        axis.axvline(cut - 0.5, color=_INK, linewidth=_CUT_WIDTH)
    if threshold is not None:
        axis.axhline(threshold, color="#b3261e", linewidth=0.9, linestyle=(0, (5, 3)))
    if masklet.error_n is not None:
        axis.plot(frames, masklet.error_n, color=_INK, linewidth=0.9, linestyle=(0, (1, 1.5)))
    axis.plot(frames, masklet.uncertainty_n, color="#333333", linewidth=2.6, solid_capstyle="round")
    axis.plot(
        frames, masklet.uncertainty_n, color=colour, linewidth=1.7, marker="o" if frames.size == 1 else "", markersize=4
    )
    prompted = np.flatnonzero(masklet.prompted_n != "")
    for position in prompted:
        axis.plot([frames[position]], [1.0], marker="v", markersize=8, color=_INK, clip_on=False, zorder=5)
    axis.set_ylim(-0.06, 1.0)
    axis.set_yticks([0, 0.5, 1.0], ["0", ".5", "1"], fontsize=8, color=_FAINT)
    axis.tick_params(axis="x", labelsize=8, colors=_FAINT, length=2)
    axis.tick_params(axis="y", length=2)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#cccccc")
    name = (masklet.label or "object")[:14]
    axis.text(
        -0.05,
        0.72,
        f"{masklet.object_id} {name}",
        parse_math=False,
        transform=axis.transAxes,
        ha="right",
        fontsize=10,
        fontweight="bold",
        color=_INK,
    )
    axis.text(-0.05, 0.42, "\u25a0", transform=axis.transAxes, ha="right", fontsize=11, color=colour)
    axis.text(
        -0.072,
        0.44,
        f"review {masklet.review_share:.0%}",
        transform=axis.transAxes,
        ha="right",
        fontsize=8,
        color="#555555",
    )


def _edges(frames_n: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where the ground changes, (n + 1,): half-way between neighbours, also where frames were left out."""
    between = (frames_n[1:] + frames_n[:-1]) / 2
    return np.concatenate([frames_n[:1] - 0.5, between, frames_n[-1:] + 0.5])


def _legend(figure: Figure, shown: Sequence[Masklet], threshold: float | None) -> None:
    """What the colours and marks mean, under the panels; only what is in the picture."""
    present = set(np.concatenate([m.decision_n for m in shown])) if shown else set()
    seen = set(np.concatenate([m.visibility_n for m in shown])) if shown else set()
    handles: list[Patch | Line2D] = [
        Patch(facecolor=(*unit(decision_colour(name)), 0.5), label=name)
        for name in ("accept", "review", "hold")
        if name in present
    ]
    if "absent" in seen:
        handles.append(Patch(facecolor="white", edgecolor=_FAINT, hatch="////", label="absent"))
    if "untracked" in seen:
        handles.append(Patch(facecolor="white", edgecolor=_FAINT, hatch="....", label="untracked"))
    handles.append(Line2D([], [], color="#555555", linewidth=1.8, label="uncertainty"))
    if any(m.error_n is not None for m in shown):
        handles.append(Line2D([], [], color=_INK, linewidth=0.9, linestyle=(0, (1, 1.5)), label="true error (1 - IoU)"))
    if threshold is not None:
        handles.append(Line2D([], [], color="#b3261e", linewidth=0.9, linestyle=(0, (5, 3)), label="threshold"))
    if any((m.prompted_n != "").any() for m in shown):
        handles.append(Line2D([], [], color=_INK, marker="v", linestyle="", label="prompt"))
    if any(m.cut_frames_n.size for m in shown):
        upright = Line2D([], [], color=_INK, marker="|", linestyle="", markersize=11, markeredgewidth=_CUT_WIDTH)
        upright.set_label("scene cut")
        handles.append(upright)
    figure.legend(
        handles=handles,
        loc="lower center",
        ncol=len(handles),
        frameon=False,
        fontsize=8.5,
        handlelength=1.6,
        columnspacing=1.6,
    )
