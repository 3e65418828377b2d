"""`masksieve rescore`: other heads over the tokens that `label` kept; no SAM2 run, no video read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli.console import FAILED, OK, USAGE, CallError, notices, one_line, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output
from pipeline.cli.progress import Counter as Progress
from pipeline.cli.summary import counted, percent
from pipeline.errors import HeadError, VideoError

if TYPE_CHECKING:
    from pipeline.rescore import Rescored

SHOWN = 20
WORDS = {
    "rescored": "rescored", "unchanged": "scored by these heads already", "no_tokens": "without tokens",
    "refused": "refused: the heads do not fit", "failed": "failed",
}  # fmt: skip


def rescore(
    out: Out,
    bank: Annotated[
        Path | None,
        typer.Option("--bank", help="The heads (safetensors).", show_default="those installed for each video's model"),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", help="Only videos first seen in it; more than one may be given.")
    ] = None,
    video: Annotated[
        list[str] | None, typer.Option("--video", help="Only this one: path, address, file name or video_id.")
    ] = None,
    config: Config = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what became of each video as JSON.")] = False,
) -> None:
    """Score stored masks with other heads, and decide anew by the policy that each video's labels have.

    Works on videos that were labelled with [bold]--set output.tokens=true[/]. A call that was interrupted is ended by
    the same call.
    """
    settings = make_settings(config, [*(set_ or []), *([f"score.bank={json.dumps(str(bank))}"] if bank else [])])
    store = existing_output(out, settings.storage)
    if bank is not None and not bank.expanduser().is_file():
        raise CallError(f"a bank of heads at {bank}", "no file", "give the safetensors file; its card lies beside it")

    from pipeline.ledger import Ledger
    from pipeline.other_heads import Banks
    from pipeline.rescore import chosen_videos, rescore_all

    with reading_the_call(HeadError):
        banks = Banks(settings)
    with reading_the_call(VideoError):
        chosen = chosen_videos(Ledger(store), drop or (), video or ())
    if not chosen:
        raise CallError(f"committed videos in {store.url}", "none", "give the --out of the label run")
    found: list[Rescored] = []
    with Progress(notices(), "rescoring", "videos") as progress:
        progress(store.url, 0, len(chosen))
        for one in rescore_all(store, chosen, settings, banks):
            found.append(one)
            progress(one.video_uri, len(found), len(chosen))
    if json_:
        typer.echo(json.dumps({"out": store.url, "videos": [_as_json(one) for one in found]}, indent=1))
    else:
        _tell(found)
    raise typer.Exit(_exit_code(found))


def _exit_code(found: list[Rescored]) -> int:
    """0 when all are of these heads, 1 when some are not, 2 when nothing that was named could even be tried."""
    statuses = {one.status for one in found}
    if statuses <= {"rescored", "unchanged"}:
        return OK
    return USAGE if statuses <= {"no_tokens", "refused"} else FAILED


def _tell(found: list[Rescored]) -> None:
    console, sums = results(), Counter[str](one.status for one in found)
    console.print(", ".join(f"{sums[name]:,} {words}" for name, words in WORDS.items() if sums[name]), soft_wrap=True)
    scored = [one for one in found if one.status in ("rescored", "unchanged")]
    rows = sum((Counter(one.decisions) for one in scored), Counter[str]())
    if rows.total():
        shares = ", ".join(f"{name} {percent(rows[name] / rows.total())}" for name in ("accept", "review", "hold"))
        sources = ", ".join(sorted({str(one.score_source) for one in scored}))
        console.print(f"{counted(rows.total(), 'row')} scored by {sources}: {shares}", soft_wrap=True)
    if alone := sum(one.heads_alone for one in scored):
        console.print(
            f"[yellow]heads alone[/]: the tokens of {counted(alone, 'video')} have no track features, as earlier "
            "releases kept them, so the stacker was left out; label again with --set output.tokens=true to use it",
            soft_wrap=True,
        )
    for text, number in sorted(Counter(one.evidence for one in scored if one.evidence).items()):
        style = "green" if text.startswith("certified") else "yellow"
        where = "" if number == len(scored) else f" ({counted(number, 'video')})"
        console.print(f"[{style}]{escape(text)}[/]{where}", soft_wrap=True)
    left = [one for one in found if one.error is not None]
    for one in left[:SHOWN]:
        assert one.error is not None
        console.print(
            f"[red]{WORDS[one.status].split(':')[0]}[/] {escape(one.video_uri)}: {escape(one_line(one.error))}"
        )
    if len(left) > SHOWN:
        console.print(f"and {counted(len(left) - SHOWN, 'more video')}; --json names them all")


def _as_json(one: Rescored) -> dict[str, Any]:
    about = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return about | {"decisions": dict(one.decisions), "error": None if one.error is None else one_line(one.error)}
