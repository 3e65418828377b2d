"""`masksieve usam`: a model's heads, from harvest to installation."""

from __future__ import annotations

import typer

from pipeline.cli import usam_evaluate, usam_fit, usam_harvest, usam_train

app = typer.Typer(
    help="Uncertainty heads of a model: import, fit, and what they are made from: harvest, train.", no_args_is_help=True
)
app.command("harvest")(usam_harvest.harvest)
app.command("train")(usam_train.train)
app.command("import")(usam_fit.import_)
app.command("fit")(usam_fit.fit)
app.command("evaluate")(usam_evaluate.evaluate)
app.command("compare")(usam_evaluate.compare)
