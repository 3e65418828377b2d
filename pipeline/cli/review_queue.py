"""`masksieve review sync`, `stats` and `changes`: the queue without its page, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import CallError, plain_table, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output
from pipeline.cli.summary import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.review.queue import Queue, Seconds, Stats
    from pipeline.settings import Settings
    from pipeline.storage.objects import ObjectStore

Database = Annotated[
    str | None,
    typer.Option(
        help="The queue: a SQLite file or postgresql://…", show_default="$MASKSIEVE_REVIEW, else one of yours"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def sync(
    out: Out,
    drop: Annotated[str | None, typer.Option(help="Only this drop.")] = None,
    database: Database = None,
    json_: Json = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Bring the queue to what the review lists say now, and write out answers whose time to be taken back is over.

    `masksieve review serve` does both by itself.
    """
    with _opened(out, database, make_settings(config, set_), makes=True) as (queue, store):
        done, written = queue.sync(store, drop), queue.export(store)
    if json_:
        typer.echo(json.dumps({**asdict(done), "written": written}, indent=1))
        return
    parts = [f"{done.added:,} added", f"{done.withdrawn:,} withdrawn", f"{counted(done.items, 'item')} to answer"]
    results().print(", ".join(parts) + (f"; {counted(written, 'answer')} written out" if written else ""))


def stats(
    out: Out,
    reviewer: Annotated[str | None, typer.Option(help="Count the answers of this one today.")] = None,
    database: Database = None,
    json_: Json = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Tell what waits and why, who answered what and how fast, and what audits say of the promise. Days are of UTC."""
    with _opened(out, database, make_settings(config, set_)) as (queue, _):
        found = queue.stats(reviewer)
    if json_:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        results().print(_drawn(found, reviewer), soft_wrap=True)


def changes(
    out: Out,
    cursor: Annotated[int, typer.Option(min=0, help="What came after this one; 0: everything.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    database: Database = None,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Print what came into the queue, left it and was answered, one JSON object a line; ask on with the last cursor.

    Items tell here which of them are audits: not for the eyes of reviewers.
    """
    with _opened(out, database, make_settings(config, set_)) as (queue, _):
        found, _ = queue.changes(cursor, limit)
    for one in found:
        fields: dict[str, object] = {"cursor": one.cursor, "event": one.event, "item_id": one.item_id}
        if one.item is not None:
            fields["item"] = {"item_id": one.item_id, **asdict(one.item)}
        typer.echo(json.dumps(fields, ensure_ascii=False))


def is_there(place: str) -> bool:
    """Whether a queue can be opened without making it; a database that is shared counts as there."""
    return "://" in place or Path(place).expanduser().is_file()


def refuse_missing(place: str) -> None:
    """Raise CallError where there is no such queue."""
    if not is_there(place):
        step = "check the path; `masksieve review sync` or `serve` makes a queue"
        raise CallError(f"a review queue at {place}", "no file", step)


@contextmanager
def _opened(
    out: str, database: str | None, settings: Settings, *, makes: bool = False
) -> Iterator[tuple[Queue, ObjectStore]]:
    """The queue of an output, closed at the end; one that is not there is refused, unless the command makes it."""
    from pipeline.review.queue import Queue, default_place

    store = existing_output(out, settings.storage)
    place = database or default_place()
    if not makes:
        refuse_missing(place)
    queue = Queue(place, store.identity, settings.review)
    try:
        yield queue, store
    finally:
        queue.close()


def _drawn(found: Stats, reviewer: str | None) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    waiting = f"{counted(found.waiting, 'item')} to answer, {found.leased:,} of them with somebody"
    budget = "" if found.budget_left is None else f"; {found.budget_left:,} may still be handed out today"
    who = "" if reviewer is None else f", {found.mine_today:,} by {reviewer}"
    answered = f"{counted(found.answered, 'answer')}, {found.answered_today:,} today{who}"
    unwritten = f"; {found.unexported:,} not written out yet" if found.unexported else ""
    parts: list[RenderableType] = [Text(waiting + budget)]
    for heading, counts in (
        ("drop", found.waiting_by_drop), ("label", found.waiting_by_label), ("reason", found.waiting_by_reason)
    ):  # fmt: skip
        if counts:
            table = plain_table()
            table.add_column(heading, min_width=16)
            table.add_column("items", justify="right")
            for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
                table.add_row(escape(name) or "[dim]none[/]", f"{count:,}")
            parts += [Text(), table]
    parts += [Text(), Text(answered + unwritten)]
    if found.answered:
        table = plain_table()
        for heading in ("verdict", "answers", "median", "mean"):
            table.add_column(heading, justify="left" if heading == "verdict" else "right")
        for verdict, count in found.answered_by_verdict.items():
            table.add_row(verdict, f"{count:,}", *_times(found.seconds_by_verdict.get(verdict)))
        table.add_row("all", f"{found.answered:,}", *_times(found.seconds), style="bold")
        parts.append(table)
    return Group(*parts, Text(), Text(found.promise.words))


def _times(seconds: Seconds | None) -> tuple[str, str]:
    return ("-", "-") if seconds is None else (f"{seconds.median:.1f} s", f"{seconds.mean:.1f} s")
