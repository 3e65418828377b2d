"""`masksieve review apply`: what people answered becomes facts and labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.console import FAILED, OK, notices, one_line, reading_the_call, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.output import Out, existing_output
from pipeline.cli.progress import Counter as Progress
from pipeline.cli.review_queue import is_there, refuse_missing
from pipeline.cli.summary import counted
from pipeline.errors import MasksieveError, VideoError

if TYPE_CHECKING:
    from pipeline.review.corrections import Corrected
    from pipeline.review.queue import Queue
    from pipeline.settings import Settings


def apply(
    out: Out,
    video: Annotated[
        list[str] | None, typer.Option("--video", help="Only this one: path, address, file name or video_id.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            help="The queue, whose answers are written out first, also those that could still be taken back.",
            show_default="$MASKSIEVE_REVIEW, else one of yours if it is there",
        ),
    ] = None,
    config: Config = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what became of each video as JSON.")] = False,
) -> None:
    """Apply what people answered: masks are laid over the facts, carried on, scored, and decided by the labels' policy.

    Every answer is applied once, whatever is killed meanwhile; a second call changes nothing. The exit code is 1 while
    answers wait for a video that cannot be read, or could not be applied.
    """
    settings = make_settings(config, set_)
    store = existing_output(out, settings.storage)

    from pipeline.device_slot import device_slot
    from pipeline.ledger import Ledger
    from pipeline.rescore import chosen_videos
    from pipeline.review.corrections import apply_answers, unfinished

    with _queue(database, store.identity, settings) as queue:
        if queue is not None:
            queue.export(store, force=True)
    ledger = Ledger(store)
    with reading_the_call(VideoError):
        chosen = set(chosen_videos(ledger, (), video)) if video else None
    todo = [one for one in unfinished(store, ledger) if chosen is None or one in chosen]
    done: dict[str, Corrected] = {}
    failed: dict[str, MasksieveError] = {}
    with Progress(notices(), "applying", "videos") as progress:
        for number, video_id in enumerate(todo):
            progress(video_id[:12], number, len(todo))
            try:
                done[video_id] = apply_answers(video_id, store, ledger, settings, slot=device_slot(settings))
            except MasksieveError as error:
                failed[video_id] = error
    if json_:
        typer.echo(json.dumps({"out": store.url, "videos": _as_json(done, failed)}, indent=1))
    else:
        names = {one.video_id: one.video_uri for one in ledger.read_all(failed)} if failed else {}
        _tell(done, failed, names)
    raise typer.Exit(FAILED if failed or any(one.waiting for one in done.values()) else OK)


@contextmanager
def _queue(database: str | None, identity: str, settings: Settings) -> Iterator[Queue | None]:
    """The queue that people answer in, if one is named or there: a worker elsewhere has none, and needs none."""
    from pipeline.review.queue import Queue, default_place

    place = database or default_place()
    if database is not None:
        refuse_missing(place)
    elif not is_there(place):
        yield None
        return
    queue = Queue(place, identity, settings.review)
    try:
        yield queue
    finally:
        queue.close()


def _tell(done: dict[str, Corrected], failed: dict[str, MasksieveError], names: dict[str, str]) -> None:
    console = results()
    answers = sum(len(one.applied) for one in done.values())
    rows = sum(one.changed for one in done.values())
    videos = counted(sum(bool(one.applied) for one in done.values()), "video")
    console.print(f"applied {counted(answers, 'answer')} on {videos}: {counted(rows, 'mask')} changed", soft_wrap=True)
    for one in done.values():
        if one.waiting:
            text = f"{counted(len(one.waiting), 'answer')} on {one.commit.video_uri} wait for the video: {one.why}"
            console.print(f"[yellow]waiting[/] {escape(text)}", soft_wrap=True)
    for video_id, error in failed.items():
        console.print(
            f"[red]failed[/] {escape(names.get(video_id, video_id[:12]))}: {escape(one_line(error))}", soft_wrap=True
        )


def _as_json(done: dict[str, Corrected], failed: dict[str, MasksieveError]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [
        {
            "video_id": video_id, "video_uri": one.commit.video_uri, "generation": one.commit.generation,
            "applied": list(one.applied), "waiting": list(one.waiting), "why": one.why, "changed": one.changed,
        }
        for video_id, one in done.items()
    ]  # fmt: skip
    return found + [{"video_id": video_id, "error": one_line(error)} for video_id, error in failed.items()]
