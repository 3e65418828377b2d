"""`masksieve usam`: heads for a model, imported from published-style folders or fitted from videos with truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.console import CallError, notices, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings

if TYPE_CHECKING:
    from pipeline.models import LoadedModel
    from pipeline.settings import Settings
    from usam.heads import HeadBank

app = typer.Typer(help="Uncertainty heads of a model: import, fit.", no_args_is_help=True)
Model = Annotated[str, typer.Option("--model", "-m", help="The model that the heads belong to.")]


def _model(name: str, folder: Path, config: str | None, set_: list[str] | None) -> tuple[LoadedModel, Settings]:
    """The model and the settings that a call names, once its words are known to lead somewhere."""
    from pipeline.checkpoints import model_spec
    from pipeline.models import load_model

    settings = make_settings(config, set_, model=name)
    with reading_the_call():
        model_spec(name)
    if not folder.is_dir():
        raise CallError(f"a folder {folder}", "none", "check the path")
    return load_model(name, device=settings.model.device, cache_dir=settings.model.cache_dir), settings


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Holds one folder per head, each with a model.pth.")],
    model: Model,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Install published-style heads for a model."""
    from pipeline.heads import import_heads

    loaded, settings = _model(model, folder, config, set_)
    path, bank = import_heads(folder, loaded, settings)
    _tell(path, bank)


@app.command()
def fit(
    folder: Annotated[Path, typer.Argument(help="Videos, each with STEM.prompts.json and STEM.truth.npz.")],
    model: Model,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Fit the head `iou_tracked` to a model from videos with truth, and install it."""
    from pipeline.heads import fit_heads

    loaded, settings = _model(model, folder, config, set_)
    console = notices()
    path, bank = fit_heads(folder, loaded, settings, lambda name: console.print(f"propagating {name}"))
    _tell(path, bank)
    for rows, figures in bank.card.heldout["iou_tracked"].items():
        results().print(f"  held-out, {rows}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))


def _tell(path: Path, bank: HeadBank) -> None:
    offset = "its own token" if bank.mask_token_offset else "the token before its own (as published)"
    results().print(f"installed {', '.join(bank.heads)} for {bank.card.model_name}: {path}", soft_wrap=True)
    results().print(f"each head is fed the IoU token and, for the chosen mask, {offset}; still uncertified")
