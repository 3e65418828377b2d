"""Writes an evaluation down: tables as CSV and Markdown, curves as PNG, each with the rows that it is about."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import ArrayLike

from usam.curves import RelativeArea, Replacement
from usam.evaluate import Evaluation, Figure, RowSummary
from usam.metrics import CALIBRATION_BINS

Cell = str | int | float

FORMULA = (
    "relative_area = (A - A_random) / (A_oracle - A_random), A the area under mean IoU over the share of masks "
    "replaced, on [0, 1]: random 0, oracle 1. published_ratio = gain area over the oracle's on [0, .5]; random does "
    "not score 0 there, and the definition is not confirmed."
)


@dataclass(frozen=True)
class Table:
    """A table with a title and notes.

    Attributes: title, columns, rows (one cell per column), notes (printed under it).
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()

    def csv(self) -> str:
        """Comma-separated, full precision, notes left out."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        return text.getvalue()

    def markdown(self) -> str:
        """A Markdown table under a heading, numbers to three digits."""
        lines = ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(_short(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join([f"## {self.title}", "", *lines, "", *(f"{note}\n" for note in self.notes)])


def rows_table(rows: RowSummary) -> Table:
    """Which rows were judged, and the visibility mix of all."""
    shares = [
        ("judged: truth visible, mask not empty", rows.judged),
        ("missed: truth visible, mask empty", rows.missed),
    ]
    shares += [("false: truth hidden, mask not empty", rows.false), ("both empty", rows.empty)]
    note = f"Mean IoU {rows.mean_iou:.3f} on judged rows, {rows.mean_iou_visible:.3f} with missed ones counted as 0."
    return Table("Rows", ("rows", "count", "share"), [(n, c, c / rows.rows) for n, c in shares], (note,))


def quality_table(evaluation: Evaluation) -> Table:
    """Correlations, AURC and calibration error, pooled and within videos."""
    metrics = ("pearson", "spearman", "aurc", "calibration_error")
    notes = (
        "Positive correlations mean that a lower uncertainty goes with a higher IoU. Within video: the mean over "
        f"videos with at least {evaluation.min_rows} judged rows and, for correlations, IoU that varies. AURC (risk "
        f"1 - IoU) and calibration error ({CALIBRATION_BINS} bins of equal width) are better when lower.",
        _how(evaluation),
    )
    return _figures("Quality", evaluation, [f for f in evaluation.figures if f.metric in metrics], notes)


def replacement_table(evaluation: Evaluation) -> Table:
    """Both numbers of every replacement curve."""
    figures = [f for f in evaluation.figures if f.metric in ("relative_area", "published_ratio")]
    return _figures("Replacement", evaluation, figures, (FORMULA, _how(evaluation)))


def ablation_table(applications: Mapping[str, Replacement], variants: Mapping[str, Mapping[str, ArrayLike]]) -> Table:
    """Which tokens a head needs: the two numbers of a replacement curve per variant of its input.

    Args:
        applications: by name, judged rows only.
        variants: per application, uncertainty columns by name, e.g. IoU token only, mask token only, both.
    Returns: one row per application and variant, in percent as the paper prints them.
    Raises:  EvaluationError for columns that do not fit.
    """
    rows: list[tuple[Cell, ...]] = []
    for application, columns in variants.items():
        for name, uncertainty_n in columns.items():
            relative = RelativeArea(applications[application], uncertainty_n)
            rows.append((application, name, 100 * relative(), 100 * relative.published()))
    return Table(
        "Token ablation", ("application", "input", "relative_area_pct", "published_ratio_pct"), rows, (FORMULA,)
    )


def write_report(evaluation: Evaluation, folder: Path, more: Sequence[Table] = ()) -> list[Path]:
    """Write `quality.csv`, `replacement.csv`, `rows.csv`, `evaluation.md`, `replacement.png` and `risk.png`.

    Args:    evaluation: what to write. folder: made if missing. more: further tables, each a CSV named by its title.
    Returns: the files.
    """
    from usam.plots import plot_replacement, plot_risk  # matplotlib only where it is used

    folder.mkdir(parents=True, exist_ok=True)
    tables = [rows_table(evaluation.rows), quality_table(evaluation)]
    tables += [replacement_table(evaluation)] if evaluation.curves else []
    tables += more
    files = []
    for table in tables:
        files.append(folder / f"{table.title.lower().replace(' ', '_')}.csv")
        files[-1].write_text(table.csv())
    files.append(folder / "evaluation.md")
    files[-1].write_text("# Evaluation\n\n" + "\n".join(table.markdown() for table in tables))
    files.append(plot_risk(evaluation, folder / "risk.png"))
    if evaluation.curves:
        files.append(plot_replacement(evaluation, folder / "replacement.png"))
    return files


def _figures(title: str, evaluation: Evaluation, figures: Sequence[Figure], notes: tuple[str, ...]) -> Table:
    columns = ("metric", "scope", "score", "value", "low", "high", "ahead", "ahead_low", "ahead_high", "random",
               "oracle", "videos", "rows", "coverage")  # fmt: skip
    rows = evaluation.rows
    cells: list[tuple[Cell, ...]] = [
        (f.metric, f.scope, f.score, f.value, f.low, f.high, f.ahead, f.ahead_low, f.ahead_high, f.random, f.oracle,
         f.videos, rows.judged, rows.coverage)
        for f in figures
    ]  # fmt: skip
    mix = f"Of {rows.rows} rows {rows.missed} are missed, {rows.false} false and {rows.empty} empty on both sides."
    return Table(title, columns, cells, (*notes, mix))


def _how(evaluation: Evaluation) -> str:
    return (
        f"low and high: 95% interval over {evaluation.replicates} draws of videos. ahead: better than "
        f"{evaluation.baseline} by so much, on the same draws. random and oracle: what a random order and the order by "
        "truth get on these rows."
    )


def _short(cell: Cell) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return "" if cell != cell else f"{cell:.3f}"
