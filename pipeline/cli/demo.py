"""`masksieve demo`: three clips with known truth, so that one sees whether uncertainty finds the wrong masks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.console import notices, plain_table, results
from pipeline.cli.label import Set, make_settings
from pipeline.cli.progress import Board
from pipeline.cli.summary import evidence, percent, summary_table

if TYPE_CHECKING:
    from pipeline.demo import Agreement
    from pipeline.label import Progress


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for clips, labels and pictures.")] = Path("demo-out"),
    set_: Set = None,
) -> None:
    """Make three synthetic clips, label them with the embedded model, and compare with their truth."""
    from pipeline.demo import DEMO_CLIPS, run_demo

    settings = make_settings("demo", set_)
    start = time.monotonic()
    running = ""
    console = notices()
    console.print("drawing three clips with exact truth, labelling them with sam2_nano (made for this, no download)")
    with Board(console, len(DEMO_CLIPS)) as board:

        def show(name: str, step: Progress) -> None:
            nonlocal running
            if name != running:
                running = name
                board.start(name)
            board.update(step)

        report = run_demo(out, settings, progress=show, done=board.finish)
    told = results()
    told.print()
    told.print(summary_table(report.reports))
    table = plain_table()
    table.add_column("against the truth")
    for heading in ("rows", "mean true IoU", "IoU >= 0.5", "called absent"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("[green]accepted[/]", *_figures(report.accepted))
    table.add_row("[red]flagged for review[/]", *_figures(report.flagged))
    table.add_row("all", *_figures(report.every), style="dim")
    told.print()
    told.print(table)
    told.print(
        f"\ncoverage {percent(report.coverage)}: that share of all rows was accepted without a person", soft_wrap=True
    )
    for text in sorted({one.evidence for one in report.reports}):
        told.print(evidence(text), soft_wrap=True)
    told.print("\nlook at")
    for path, what in (
        *((film, "masks by decision: solid accepted, hatched and red-edged flagged") for film in report.films[:1]),
        *((film, "") for film in report.films[1:]),
        (report.timeline, "uncertainty and true error over time"),
        (report.contact, "what was flagged, and why"),
        (report.labels, "Parquet: labels/, review/, masks/ and commits/"),
    ):
        told.print(f"  {path}  [dim]{what}[/]".rstrip(), soft_wrap=True)
    told.print(f"\n{time.monotonic() - start:.0f} s in all")


def _figures(group: Agreement) -> list[str]:
    """One line of the comparison."""
    iou = "-" if group.mean_iou is None else f"{group.mean_iou:.2f}"
    return [f"{group.rows:,}", iou, percent(group.good_share), percent(group.absent_share)]
