"""`masksieve retune`: another policy decides anew about stored facts; what it would change, and the way back."""

from __future__ import annotations

import json
from collections import Counter as Sums
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import (
    FAILED,
    INTERRUPTED,
    CallError,
    notices,
    one_line,
    plain_table,
    reading_the_call,
    results,
)
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output
from pipeline.cli.progress import Counter
from pipeline.cli.summary import counted, evidence, percent
from pipeline.errors import MasksieveError, SettingsError

if TYPE_CHECKING:
    from pipeline.derive import Derived
    from pipeline.policy import Policy
    from pipeline.retune import Retune
    from pipeline.retune_preview import Move
    from pipeline.selection import Selection
    from pipeline.settings import Settings
    from pipeline.storage.objects import ObjectStore

SHOWN = 20
STATUSES = ("written", "unchanged", "fenced", "failed")


def retune(
    out: Out,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy", "-p", metavar="FILE", help="YAML: a policy, or settings with one.", show_default=False
        ),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", metavar="NAME", help="Only this drop; repeatable.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DATE", help="Only videos labelled on that day (UTC) or later.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="DATE", help="Only videos labelled on that day (UTC) or earlier.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME", help="Only videos that have such an object; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would change, and change nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Go back to what was before the last retune.")] = False,
    config: Config = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Decide anew about labelled videos: labels and review list from stored scores, without a model or a video.

    The same command after a crash goes on; [bold]--undo[/] takes the last retune back, also one that was cut short.
    """
    from pipeline.certificate import CertificateError
    from pipeline.policy import load_policy
    from pipeline.retune import begin_retune, begin_undo
    from pipeline.selection import Selection

    settings = make_settings(config, set_)
    chosen = Selection.of(drop, since, until, label)
    if undo and (policy or dry_run or chosen != Selection()):
        raise CallError("--undo alone", "more than that", "it goes back for all videos of the last retune")
    if not undo and policy is None:
        raise CallError("--policy FILE, or --undo", "neither", "write the new thresholds into a YAML file")
    store = existing_output(out, settings.storage)
    if policy is None:
        with reading_the_call(SettingsError):
            begun = begin_undo(store)
        _carry_out(store, begun, settings, json_=json_)
        return
    with reading_the_call():
        new = load_policy(policy)
    if dry_run:
        _show_moves(store, new, settings, chosen, json_=json_)
        return
    with reading_the_call(SettingsError), reading_the_call(CertificateError):
        begun = begin_retune(store, new, chosen)
    _carry_out(store, begun, settings, json_=json_)


@dataclass
class _Done:
    """What was done so far."""

    statuses: Sums[str] = field(default_factory=Sums)
    rows: Sums[str] = field(default_factory=Sums)
    evidence: Sums[str] = field(default_factory=Sums)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, video_id: str, found: Derived | MasksieveError) -> None:
        if isinstance(found, MasksieveError):
            self.statuses["failed"] += 1
            self.errors[video_id] = one_line(found)
            return
        self.statuses[found.status] += 1
        self.evidence[found.evidence.text] += 1
        self.rows.update({name: found.counts[name] for name in ("accept", "review", "hold")})


def _carry_out(store: ObjectStore, begun: Retune, settings: Settings, *, json_: bool) -> None:
    """Do it, with progress on stderr and a summary on stdout."""
    from pipeline.retune import carry_out

    done, total = _Done(), len(begun.policy_ids)
    interrupted = False
    try:
        with Counter(notices(), "retuning", "videos") as count:
            count("", 0, total)
            for number, (video_id, found) in enumerate(carry_out(store, begun, settings), 1):
                done.add(video_id, found)
                count(video_id[:12], number, total)
    except KeyboardInterrupt:
        interrupted = True
    if json_:
        said = {
            "out": store.url, "videos": total, **{name: done.statuses[name] for name in STATUSES},
            "rows": dict(done.rows), "evidence": dict(done.evidence), "policy_ids": sorted(begun.policies),
            "retune": None if begun.entry is None else begun.entry.number, "errors": done.errors,
            "interrupted": interrupted,
        }  # fmt: skip
        typer.echo(json.dumps(said, indent=1))
    else:
        _tell(done, begun)
    if interrupted:
        notices().print("interrupted: the same command goes on, --undo goes back", soft_wrap=True)
        raise typer.Exit(INTERRUPTED)
    if done.errors:
        raise typer.Exit(FAILED)


def _tell(done: _Done, begun: Retune) -> None:
    console = results()
    counts = [f"{done.statuses[name]:,} {name}" for name in STATUSES if done.statuses[name]]
    console.print(f"{counted(len(begun.policy_ids), 'video')}: {', '.join(counts) or 'nothing to do'}")
    rows = done.rows.total()
    if rows:
        shares = (
            f"{done.rows[name]:,} {name} ({percent(done.rows[name] / rows)})" for name in ("accept", "review", "hold")
        )
        console.print(f"{rows:,} masks: {', '.join(shares)}")
    for video_id, error in list(done.errors.items())[:SHOWN]:
        console.print(f"[bold red]failed[/] {video_id[:12]}: {escape(error)}", soft_wrap=True)
    for text, videos in sorted(done.evidence.items()):
        whose = "" if len(done.evidence) == 1 else f" ({counted(videos, 'video')})"
        console.print(f"{evidence(text)}{whose}", soft_wrap=True)
    if begun.entry is not None:
        console.print(f"retune {begun.entry.number}; --undo goes back", soft_wrap=True)


def _show_moves(store: ObjectStore, policy: Policy, settings: Settings, chosen: Selection, *, json_: bool) -> None:
    """How many masks would change side, by source and label."""
    from pipeline.certificate import CertificateError
    from pipeline.retune_preview import preview

    moved: Sums[Move] = Sums()
    errors: dict[str, str] = {}
    videos = 0
    with (
        reading_the_call(SettingsError),
        reading_the_call(CertificateError),
        Counter(notices(), "deciding", "videos") as count,
    ):
        for video_id, total, found in preview(store, policy, settings, chosen):
            videos += 1
            if isinstance(found, MasksieveError):
                errors[video_id] = one_line(found)
            else:
                moved.update(found)
            count(video_id[:12], videos, total)
    changed = sum(number for move, number in moved.items() if move.before != move.after)
    if json_:
        said = {
            "out": store.url, "videos": videos, "masks": moved.total(), "changed": changed,
            "moves": [{**move._asdict(), "masks": number} for move, number in _sorted(moved)], "errors": errors,
        }  # fmt: skip
        typer.echo(json.dumps(said, indent=1))
    else:
        console, table = results(), plain_table()
        for name in ("source", "label", "from", "to"):
            table.add_column(name, no_wrap=name != "source")
        table.add_column("masks", justify="right")
        for cells in _lines(moved):
            table.add_row(*(escape(cell) for cell in cells))
        if table.row_count:
            console.print(table)
        for video_id, error in list(errors.items())[:SHOWN]:
            console.print(f"[bold red]failed[/] {video_id[:12]}: {escape(error)}", soft_wrap=True)
        console.print(
            f"{changed:,} of {counted(moved.total(), 'mask')} in {counted(videos, 'video')} would change side; "
            "nothing was written", soft_wrap=True,
        )  # fmt: skip
    if errors:
        raise typer.Exit(FAILED)


def _sorted(moved: Sums[Move]) -> list[tuple[Move, int]]:
    return sorted(moved.items(), key=lambda one: (one[0].source, one[0].label or "", one[0].before, one[0].after))


def _lines(moved: Sums[Move]) -> Iterator[tuple[str, str, str, str, str]]:
    """Each group's masks that change side, then all together."""
    totals: Sums[tuple[str, str]] = Sums()
    for move, number in _sorted(moved):
        if move.before != move.after:
            totals[move.before, move.after] += number
            yield move.source, move.label or "", move.before, move.after, f"{number:,}"
    for (before, after), number in sorted(totals.items()):
        yield "all", "", before, after, f"{number:,}"
