"""The closing summary of a label run: a table for people, the same figures as JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from pipeline.cli.console import plain_table

if TYPE_CHECKING:
    from pipeline.report import VideoReport

STATUSES = ("labelled", "re-decided", "unchanged", "duplicate", "failed")
_SUMMED = ("frames", "rows", "accepted", "review", "hold", "absent", "untracked")


def totals(reports: Sequence[VideoReport]) -> dict[str, Any]:
    """Sums and shares over all videos.

    Returns: frames, rows, masks, accepted, review, hold, absent, untracked (counts); accepted_share, review_share,
             absent_share (of the rows, in 0..1, None without rows); wall_seconds; frames_per_second; how many videos
             were labelled, re-decided, unchanged, duplicate and failed.
    """
    sums: dict[str, Any] = {name: sum(int(getattr(report, name) or 0) for report in reports) for name in _SUMMED}
    sums["masks"] = sums["rows"] - sums["absent"] - sums["untracked"]
    for name in ("accepted", "review", "absent"):
        sums[f"{name}_share"] = sums[name] / sums["rows"] if sums["rows"] else None
    sums["wall_seconds"] = sum(report.wall_seconds or 0.0 for report in reports)
    worked = [report for report in reports if report.status == "labelled"]
    seconds = sum(report.wall_seconds or 0.0 for report in worked)
    sums["frames_per_second"] = (
        sum((report.frames_per_second or 0.0) * (report.wall_seconds or 0.0) for report in worked) / seconds
        if seconds
        else None
    )
    for status in STATUSES:
        sums[status] = sum(report.status == status for report in reports)
    return sums


def as_json(reports: Sequence[VideoReport], out: str, *, interrupted: bool = False) -> dict[str, Any]:
    """What `--json` prints: every report, the totals, where the output is, and whether the run was interrupted."""
    return {
        "out": out,
        "interrupted": interrupted,
        "videos": [dataclasses.asdict(report) for report in reports],
        "totals": totals(reports),
    }


def summary_table(reports: Sequence[VideoReport]) -> Table:
    """One line per video and a last one for all of them."""
    table = plain_table()
    table.add_column("video", overflow="fold", min_width=12)
    for heading in ("frames", "masks", "accepted", "review", "absent", "wall", "frames/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for report in reports:
        name = escape(PurePosixPath(report.video).name)
        if report.status == "failed":
            table.add_row(name, *[""] * 7, "[bold red]failed[/]")
            continue
        style = "dim" if report.status in ("unchanged", "duplicate") else "green"
        table.add_row(name, *_figures(totals([report])), f"[{style}]{report.status}[/]")
    if len(reports) > 1:
        table.add_section()
        sums = totals(reports)
        words = [f"{sums[status]} {status}" for status in STATUSES if sums[status]]
        table.add_row("all", *_figures(sums), ", ".join(words), style="bold")
    return table


def _figures(sums: dict[str, Any]) -> list[str]:
    """The seven figures of one line."""
    rate = sums["frames_per_second"]
    return [
        f"{sums['frames']:,}",
        f"{sums['masks']:,}",
        percent(sums["accepted_share"]),
        percent(sums["review_share"]),
        percent(sums["absent_share"]),
        f"{sums['wall_seconds']:.1f} s",
        f"{rate:.1f}" if rate else "-",
    ]


def evidence(text: str) -> str:
    """What stands behind thresholds, as markup: "certified until ..." green, "uncertified: ..." yellow."""
    first, _, rest = escape(text).partition(" ")
    return f"[{'green' if first == 'certified' else 'yellow'}]{first.rstrip(':')}[/]{':' * first.endswith(':')} {rest}"


def counted(number: int, word: str) -> str:
    """A number and its noun: 1, "frame" -> "1 frame"; 2, "frame" -> "2 frames"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def percent(share: float | None) -> str:
    """A share as people read it: 0.314 -> "31.4%"; "-" without one."""
    return "-" if share is None else f"{100 * share:.1f}%"
