"""`masksieve status`: where every drop stands, what failed and why, and what to do about it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import FAILED, CallError, plain_table, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output
from pipeline.cli.summary import counted
from pipeline.suggest import did_you_mean

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.status import DropStatus, Line, OutputStatus

NAMED = 20
"""So many videos of one state of a drop are named; --json names more."""


def status(
    out: Out,
    drop: Annotated[str | None, typer.Option(help="Only this drop.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds until Ctrl-C.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if anything is in quarantine.")] = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Tell where the drops of an output stand: done, running, waiting, failed, in quarantine, and why."""
    from pipeline.status import output_status

    settings = make_settings(config, set_)
    store = existing_output(out, settings.storage)
    found = output_status(store, settings.drops, drop)
    if drop is not None and not found.drops:
        names = [one.drop for one in output_status(store, settings.drops).drops]
        raise CallError(f"a drop that {store.url} knows", drop, did_you_mean(drop, names) if names else "none is yet")
    if watch and not json_:
        _watch(lambda: output_status(store, settings.drops, drop), found)
    elif json_:
        typer.echo(json.dumps(asdict(found) | {"quarantined": found.quarantined}, indent=1))
    else:
        results().print(_drawn(found), soft_wrap=True)
    if check and found.quarantined:
        raise typer.Exit(FAILED)


def _watch(look: object, found: OutputStatus, every_seconds: float = 5.0) -> None:
    """Draw it again and again until the person has seen enough."""
    from rich.live import Live

    assert callable(look)
    with Live(_drawn(found), console=results(), auto_refresh=False, screen=False) as live:
        try:
            while True:
                time.sleep(every_seconds)
                live.update(_drawn(look()), refresh=True)
        except KeyboardInterrupt:
            return


def _drawn(found: OutputStatus) -> RenderableType:
    """The table of all drops, and below it what needs a look."""
    from rich.console import Group
    from rich.text import Text

    if not found.drops:
        words = f"no drop on record in {found.url}; {counted(found.committed, 'video')} committed"
        return Group(Text(words), *_certificates(found))
    table = plain_table()
    table.add_column("drop", overflow="fold")
    for heading in ("listed", "done", "running", "waiting", "settling", "no prompts", "failed", "quarantined"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("planned", no_wrap=True)
    parts: list[RenderableType] = [table]
    for one in found.drops:
        table.add_row(*_figures(one))
        parts += [Text.from_markup(line) for line in _notes(one)]
    parts.append(Text(f"\n{counted(found.committed, 'video')} committed in {found.url}"))
    parts += _certificates(found)
    return Group(*parts)


def _certificates(found: OutputStatus) -> list[RenderableType]:
    """A line for each certificate, the newest first."""
    from rich.text import Text

    styles = {"valid": "green", "expired": "yellow", "void": "bold red", "not_certified": "dim"}
    lines = []
    for one in found.certificates[::-1][:NAMED]:
        limits = ""
        if one.thresholds is not None:
            highest, lowest = one.thresholds
            limits = f"; threshold {highest:g}" if highest == lowest else f"; thresholds {lowest:g} to {highest:g}"
        promise = f"[dim]({one.promise}, {one.confidence:.0%} confidence)[/]"
        lines.append(f"certificate {one.id}: [{styles[one.state]}]{escape(one.text)}[/]{limits} {promise}")
    lines += _more(len(found.certificates) - NAMED)
    return [Text.from_markup(line) for line in lines]


def _figures(one: DropStatus) -> list[str]:
    """The cells of a drop."""
    from pipeline.status import age

    def figure(number: int | None, style: str) -> str:
        return "-" if number is None else f"[{style}]{number:,}[/]" if number else "[dim]0[/]"

    planned = "[dim]no plan[/]" if one.planned_seconds is None else f"{age(one.planned_seconds)} ago"
    return [
        escape(one.drop), figure(one.listed, "default"), figure(one.done, "green"), figure(one.running, "cyan"),
        figure(one.waiting, "default"), figure(one.settling, "default"), figure(one.needs_prompts, "yellow"),
        figure(one.failed + one.unavailable + one.cancelled, "yellow"), figure(one.quarantined, "bold red"), planned,
    ]  # fmt: skip


def _notes(one: DropStatus) -> list[str]:
    """What needs a look, in markup, each with what to do."""
    notes: list[str] = []
    for state in ("running", "failed", "unavailable", "cancelled", "quarantined"):
        total = getattr(one, state)
        lines = [line for line in one.lines if line.state == state]
        if total:
            notes += ["", f"[bold]{escape(one.drop)}: {total:,} {state}[/]{_what_to_do(state)}"]
            notes += [f"  {_told(line)}" for line in lines[:NAMED]]
            notes += _more(total - min(NAMED, len(lines)))
    if one.forgotten:
        who = "1 video that was" if one.forgotten == 1 else f"{one.forgotten:,} videos that were"
        notes += ["", f"[bold]{escape(one.drop)}: {who} forgotten on request[/]; take the files out of the drop"]
    if one.needs_prompts:
        todo = "put STEM.prompts.json beside each, or set prompts.on_missing: auto"
        notes += ["", f"[bold]{escape(one.drop)}: {one.needs_prompts:,} without prompts[/]; {todo}"]
        notes += [f"  {escape(name)}" for name in one.without_prompts[:NAMED]]
        notes += _more(one.needs_prompts - min(NAMED, len(one.without_prompts)))
    if one.refused:
        notes += ["", f"[bold]{escape(one.drop)}: {one.refused:,} refused[/]; rename them"]
        notes += [f"  {escape(text)}" for text in one.refusals[:NAMED]]
        notes += _more(one.refused - min(NAMED, len(one.refusals)))
    if one.repairs:
        notes += ["", f"{one.repairs:,} committed videos lack labels; the next run of the drop derives them"]
    return notes


def _what_to_do(state: str) -> str:
    return {
        "failed": "; the next plan tries again",
        "unavailable": "; a store or a disk failed, not the video: the next plan tries again",
        "cancelled": "; the next plan tries again",
        "quarantined": "; `masksieve retry OUT VIDEO` once the cause is gone",
    }.get(state, "")


def _told(line: Line) -> str:
    """One video in one line."""
    from pipeline.status import age

    words = escape(line.video or f"a video without a name on record, plan {line.plan_key[:12]}")
    if line.state == "running":
        seconds = "" if line.seconds is None else f" for {age(line.seconds)}"
        return f"{words} [dim]at {escape(line.stage or 'start')}{seconds}, on {escape(line.host or 'unknown host')}[/]"
    counts = f"attempt {line.attempts} of {line.attempts_max}: " if line.state == "failed" else ""
    return f"{words} [dim]{counts}{escape(line.error or 'no reason on record')}[/]"


def _more(number: int) -> list[str]:
    return [f"  and {number:,} more"] if number > 0 else []
