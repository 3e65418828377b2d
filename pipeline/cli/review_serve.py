"""`masksieve review serve`: the page and the API of a review queue, on this machine unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import FAILED, complain, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output


def serve(
    out: Out,
    database: Annotated[
        str | None,
        typer.Option(
            help="The queue: a SQLite file or postgresql://…", show_default="$MASKSIEVE_REVIEW, else one of yours"
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; other than loopback only with a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8420,
    name: Annotated[
        list[str] | None, typer.Option(help="Of a proxy in front that passes it on, such as review.example.org.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="What reviewers log in with.", show_default="made anew")
    ] = None,
    sync_seconds: Annotated[float, typer.Option(min=0.1, help="Look for new items this often.")] = 60.0,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Serve the review page until it is stopped (Ctrl-C or SIGTERM); all answers are written out then."""
    from pipeline.review.serve import Listening
    from pipeline.review.serve import serve as job

    settings = make_settings(config, set_)
    store = existing_output(out, settings.storage)

    def ready(listening: Listening) -> None:
        results().print(listening.login_url if listening.made else listening.url, soft_wrap=True)

    left = job(
        store, settings, database=database, host=host, port=port, names=name or (), token_file=token_file,
        sync_seconds=sync_seconds, ready=ready,
    )  # fmt: skip
    if left:
        complain(
            f"{left} answers are still in the queue alone",
            hint="the next server, or masksieve review sync, writes them out",
        )
        raise typer.Exit(FAILED)
