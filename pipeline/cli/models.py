"""`masksieve models`: which models there are, fetch one, check one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pipeline.cli.console import notices, plain_table, reading_the_call, results

app = typer.Typer(help="Models by name: list, fetch, verify.", no_args_is_help=True)
Cache = Annotated[Path | None, typer.Option("--cache-dir", help="Cache folder.", show_default="$MASKSIEVE_CACHE")]


@app.command("list")
def list_(
    cache_dir: Cache = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models and whether each is ready on this machine."""
    from pipeline.models import models_table

    rows = models_table(cache_dir)
    if json_:
        keys = ("name", "source", "status", "url", "size_bytes", "sha256")
        typer.echo(
            json.dumps([{key: getattr(row, key) for key in keys} | {"path": str(row.path)} for row in rows], indent=1)
        )
        return
    table = plain_table()
    for heading in ("model", "source", "status", "size", "sha256"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "size" else "left")
    for row in rows:
        size = f"{row.size_bytes / 1e6:.1f} MB" if row.size_bytes else "-"
        status = "[green]ready[/]" if row.status == "ready" else "[dim]missing[/]"
        table.add_row(escape(row.name), row.source, status, size, (row.sha256 or "-")[:12])
    results().print(table)
    if any(row.status == "missing" for row in rows):
        results().print("\nfetch one: masksieve models fetch NAME", soft_wrap=True)


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="A model's name.")], cache_dir: Cache = None) -> None:
    """Download a model's weights and record their checksum."""
    from pipeline.checkpoints import model_spec
    from pipeline.models import fetch as fetch_model

    with reading_the_call():
        model_spec(name)
    console = notices()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(escape(name), total=None)
        file = fetch_model(name, cache_dir, progress=lambda done, total: bars.update(task, completed=done, total=total))
    results().print(
        f"{file.name} ready: {file.path} ({file.size_bytes / 1e6:.1f} MB, sha256 {file.sha256})", soft_wrap=True
    )


@app.command()
def verify(name: Annotated[str, typer.Argument(help="A model's name.")], cache_dir: Cache = None) -> None:
    """Check a model's weights against the recorded checksum."""
    from pipeline.checkpoints import model_spec
    from pipeline.models import verify as verify_model

    with reading_the_call():
        model_spec(name)
    file = verify_model(name, cache_dir)
    results().print(f"{file.name} verified: sha256 {file.sha256}", soft_wrap=True)
