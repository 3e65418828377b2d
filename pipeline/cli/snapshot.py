"""`masksieve snapshot`: the accepted labels of an output as a frozen training set with its data card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import CallError, notices, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.progress import Counter
from pipeline.cli.summary import counted, evidence, percent

if TYPE_CHECKING:
    from pipeline.snapshot.manifest import Manifest

MANY = 10


def snapshot(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The --out of `masksieve label`.", show_default=False)],
    name: Annotated[str, typer.Option("--name", "-n", help="What it is called, for good.", show_default=False)],
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", help="Only videos first seen in this drop; more than one may be given."),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="Another folder or s3:// prefix for it.")] = None,
    val_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the videos for validation.")] = 0.1,
    decisions: Annotated[
        str, typer.Option(help="Which rows are objects: accept, review, hold; with commas between.")
    ] = "accept",
    image_quality: Annotated[int, typer.Option(min=1, max=95, help="Of the JPEGs.")] = 90,
    no_images: Annotated[bool, typer.Option("--no-images", help="Masks only; the videos are not read.")] = False,
    max_side: Annotated[
        int | None, typer.Option(min=16, help="Longest side of pictures and masks, px.", show_default="the video's")
    ] = None,
    file_mb: Annotated[int, typer.Option(min=1, max=4096, help="Size of a file; 64 to 256 read well.")] = 128,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if any video cannot be in it.")] = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Freeze the accepted labels as a training set: pictures and masks in a few files, a data card, split by video.

    A torch Dataset reads it: [bold]pipeline.snapshot.dataset.SnapshotDataset[/].
    """
    from pipeline.snapshot.manifest import folder_of
    from pipeline.snapshot.write import SnapshotOptions, write_snapshot
    from pipeline.storage.objects import ObjectStore

    settings = make_settings(config, set_)
    with reading_the_call():
        where = ObjectStore(to or out, settings.storage).uri(folder_of(name)).rstrip("/")
    if "://" not in out and not Path(out).expanduser().is_dir():
        raise CallError(f"labels in {out}", "no folder", "give the --out of masksieve label")
    chosen = tuple(sorted({word.strip() for word in decisions.split(",") if word.strip()}))
    if not chosen or set(chosen) - {"accept", "review", "hold"}:
        raise CallError("--decisions of accept, review, hold", repr(decisions), "write for example --decisions accept")
    options = SnapshotOptions(
        name=name, drops=tuple(drop or ()), decisions=chosen, val_share=val_share,
        image_quality=None if no_images else image_quality, max_side=max_side, file_bytes=file_mb << 20, strict=strict,
    )  # fmt: skip
    with Counter(notices(), "reading", "rows") as progress:
        manifest = write_snapshot(out, options, settings, to=to, progress=progress)
    tell(manifest, where)


def tell(manifest: Manifest, where: str) -> None:
    """What is in it, what is not, what it rests on, and where it is."""
    from pipeline.snapshot.card import data_card

    card, console = data_card(manifest), results()
    size = f"{card['bytes'] / 1e6:,.1f} MB in {counted(len(manifest.parts), 'file')}"
    console.print(
        f"[bold]{escape(manifest.name)}[/]: {counted(card['frames'], 'frame')} of {counted(card['videos'], 'video')}, "
        f"{counted(card['objects'], 'object')}, {size}; coverage {percent(card['coverage'])}",
        soft_wrap=True,
    )
    for split, counts in card["split"].items():
        console.print(f"  {split:5} {counted(counts['videos'], 'video')}, {counted(counts['frames'], 'frame')}")
    if card["videos"] > 1 and not all(counts["videos"] for counts in card["split"].values()):
        console.print("  [yellow]one split is empty[/]: each video's own hash decides, none is moved", soft_wrap=True)
    left_out = card["left_out"]
    for one in left_out["videos"][:MANY]:
        reason = escape(f"{one['video_uri'] or one['video_id']}: {one['reason']}")
        console.print(f"[yellow]left out[/] {reason}", soft_wrap=True)
    if (more := len(left_out["videos"]) - MANY) > 0:
        console.print(f"[yellow]left out[/] {counted(more, 'more video')}: see the card", soft_wrap=True)
    for one in left_out["cut_short"]:
        console.print(f"[yellow]cut short[/] {escape(one['video_uri'])}: {escape(one['note'])}", soft_wrap=True)
    if len(card["policies"]) > 1:
        console.print(f"[yellow]mixed[/]: the labels are of {len(card['policies'])} policies", soft_wrap=True)
    for text, videos in card["evidence"].items():
        whose = "" if len(card["evidence"]) == 1 else f" ({counted(videos, 'video')})"
        console.print(f"{evidence(text)}{whose}", soft_wrap=True)
    for file in ("card.html", "manifest.json"):
        console.print(f"  {escape(where)}/{file}", soft_wrap=True)
