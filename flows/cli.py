"""The console script `masksieve`: the pipeline's commands, and those that need or start a Prefect server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.commands import deploy, up, worker
from pipeline.cli.console import FAILED, complain, notices, plain_table, reading_the_call, results
from pipeline.cli.entry import app, main
from pipeline.cli.label import Config, Set, overrides_of
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from pipeline.plan import Plan

__all__ = ["app", "drops", "main"]


@app.command()
def drops(
    drop: Annotated[
        str, typer.Argument(metavar="DROP", help="Folder or s3:// prefix where videos arrive.", show_default=False)
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or s3:// prefix for the labels.")],
    name: Annotated[str | None, typer.Option("--drop", help="Name of the drop.", show_default="the folder's")] = None,
    config: Config = None,
    set_: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON on stdout.")] = False,
    submit: Annotated[
        bool | None,
        typer.Option(
            "--submit/--here",
            help="Hand the work to the server's workers, or do it in this process.",
            show_default="submit if there is a server: PREFECT_API_URL",
        ),
    ] = None,
) -> None:
    """Plan a drop once, and have labelled what is still wanted.

    Leaves alone what is labelled, under way, still being uploaded or in quarantine. A second call goes on from where
    a crash ended the first. [bold]masksieve up[/] does this by itself.
    """
    from pipeline.plan import plan_drop, write_plan
    from pipeline.settings import load_settings, refuse_secrets
    from pipeline.storage.objects import ObjectStore

    overrides = overrides_of(set_)
    settings = load_settings(config, overrides)
    with reading_the_call():
        source, target = ObjectStore(drop, settings.storage), ObjectStore(out, settings.storage)
        plan = plan_drop(source, target, settings, name=name)
    if not dry_run:
        refuse_secrets(overrides)
    if not json_:
        _show(plan)
    ended: dict[str, Any] = {}
    if not dry_run:
        write_plan(target, plan)
    if not dry_run and plan.batches:
        call = {"drop": drop, "out": out, "drop_name": name, "config": config, "overrides": overrides}
        ended = _do(call, submit, plan)
    if json_:
        typer.echo(json.dumps(plan.as_json() | ended, indent=1))
    elif ended.get("submitted") or ended.get("waiting"):
        results().print(f"submitted {len(ended['submitted'])} batches, {ended['waiting']} wait for room")
    if ended.get("failed"):
        complain(f"{ended['failed']}; see `masksieve status {out}`")
        raise typer.Exit(FAILED)


def _show(plan: Plan) -> None:
    """The plan as a table on stdout."""
    from pipeline.plan_summary import plan_rows

    console, table = results(), plain_table()
    table.add_column("videos", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("first", overflow="fold", min_width=20)
    table.add_column("what becomes of them")
    for row in plan_rows(plan):
        rest = f", and {row.count - len(row.first):,} more" if row.count > len(row.first) else ""
        table.add_row(f"{row.count:,}", row.kind, escape(", ".join(row.first) + rest), escape(row.what_to_do))
    console.print(f"drop [bold]{escape(plan.drop)}[/] at {escape(plan.root)}", soft_wrap=True)
    if table.row_count:
        console.print(table)
    else:
        console.print("no videos")


def _do(call: dict[str, Any], submit: bool | None, plan: Plan) -> dict[str, Any]:
    """Run the flow: on the server that this shell is set up for, or without one."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
        PREFECT_SERVER_ANALYTICS_ENABLED,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        temporary_settings,
    )

    api = PREFECT_API_URL.value()
    if submit and not api:
        raise SettingsError("a Prefect server", "no PREFECT_API_URL", "set it, or use --here or `masksieve up`")
    if api and submit is not False:
        from flows.api import Api
        from flows.machine import ServerError

        if not Api(api.rstrip("/")).healthy():
            raise ServerError(f"a Prefect server at {api}", "no answer", "see that it runs, or work here with --here")
        from flows.drops import already, watch_drop

        with already(plan):
            return _outcome(watch_drop(**call, return_state=True))
    notices().print("working here; Prefect takes some seconds to start a temporary server for itself", soft_wrap=True)
    alone = {
        PREFECT_API_URL: None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True, PREFECT_SERVER_ANALYTICS_ENABLED: False,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 180,
    }  # fmt: skip
    with temporary_settings(alone):
        from flows.drops import already, watch_drop

        with already(plan):
            return _outcome(watch_drop(**call, submit=False, return_state=True))


def _outcome(state: Any) -> dict[str, Any]:
    """What the flow returned; its failure of single batches is told, any other is raised."""
    from flows.drops import SOME_FAILED

    if state.is_completed():
        found: dict[str, Any] = state.result()
        return found
    if state.name == SOME_FAILED:
        return {"failed": state.message}
    state.result()  # raises
    raise AssertionError("unreachable")


for command in (up, worker, deploy):
    app.command()(command)

if __name__ == "__main__":
    main()
