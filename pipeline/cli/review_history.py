"""`masksieve review history`: who or what made each mask of a video, when and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import CallError, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output
from pipeline.cli.summary import counted
from pipeline.errors import VideoError


def history(
    out: Out,
    video: Annotated[str, typer.Argument(help="Path, address, file name or video_id.", metavar="VIDEO")],
    object_id: Annotated[int | None, typer.Option("--object", help="Only masks of this object.")] = None,
    frame_index: Annotated[int | None, typer.Option("--frame", help="Only masks on this frame.")] = None,
    config: Config = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the changes as JSON.")] = False,
) -> None:
    """Tell the history of a video's masks, oldest first."""
    settings = make_settings(config, set_)
    store = existing_output(out, settings.storage)

    from pipeline.ledger import Ledger
    from pipeline.rescore import chosen_videos
    from pipeline.review import history as of_masks

    ledger = Ledger(store)
    with reading_the_call(VideoError):
        chosen = chosen_videos(ledger, (), [video])
    if len(chosen) > 1:
        raise CallError(f"one video by the name {video}", f"{len(chosen)}", "name it by its video_id")
    changes = of_masks.history(ledger, chosen[0], object_id=object_id, frame_index=frame_index)
    if json_:
        typer.echo(json.dumps([asdict(one) for one in changes], indent=1, default=str))
        return
    console, generation = results(), 0
    for one in changes:
        if one.generation != generation:
            generation = one.generation
            console.print(f"generation {generation}, {one.at:%Y-%m-%d %H:%M:%S} UTC", style="bold")
        where = ""
        if one.rows is not None:
            frames = f"frame {one.first_frame}" if one.rows == 1 else f"frames {one.first_frame} to {one.last_frame}"
            where = f"object {one.object_id}, {frames} ({counted(one.rows, 'mask')}): "
        who = f" ({one.by}, {one.answered_at:%Y-%m-%d %H:%M:%S} UTC)" if one.answered_at else ""
        why = f"; asked because: {'; '.join(one.why)}" if one.why else ""
        console.print(escape(f"  {where}{one.what}{who}{why}"), soft_wrap=True, highlight=False)
