"""`masksieve gc`: lists what no commit names and nobody is still writing, and removes it with --apply."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output, size, sums_table
from pipeline.cli.summary import counted

if TYPE_CHECKING:
    from pipeline.gc import Orphan

SHOWN = 20


def gc(
    out: Out,
    apply: Annotated[bool, typer.Option("--apply", help="Remove what is listed.")] = False,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than",
            metavar="HOURS",
            min=0.0,
            help="Only what was not written to for so long; 0 if nobody writes.",
        ),
    ] = 24.0,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Also the facts of generations that are not the newest.")
    ] = False,
    config: Config = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print every object as JSON.")] = False,
) -> None:
    """Find garbage in an output: facts that no commit names, old pictures, leftovers of killed writers.

    Without [bold]--apply[/] nothing is removed; with it, scratch folders of dead jobs on this machine go as well. If a
    commit cannot be read, nothing is removed.
    """
    from pipeline.gc import Sweep
    from pipeline.ledger import Ledger
    from pipeline.scratch import sweep_scratch

    settings = make_settings(config, set_)
    store = existing_output(out, settings.storage)
    sweep = Sweep(
        store, Ledger(store), settings.drops, older_than_seconds=older_than * 3600, superseded=superseded
    )  # fmt: skip
    garbage = sweep.look()
    gone = sweep.remove(garbage.orphans) if apply else []
    swept = sweep_scratch(settings) if apply else 0
    if json_:
        typer.echo(
            json.dumps(
                {
                    "out": store.url,
                    "applied": apply,
                    "orphans": [asdict(one) for one in garbage.orphans],
                    "size_bytes": garbage.size_bytes,
                    "removed": [one.key for one in gone],
                    "scratch_removed": swept,
                    "kept_young": garbage.kept_young,
                    "videos": garbage.videos,
                },
                indent=1,
            )
        )
        return
    console = results()
    console.print(_by_reason(garbage.orphans))
    for one in sorted(garbage.orphans, key=lambda one: -one.size_bytes)[:SHOWN]:
        console.print(f"  {escape(one.key)} [dim]{size(one.size_bytes)}, {one.reason}[/]", soft_wrap=True)
    if len(garbage.orphans) > SHOWN:
        console.print(f"  and {counted(len(garbage.orphans) - SHOWN, 'more object')}; --json names them all")
    if garbage.kept_young:
        console.print(
            f"{counted(garbage.kept_young, 'object')} left alone that a writer may still need: younger than "
            f"{older_than:g} h, or of work under way",
            soft_wrap=True,
        )
    if apply:
        console.print(f"removed {counted(len(gone), 'object')}, {size(sum(one.size_bytes for one in gone))}")
        if swept:
            console.print(f"removed {counted(swept, 'scratch folder')} of dead jobs on this machine")
    elif garbage.orphans:
        console.print(f"nothing removed; the same call with --apply frees {size(garbage.size_bytes)}")


def _by_reason(orphans: tuple[Orphan, ...]) -> object:
    """How much there is of each kind."""
    if not orphans:
        return "nothing to remove"
    return sums_table("garbage", ((one.reason, one.size_bytes) for one in orphans))
