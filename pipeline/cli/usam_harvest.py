"""`masksieve usam harvest`: a data set in, a shard of tokens, IoU and entropies out; it goes on after a crash."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.markup import escape

from pipeline.cli.console import CallError, notices, plain_table, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.progress import Counter

if TYPE_CHECKING:
    from usam.scorers import Entropy, Select
    from usam.shard import Shard

MODES = ("frames", "tracked")
SELECTS: tuple[Select, ...] = ("gt", "sam_score")
Word = TypeVar("Word", bound=str)


def harvest(
    root: Annotated[Path, typer.Argument(help="A data set's folder, in its published layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the shard.")],
    model: Annotated[list[str], typer.Option("--model", "-m", help="SIZE=NAME or NAME; one per size.")],
    deployed: Annotated[
        str | None, typer.Option(help="The size whose masks are judged.", show_default="the first --model")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="The data set's name.", show_default="found by layout")] = None,
    split: Annotated[str | None, typer.Option(help="Which split.", show_default="the only one there")] = None,
    entropies: Annotated[str, typer.Option(help="all, none, or names such as H_Std,H_A.")] = "none",
    select: Annotated[
        str, typer.Option(help="How entropies pick a mask: sam_score, or gt as published.")
    ] = "sam_score",
    max_videos: Annotated[int | None, typer.Option(help="Videos to read.", show_default="all")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Frames per video.", show_default="all")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of clicks and noise; random videos and frames too.", show_default="the first ones"),
    ] = None,
    mode: Annotated[str, typer.Option(help="frames: single images; tracked: propagated from one click.")] = "frames",
    config: Config = None,
    set_: Set = None,
) -> None:
    """Run SAM2 on a data set with truth, and keep tokens, IoU and entropies to train and judge heads on.

    A run that was killed goes on with the same call, and ends with the same bytes.
    """
    from pipeline.harvest_tracked import Protocol
    from pipeline.models import load_model
    from usam.datasets.registry import find_split, open_dataset
    from usam.datasets.selection import Consecutive, Selection

    settings = make_settings(config, set_)
    with reading_the_call():
        names = _by_size(model)
        kinds = _entropies(entropies, mode)
        _one_of("--mode", mode, MODES)
        picked = _one_of("--select", select, SELECTS)
        deployed = _one_of("--deployed", deployed or next(iter(names)), names)
        protocol = Protocol(entropies=kinds, seed=seed or 0) if mode == "tracked" else None
        if protocol is not None and picked == "gt":
            raise CallError("--select sam_score when tracking", "gt", "leave it out: a track is of the mask SAM2 chose")
        if seed is not None and seed < 0:
            raise CallError("--seed of at least 0", str(seed), "give another")
        found = find_split(root, dataset, split)
        if (out.exists() and not out.is_dir()) or out.resolve().is_relative_to(found[1].resolve()):
            raise CallError("--out as a folder of its own", str(out), "name one outside of the data set")
        selection = (Consecutive if mode == "tracked" else Selection)(max_videos, max_frames, seed)
    opened = open_dataset(*found, selection)
    place = settings.model
    models = {size: load_model(name, device=place.device, cache_dir=place.cache_dir) for size, name in names.items()}
    with Counter(notices(), "harvesting", "videos") as count:
        if protocol is None:
            from usam.harvest_frames import harvest_frames

            shard = harvest_frames(
                opened, models, out, deployed=deployed, entropies=kinds, select=picked, seed=seed or 0, progress=count
            )
        else:
            from pipeline.harvest_tracked import harvest_tracked

            shard = harvest_tracked(opened, models, out, deployed=deployed, protocol=protocol, progress=count)
    _tell(shard)


def _tell(shard: Shard) -> None:
    """What is in the shard, size by size, and which heads it can train."""
    import numpy as np

    from usam.shard import ENTROPIES

    plan, size_n = shard.plan, shard.column("size")
    table = plain_table()
    for heading in ("size", "model", "rows", "judged", "mean IoU", "best of 3", "SAM2's score"):
        table.add_column(heading, justify="left" if heading in ("size", "model") else "right", no_wrap=True)
    judged_n = shard.column("visible") & shard.column("predicted")
    if plan.kind == "tracked":
        judged_n &= ~shard.column("prompted")
    for size in dict.fromkeys(size_n.tolist()):
        own_n, rows_n = size_n == size, (size_n == size) & judged_n
        figures = [shard.column(name)[rows_n].astype(float) for name in ("iou_chosen", "iou", "sam_score")]
        means = [f"{np.nanmean(values):.3f}" if np.isfinite(values).any() else "-" for values in figures]
        mark = " (deployed)" if size == plan.deployed else ""
        table.add_row(
            f"{size}{mark}", escape(plan.models[size]["name"]), f"{own_n.sum():,}", f"{rows_n.sum():,}", *means
        )
    told = results()
    told.print(table)
    videos = len(set(shard.column("video_id").tolist()))
    entropies = [name for name in ENTROPIES if shard.has(name)]
    told.print(f"\n{plan.dataset} {plan.split}, {plan.kind}: rows of {videos:,} videos, tokens of width {shard.width}")
    told.print(f"heads it can train: {', '.join(shard.heads())}", soft_wrap=True)
    told.print(f"entropies: {', '.join(entropies) or 'none'}")
    told.print(f"shard: {escape(str(shard.path))}", soft_wrap=True)


def _by_size(words: list[str]) -> dict[str, str]:
    """Model names by size, from SIZE=NAME, or NAME where its end says the size."""
    from pipeline.checkpoints import model_size, model_spec
    from usam.targets import SIZED_HEADS

    names: dict[str, str] = {}
    for word in words:
        size, equals, name = word.partition("=")
        name = name if equals else word
        model_spec(name)
        size = size if equals else model_size(name)
        _one_of("--model SIZE=NAME", size, SIZED_HEADS)
        if size in names:
            raise CallError("one --model per size", f"{names[size]} and {name} for {size}", "write SIZE=NAME for each")
        names[size] = name
    return names


def _entropies(words: str, mode: str) -> tuple[Entropy, ...]:
    """The entropies named; `all` of a propagated video leaves out H_Y, which would run every video 40 times a size."""
    from usam.scorers import ENTROPIES

    if words in ("all", "none"):
        return tuple(name for name in ENTROPIES if words == "all" and (mode == "frames" or name != "H_Y"))
    named = {_one_of("--entropies (all, none)", word.strip(), ENTROPIES) for word in words.split(",")}
    return tuple(name for name in ENTROPIES if name in named)


def _one_of(option: str, value: str, known: Iterable[Word]) -> Word:
    """The one of those known that is this value.

    Raises: CallError if there is none.
    """
    for word in known:
        if word == value:
            return word
    raise CallError(f"{option} out of {', '.join(known)}", repr(value), "correct it")
