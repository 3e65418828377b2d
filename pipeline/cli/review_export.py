"""`masksieve review export`: what people said, as one Parquet file of verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import CallError, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output
from pipeline.cli.summary import counted


def export(
    out: Out,
    to: Annotated[Path, typer.Option("--to", help="The file to write.")] = Path("verdicts.parquet"),
    config: Config = None,
    set_: Set = None,
) -> None:
    """Write one verdict for each answer, for `masksieve calibrate --truth` and `masksieve watch --audits`.

    Both take the word `answers` in place of a file, too.
    """
    from pipeline.review.verdicts import export_verdicts

    store = existing_output(out, make_settings(config, set_).storage)
    path = to.expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows, evidence = export_verdicts(store, path)
    except OSError as error:
        raise CallError(f"a writable file {to}", str(error), "choose another --to") from error
    told = f"{counted(rows, 'verdict')}, {evidence:,} of them on audited masks: {escape(str(path))}"
    results().print(told, soft_wrap=True)
