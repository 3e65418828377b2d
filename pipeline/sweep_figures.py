"""The figures of a sweep as plain records, the same for the terminal, CSV, JSON and the page."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.sweep import Sweep
from pipeline.sweep_curve import Curve

TERMINAL_ROWS = 12
CSV_DIGITS = 6


def columns(sweep: Sweep) -> list[str]:
    """Names of the figures of a threshold; the load of a day where the commits tell the days, else of 1,000 frames."""
    return [
        "threshold", "current", "coverage", "accepted", "review_rows", "review_stretches", "stretches_per_video",
        "stretches_per_day" if sweep.days else "stretches_per_1000_frames",
        "truth_rows", "truth_videos", "error_rate", "error_low", "error_high", "mean_iou", "iou_low", "iou_high",
    ]  # fmt: skip


def group_columns(sweep: Sweep) -> list[str]:
    """Names of the figures of a group; a share of the load of all videos would mean nothing there."""
    per = {"stretches_per_video", columns(sweep)[7], "current"}
    return ["source", "label", "model", "predicted", *(name for name in columns(sweep) if name not in per)]


def figures(sweep: Sweep, curve: Curve, k: int) -> dict[str, Any]:
    """What one threshold does to the rows of a curve.

    Args:    k: position of the threshold; -1 is the policy as it stands.
    Returns: by `columns`; None where a figure is unknown. `threshold` is None for a policy with thresholds by group.
    """
    stretches = int(curve.stretches_k[k])
    per_video, per_time = load(sweep, stretches)
    found: dict[str, Any] = {
        "threshold": _number(sweep.thresholds_k[k]),
        "current": k in (-1, sweep.now),
        "coverage": _number(curve.coverage_k[k]),
        "accepted": int(curve.accepted_k[k]),
        "review_rows": int(curve.flagged_k[k]),
        "review_stretches": stretches,
        "stretches_per_video": per_video,
        columns(sweep)[7]: per_time,
    }
    risk = curve.risk
    found |= {
        "truth_rows": 0 if risk is None else int(risk.rows_k[k]),
        "truth_videos": 0 if risk is None else int(risk.videos_k[k]),
        "error_rate": None if risk is None else _number(risk.error_k[k]),
        "error_low": None if risk is None else _number(risk.error_low_k[k]),
        "error_high": None if risk is None else _number(risk.error_high_k[k]),
        "mean_iou": None if risk is None else _number(risk.iou_k[k]),
        "iou_low": None if risk is None else _number(risk.iou_low_k[k]),
        "iou_high": None if risk is None else _number(risk.iou_high_k[k]),
    }
    return found


def load(sweep: Sweep, stretches: int) -> tuple[float, float | None]:
    """Stretches per video, and per day, or per 1,000 frames where days are not known."""
    per_time = stretches / sweep.days if sweep.days else 1000 * stretches / sweep.frames if sweep.frames else None
    return stretches / max(1, sweep.videos), per_time


def current(sweep: Sweep) -> dict[str, Any]:
    """What the policy as it stands does to all rows."""
    return figures(sweep, sweep.overall, sweep.now)


def told(sweep: Sweep) -> list[dict[str, Any]]:
    """The full grid; the policy as it stands comes last where its groups have thresholds of their own."""
    positions = [*sweep.told.tolist(), *([-1] if sweep.now < 0 else [])]
    return [figures(sweep, sweep.overall, k) for k in positions]


def a_dozen(sweep: Sweep) -> list[dict[str, Any]]:
    """About twelve thresholds at even steps of coverage, the policy's own among them."""
    rows = told(sweep)
    shares = np.array([row["coverage"] or 0.0 for row in rows if row["threshold"] is not None])
    wanted = np.linspace(shares.min(), shares.max(), TERMINAL_ROWS)
    near = {int(np.abs(shares - share).argmin()) for share in wanted}
    return [row for i, row in enumerate(rows) if i in near or row["current"]]


def by_group(sweep: Sweep) -> list[dict[str, Any]]:
    """Each group by the policy as it stands, most rows first: by `group_columns`."""
    found = []
    for (group, curve), threshold in zip(sweep.groups.items(), sweep.group_thresholds, strict=True):
        row = {**group._asdict(), "predicted": curve.predicted, **figures(sweep, curve, -1), "threshold": threshold}
        found.append({name: row[name] for name in group_columns(sweep)})
    return found


def as_csv(rows: Iterable[Mapping[str, Any]], names: list[str]) -> str:
    """Records as CSV; an unknown figure is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _said(row.get(name)) for name in names})
    return out.getvalue()


def _said(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.{CSV_DIGITS}g}" if isinstance(value, float) else value


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
