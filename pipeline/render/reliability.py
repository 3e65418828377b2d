"""Draws a reliability diagram: the IoU that was predicted against the one that came true, and the map between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.calibrate_rows import JudgedRows
from pipeline.certificate_parts import IouMap
from pipeline.errors import StorageError

BINS = 15
_MAP, _CHECK, _FAINT = "#0072B2", "#D55E00", "#9a9a9a"


def draw_reliability(
    mapping: JudgedRows, certifying: JudgedRows, iou_map: IouMap | None, path: Path, *, title: str
) -> Path:
    """Mean true IoU by predicted IoU, in bins of equally many rows, over the distribution of predictions.

    Args:
        mapping: rows of the videos that the map was fitted on. certifying: of the others, as a check of it.
        iou_map: drawn as a line; None draws none.
        path: a .png.
    Returns: path.
    Raises:  StorageError if it cannot be written.
    """
    figure = Figure(figsize=(6.4, 6.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot([0, 1], [0, 1], color=_FAINT, linewidth=0.9, linestyle=(0, (4, 3)), label="as predicted")
    if iou_map is not None:
        score = np.linspace(0, 1, 401)
        videos = f"{iou_map.videos:,} videos"
        above.plot(score, iou_map.isotonic()(score), color=_MAP, linewidth=1.8, label=f"calibrated IoU ({videos})")
    for rows, colour, marker, words in (
        (mapping, _MAP, "o", "videos of the map"), (certifying, _CHECK, "s", "certifying videos"),
    ):  # fmt: skip
        _points(above, rows, colour, marker, words)
    scores = [1 - rows.uncertainty_n[np.isfinite(rows.uncertainty_n)] for rows in (mapping, certifying)]
    below.hist(np.concatenate(scores), bins=50, range=(0, 1), color=_FAINT)
    above.set(ylabel="IoU with the truth", xlim=(0, 1), ylim=(-0.02, 1.02))
    below.set(xlabel="predicted IoU (1 - uncertainty)", ylabel="rows")
    above.legend(frameon=False, fontsize=9, loc="upper left")
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    above.set_title(title, fontsize=11, loc="left", parse_math=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
    except OSError as error:
        raise StorageError(f"a writable place for {path}", str(error), "choose another --out") from error
    return path


def _points(axis: Any, rows: JudgedRows, colour: str, marker: str, words: str) -> None:
    """Means of bins of equally many rows, by score."""
    scored_n = np.isfinite(rows.uncertainty_n)
    order = np.argsort(rows.uncertainty_n[scored_n])[::-1]
    if not len(order):
        return
    columns = [1 - rows.uncertainty_n[scored_n], rows.iou_n[scored_n], rows.weight_n[scored_n]]
    bins = np.array_split(np.stack([column[order] for column in columns]), min(BINS, len(order)), axis=1)
    x = [np.average(score, weights=weight) for score, _, weight in bins]
    y = [np.average(iou, weights=weight) for _, iou, weight in bins]
    axis.plot(x, y, marker=marker, linestyle="", color=colour, markerfacecolor="white", markersize=6, label=words)
