"""`masksieve usam train`: shards in, a bank of heads with its card out; it goes on after a crash."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli.console import CallError, notices, plain_table, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.progress import Counter
from pipeline.errors import HeadError, MasksieveError, ModelError

if TYPE_CHECKING:
    from pipeline.settings import Settings
    from usam.heads import HeadBank, MlpState
    from usam.shard import Shard

STARTS = ("auto", "score", "random")


def train(
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD...", help="Folders that `usam harvest` made.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bank's file, BANK.safetensors.")],
    heads: Annotated[str, typer.Option(help="Names such as iou_tiny,task_gap, or all that have targets.")] = "all",
    recipe: Annotated[
        str, typer.Option(help="ours, or published:SET with SET coco, sav, ade20k, davis or mose.")
    ] = "ours",
    heldout: Annotated[
        list[Path] | None,
        typer.Option(help="A shard for the card's figures.", show_default="a fifth of the videos"),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="The size whose rows train.", show_default="the deployed one; published: all")
    ] = None,
    offset: Annotated[
        int | None, typer.Option(help="1: a mask's own token, 0: the one before.", show_default="1; published: 0")
    ] = None,
    of: Annotated[
        str | None, typer.Option(help="Whose token: chosen or best.", show_default="chosen; published: best")
    ] = None,
    start: Annotated[
        str,
        typer.Option(help="How our IoU heads begin: score (the model's own), random, or auto: score if it is here."),
    ] = "auto",
    search: Annotated[int, typer.Option(help="Trials per head to search settings first; 0 for none.", min=0)] = 0,
    stacker: Annotated[
        bool, typer.Option(help="Train a stacker too, where harvests have tracks; kept if it is ahead of iou_tracked.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Train heads on shards, as one bank with a card that says on what and how well.

    A run that was killed goes on with the same call, and ends with the same bytes.
    """
    from usam.fit_bank import fit_bank, is_published, pool, recipes_of
    from usam.recipes import ours
    from usam.shard import Shard
    from usam.stack import add_stacker, can_stack
    from usam.targets import TRACKED_HEAD
    from usam.weights import save_bank

    settings = make_settings(config, set_)
    with reading_the_call():
        if out.suffix != ".safetensors" or out.is_dir():
            raise CallError("--out as a file BANK.safetensors", str(out), "give it that ending")
        if start not in STARTS:
            raise CallError(f"--start out of {', '.join(STARTS)}", repr(start), "correct it")
        settings_of = None if recipe == "ours" else recipe
        if settings_of is not None:
            recipes_of(settings_of, ["iou_tiny"])
        opened, held = [Shard.open(path) for path in shards], [Shard.open(path) for path in heldout or ()]
        wanted = None if heads == "all" else [word.strip() for word in heads.split(",") if word.strip()]
        if wanted == []:
            raise CallError("--heads as names, or all", repr(heads), "name at least one")
        shared: dict[str, Any] = {"size": size, "offset": offset, "of": of, "heldout": held}
        pool(opened, **shared, as_published=is_published(settings_of)).heads(wanted)
    console = notices()
    begin = None if is_published(settings_of) or start == "random" else _start(opened, size, settings, start == "score")
    work = out.with_suffix(".work")
    found = None
    if search:
        from usam.search import search_recipes

        with Counter(console, "searching settings of", "trials") as count:
            found = search_recipes(
                opened, search, out.with_suffix(".search.db"), heads=wanted, recipe=settings_of, start=begin, seed=seed,
                progress=count, **shared,
            )  # fmt: skip
    with Counter(console, "training", "epochs") as count:
        bank = fit_bank(
            opened, heads=wanted, recipe=found or settings_of, start=begin, seed=seed, checkpoint_dir=work,
            progress=count, **shared,
        )  # fmt: skip
    if stacker and can_stack(bank, [*opened, *held]):
        add_stacker(bank, opened, found[TRACKED_HEAD] if found else ours(TRACKED_HEAD, seed=seed), heldout=held)
    save_bank(bank, out)
    shutil.rmtree(work, ignore_errors=True)
    _tell(bank, out)


def _start(shards: list[Shard], size: str | None, settings: Settings, must: bool) -> MlpState | None:
    """Weights from the score of the model that the shards name; None, told, where it is not at hand."""
    from pipeline.models import load_model
    from usam.warm import score_head_state

    model = shards[0].plan.models[size or shards[0].plan.deployed]
    try:
        loaded = load_model(model["name"], device="cpu", cache_dir=settings.model.cache_dir)
        if loaded.sha256 != model["sha256"]:
            raise ModelError(f"weights {model['sha256'][:12]} of {loaded.name}", loaded.sha256[:12], "harvest again")
        return score_head_state(loaded.model)
    except MasksieveError as error:
        if must:
            raise HeadError(
                f"the score of {model['name']} to start from", str(error), "or give --start random"
            ) from error
        notices().print(f"heads start at random: {escape(str(error))}", soft_wrap=True)
        return None


def _tell(bank: HeadBank, path: Path) -> None:
    """The card in short: a line per head, SAM2's own score beside the heads that predict IoU."""
    table = plain_table()
    for heading in ("head", "rows", "videos", "Pearson", "SAM2's score", "MAE", "bias"):
        table.add_column(heading, justify="left" if heading == "head" else "right", no_wrap=True)
    for head in bank.heads:
        figures = bank.card.heldout.get(head, {})
        own, score = figures.get("judged"), figures.get("judged_sam_score")
        if own is None:
            table.add_row(head, "0", "0", "-", "-", "-", "-")
            continue
        beside = f"{score['pearson']:.3f}" if score else "-"
        cells = (f"{own['pearson']:.3f}", beside, f"{own['mae']:.3f}", f"{own['bias']:+.3f}")
        table.add_row(head, f"{own['rows']:,}", f"{own['videos']:,}", *cells)
    told, card = results(), bank.card
    told.print(table)
    facts = card.recipe
    told.print(
        f"\nheld-out rows that are judged; trained on {facts['rows']:,} rows of {facts['videos']:,} videos, "
        f"{facts['recipe']}, token offset {card.mask_token_offset} of the {facts['of']} mask"
    )
    if bank.stacker is not None:
        figures = bank.stacker.card.heldout
        shown = ", ".join(f"{name} {figures[name]['pearson']:.3f}" for name in ("stacker", "head", "sam_score"))
        told.print(f"with a stacker over iou_tracked and the mask's track: Pearson {shown}")
    told.print(f"bank for {escape(card.model_name)}: {escape(str(path))}", soft_wrap=True)
