"""`masksieve retry`: failed videos, or those in quarantine, get all their attempts again."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import CallError, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output
from pipeline.cli.summary import counted


def retry(
    out: Out,
    videos: Annotated[
        list[str] | None,
        typer.Argument(metavar="VIDEO...", help="Addresses, file names, or the beginnings of plan keys."),
    ] = None,
    drop: Annotated[str | None, typer.Option(help="Only in this drop.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All that are in quarantine.")] = False,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Let the next plan take videos up afresh: their failed attempts and their quarantine are forgotten."""
    from pipeline.status import Line, matching, nearest_video, tried_work
    from pipeline.work import WorkLog

    if not videos and not all_:
        raise CallError("a VIDEO or --all", "neither", "name what `masksieve status` lists")
    settings = make_settings(config, set_)
    work = WorkLog(existing_output(out, settings.storage), settings.drops)
    tried = list(tried_work(work, drop))
    chosen: dict[tuple[str, str], Line] = {}
    for word in videos or ():
        found = matching(word, tried)
        if not found:
            near = nearest_video(word, tried)
            step = f"did you mean {near}?" if near else "`masksieve status` lists those that failed"
            raise CallError("a video that failed or is in quarantine", word, step)
        chosen |= {(line.drop, line.plan_key): line for line in found}
    if all_:
        chosen |= {(line.drop, line.plan_key): line for line in tried if line.state == "quarantined"}
    console, begun = results(), 0
    for line in chosen.values():
        name = escape(line.video or line.plan_key[:12])
        if line.state == "running":
            console.print(f"{name}: under way on {escape(line.host or 'a worker')}, left alone", soft_wrap=True)
            continue
        if line.state == "forgotten":
            step = "`masksieve forget --undo` lets it be labelled again"
            console.print(f"{name}: forgotten on request, left alone; {step}", soft_wrap=True)
            continue
        work.retry(line.drop, line.plan_key)
        begun += 1
        what = "out of quarantine, " if line.state == "quarantined" else ""
        console.print(f"{name}: {what}{counted(line.attempts, 'attempt')} forgotten", soft_wrap=True)
    if begun:
        console.print(f"the next plan takes {'it' if begun == 1 else 'them'} up afresh")
    elif not chosen:
        console.print("nothing is in quarantine")
