"""`masksieve usam`: a model's heads, from harvest to installation."""

from __future__ import annotations

import typer

from pipeline.cli import usam_fit, usam_harvest

app = typer.Typer(
    help="Uncertainty heads of a model: import, fit, and what they are made from: harvest.", no_args_is_help=True
)
app.command("harvest")(usam_harvest.harvest)
app.command("import")(usam_fit.import_)
app.command("fit")(usam_fit.fit)
