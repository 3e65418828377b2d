"""`masksieve review`: what waits for people, the page they answer on, and what becomes of their answers."""

from __future__ import annotations

import typer

from pipeline.cli.review_apply import apply
from pipeline.cli.review_export import export
from pipeline.cli.review_history import history
from pipeline.cli.review_queue import changes, stats, sync
from pipeline.cli.review_serve import serve

app = typer.Typer(
    help="Doubtful masks for people: a queue, a page to answer on, and corrections that flow back.",
    no_args_is_help=True,
)
app.command("serve")(serve)
app.command("sync")(sync)
app.command("stats")(stats)
app.command("changes")(changes)
app.command("export")(export)
app.command("apply")(apply)
app.command("history")(history)


@app.callback()
def _several() -> None:
    """Doubtful masks for people: a queue, a page to answer on, and corrections that flow back."""
