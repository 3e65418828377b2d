"""`masksieve show`: an overlay film, a timeline and a contact sheet of a labelled video."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.cli.console import CallError, complain, exit_code, notices, one_line, results
from pipeline.cli.label import Config, Set, make_settings
from pipeline.cli.summary import counted
from pipeline.errors import MasksieveError, VideoError

if TYPE_CHECKING:
    from pipeline.drops import Wanted


def show(
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO...", help="Videos that were labelled; files, folders or globs.")
    ],
    labels: Annotated[str, typer.Option("--labels", "-l", help="The --out of the label run.")] = "labels",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("show"),
    config: Config = None,
    set_: Set = None,
) -> None:
    """Render labelled videos: masks by decision, uncertainty over time, and what was flagged."""
    from pipeline.drops import find_videos
    from pipeline.render.labelled import read_labelled
    from pipeline.render.show import show_video
    from pipeline.source import video_sha256

    settings = make_settings(config, set_)
    if "://" not in labels and not Path(labels).expanduser().is_dir():
        raise CallError(f"labels in {labels}", "no folder", "give the --out of masksieve label")
    wanted = find_videos(videos, storage=settings.storage)
    console, failed = notices(), 0
    stems = Counter(Path(one.video).stem for one in wanted)  # videos of one name must not share their pictures
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        for one in wanted:
            task = bars.add_task(escape(one.name), total=None)
            try:
                path = _local(one)
                video_id = video_sha256(path)
                pictures = show_video(
                    path,
                    read_labelled(labels, video_id, settings.storage),
                    out,
                    name=path.stem if stems[path.stem] == 1 else f"{path.stem}-{video_id[:8]}",
                    decode_settings=settings.decode,
                    progress=lambda done, total, task=task: bars.update(task, completed=done, total=total),  # type: ignore[misc]
                )
            except MasksieveError as error:
                failed += 1
                complain(f"{one.name}: {one_line(error)}")
                continue
            finally:
                bars.remove_task(task)
            told = results()
            told.print(
                f"{escape(one.name)}: {counted(pictures.frames, 'frame')}, flagged stretches drawn: {pictures.flagged}",
                soft_wrap=True,
            )
            for picture in (pictures.overlay, pictures.timeline, pictures.contact):
                told.print(f"  {escape(str(picture))}", soft_wrap=True)
    raise typer.Exit(exit_code(wanted, failed=failed > 0))


def _local(wanted: Wanted) -> Path:
    """The file to read frames from.

    Raises: VideoError if the video is missing or lies in an object store.
    """
    if wanted.error is not None:
        raise wanted.error
    if "://" in wanted.video:
        raise VideoError("a local video", wanted.video, "download it first; its labels may stay where they are")
    return Path(wanted.video)
