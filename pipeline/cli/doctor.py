"""`masksieve doctor`: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import FAILED, plain_table, results
from pipeline.cli.label import Config, Set, make_settings

_MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]limited[/]", "broken": "[bold red]broken[/]"}


def doctor(
    store: Annotated[str | None, typer.Argument(help="An output to try, for example s3://bucket/labels.")] = None,
    config: Config = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check Python, torch, device, decoders, models, disk and, if named, the object store."""
    from pipeline.doctor import examine, healthy

    checks = examine(make_settings(config, set_), store)
    if json_:
        typer.echo(
            json.dumps({"ok": healthy(checks), "checks": [dataclasses.asdict(check) for check in checks]}, indent=1)
        )
    else:
        console = results()
        table = plain_table()
        table.add_column("part", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("found", overflow="fold")
        table.add_column("what to do", overflow="fold")
        for check in checks:
            table.add_row(check.part, _MARKS[check.state], escape(check.found), escape(check.next_step))
        console.print(table)
        console.print("\nready" if healthy(checks) else "\n[bold red]something needed is broken[/], see above")
    if not healthy(checks):
        raise typer.Exit(FAILED)
