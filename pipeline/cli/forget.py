"""`masksieve forget`: a video goes from every layer of an output, and a search of all of it shows that it is gone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli.console import FAILED, OK, CallError, notices, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import existing_output, size, sums_table
from pipeline.cli.summary import counted
from pipeline.errors import VideoError

if TYPE_CHECKING:
    from pipeline.forget import Forgotten
    from pipeline.traces import Search, Subject

NAMED = 20


def forget(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Its path, address or video_id.", show_default=False)],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or s3:// prefix of the labels.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for attempts at it that are under way.")] = False,
    delete_source: Annotated[
        bool, typer.Option("--delete-source", help="Also the video itself, where its bytes are still those.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Only let it be labelled again; what was removed stays removed.")
    ] = False,
    config: Config = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Remove a video on request: labels, facts, pictures, snapshots, commits, records; then search everything for it.

    It can't be labelled again. A run that was interrupted is ended by the same call.
    """
    from pipeline import forget as job
    from pipeline.ledger import Ledger
    from pipeline.traces import search

    settings = make_settings(config, set_)
    store = existing_output(out, settings.storage)
    known = job.known_videos(store)
    with reading_the_call(VideoError):
        subject = job.find_subject(store, video, settings, known)
    if undo:
        if subject.video_id is None or not job.undo(store, settings, subject.video_id):
            raise CallError("a video that was forgotten", video, "see forgotten/ in the output")
        results().print(f"{subject.video_id[:12]} may be labelled again")
        return
    if not yes:
        there = search(store, subject, deep=False)
        _preview(subject, there, known.shared(subject))
        if not sys.stdin.isatty():
            raise CallError("a yes to removing it for good", "no terminal to ask at", "call it with --yes")
        typer.confirm("Remove all of this for good?", abort=True)
    console = notices()
    done = job.forget(
        store, Ledger(store), settings, subject, wait=wait, delete_source=delete_source,
        progress=lambda words: console.print(f"[dim]{escape(words)}[/]", soft_wrap=True),
    )  # fmt: skip
    if json_:
        typer.echo(json.dumps(_as_json(done, known.shared(subject)), indent=1))
    else:
        _tell(done, known.shared(subject))
    raise typer.Exit(FAILED if done.proof.traces else OK)


def _preview(subject: Subject, there: Search, shared: frozenset[str]) -> None:
    """What would go, on stderr: stdout is for what was done."""
    console = notices()
    console.print(f"video {subject.video_id or '(never labelled)'}")
    for uri in sorted(subject.uris):
        console.print(f"  {escape(uri)}", soft_wrap=True)
    console.print(sums_table("layer", ((trace.layer, trace.size_bytes) for trace in there.traces)))
    console.print(
        "snapshots, checkpoints on this machine and rows of a commit ledger in SQL go as well", soft_wrap=True
    )
    for uri in sorted(shared):
        console.print(f"[yellow]stays[/]: {escape(uri)} is also the name of another video", soft_wrap=True)


def _tell(done: Forgotten, shared: frozenset[str]) -> None:
    console = results()
    layers = ", ".join(f"{number:,} from {layer}" for layer, number in sorted(done.removed.items()))
    console.print(f"removed {layers or 'nothing: there was nothing left'}", soft_wrap=True)
    if done.snapshots:
        console.print(f"written without it: snapshot {', '.join(done.snapshots)}", soft_wrap=True)
    if done.blotted:
        console.print(f"its name taken out of {counted(done.blotted, 'record')} of others")
    if done.checkpoints:
        console.print(f"removed {counted(done.checkpoints, 'checkpoint')} of this machine")
    proof = done.proof
    searched = f"searched {counted(proof.objects, 'object')}, {size(proof.size_bytes)}, {proof.opened:,} of them opened"
    if not proof.traces:
        left = "nothing left but the tombstone" if done.subject.video_id else "nothing left"
        console.print(f"[green]{searched}: {left}[/]", soft_wrap=True)
    else:
        console.print(f"[bold red]{searched}: {counted(len(proof.traces), 'object')} left[/]", soft_wrap=True)
        for trace in proof.traces[:NAMED]:
            console.print(f"  {escape(trace.key)} [dim]by {trace.how}[/]", soft_wrap=True)
    for uri in sorted(shared):
        console.print(f"[yellow]stays[/]: {escape(uri)} is also the name of another video", soft_wrap=True)
    console.print("out of reach of this command:")
    for words in done.unreached:
        console.print(f"  {escape(words)}", soft_wrap=True)


def _as_json(done: Forgotten, shared: frozenset[str]) -> Mapping[str, Any]:
    about = asdict(done)
    subject, proof = about.pop("subject"), about.pop("proof")
    return {
        "video_id": subject["video_id"],
        "names": sorted(subject["uris"]),
        "shared_names": sorted(shared),
        **about,
        "proof": {**proof, "nothing_left": not proof["traces"]},
    }
