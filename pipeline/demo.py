"""The demo: three synthetic clips with exact truth, labelled by the embedded model and held against that truth."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.drops import FILM_SUFFIX
from pipeline.errors import StorageError
from pipeline.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.label import Progress
    from pipeline.report import VideoReport

log = logging.getLogger(__name__)

NUM_FRAMES, SIZE_PX, FPS = 48, 256, 12.0
_QUIET = dict.fromkeys(
    ("camouflage", "low_contrast", "noise", "blur", "fast", "twin", "occluder", "flicker", "exit", "part", "small"), 0.0
)

Key = tuple[int, int]


@dataclass(frozen=True)
class DemoClip:
    """One clip to draw.

    Args:
        name: the file's stem.
        seed: of `render_clip`.
        hard: which difficulty it shows, with certainty.
        prompt: "click" or "box".
    """

    name: str
    seed: int
    hard: tuple[str, ...]
    prompt: str


DEMO_CLIPS = (
    DemoClip("occlusion", 500_000_032, ("occluder",), "box"),
    DemoClip("lookalike", 500_000_010, ("twin",), "click"),
    DemoClip("exit", 500_000_039, ("exit",), "box"),
)


@dataclass(frozen=True)
class MadeClip:
    """A clip on disk with its truth."""

    name: str
    video: Path
    prompts: Path
    ids_thw: NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True)
class Agreement:
    """How one group of rows agrees with the truth.

    Args:
        rows: how many.
        mean_iou: mean IoU with the truth, both empty counts 1, one empty counts 0; None without rows.
        good_share: share of rows with IoU of at least 0.5, None without rows.
        absent_share: share of rows that the model calls absent, None without rows.
    """

    rows: int
    mean_iou: float | None
    good_share: float | None
    absent_share: float | None


@dataclass(frozen=True)
class DemoReport:
    """What the demo found and where it wrote."""

    reports: list[VideoReport]
    accepted: Agreement
    flagged: Agreement
    every: Agreement
    coverage: float | None
    films: list[Path]
    timeline: Path
    contact: Path
    labels: Path


def make_drop(folder: Path, clips: Sequence[DemoClip] = DEMO_CLIPS, *, num_frames: int = NUM_FRAMES) -> list[MadeClip]:
    """Draw the clips as mp4, each with its prompts.json and its truth (`<stem>.truth.npz`, ids_thw uint8).

    Args:    folder: the drop; made if it is not there.
    Raises:  StorageError if it cannot be written.
    """
    from pipeline.nano.clips import render_clip
    from pipeline.render.film import FilmWriter

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"a writable folder {folder}", str(error), "choose another --out") from error
    made = []
    for clip in clips:
        drawn = render_clip(clip.seed, frames=num_frames, size=SIZE_PX, mix={**_QUIET, **dict.fromkeys(clip.hard, 1.0)})
        video = folder / f"{clip.name}.mp4"
        with FilmWriter(video, FPS, quality=8) as film:
            for frame in drawn.frames_thw3:
                film.append(frame)
        prompts = folder / f"{clip.name}.prompts.json"
        prompts.write_text(json.dumps(prompts_from_truth(drawn.ids_thw[0], clip.prompt), indent=1))
        np.savez_compressed(folder / f"{clip.name}.truth.npz", ids_thw=drawn.ids_thw)
        made.append(MadeClip(clip.name, video, prompts, drawn.ids_thw))
    return made


def prompts_from_truth(ids_hw: NDArray[np.uint8], kind: str, *, most: int = 3) -> dict[str, Any]:
    """Prompts on frame 0 for the largest objects of a truth map.

    Args:    ids_hw: (H, W) uint8 visible object ids; kind: "click" (innermost pixel) or "box"; most: at most so many.
    Returns: the content of a prompts.json, version 1.
    """
    from pipeline.nano.follow import innermost_pixel, tight_box

    areas = {int(i): int((ids_hw == i).sum()) for i in np.unique(ids_hw) if i}
    chosen = sorted(sorted(areas, key=lambda i: -areas[i])[:most])
    objects = []
    for object_id in chosen:
        mask = ids_hw == object_id
        shown = (
            {"box": [round(edge) for edge in tight_box(mask)]}
            if kind == "box"
            else {"points": [[*innermost_pixel(mask), 1]]}
        )
        objects.append({"object_id": object_id, "label": "shape", "prompts": [{"frame_index": 0, **shown}]})
    return {"version": 1, "objects": objects}


def true_ious(rows: pa.Table, ids_thw: NDArray[np.uint8]) -> dict[Key, float]:
    """IoU of every row's mask with the truth, by (frame_index, object_id).

    Args:    rows: frame_index, object_id, height, width, rle, visibility; ids_thw: (T, H, W) uint8, the truth.
    Returns: 1 where both masks are empty, 0 where one is; untracked rows are left out.
    """
    from pipeline.rle import decode

    columns = ["frame_index", "object_id", "height", "width", "rle", "visibility"]
    found: dict[Key, float] = {}
    for row in rows.select(columns).to_pylist():
        if row["visibility"] == "untracked":
            continue
        truth = ids_thw[row["frame_index"]] == row["object_id"]
        mask = decode(row["rle"], row["height"], row["width"]) if row["rle"] else np.zeros_like(truth)
        union = int((mask | truth).sum())
        found[row["frame_index"], row["object_id"]] = int((mask & truth).sum()) / union if union else 1.0
    return found


def agreement(rows: pa.Table, ious: dict[Key, float], decisions: Sequence[str]) -> tuple[list[float], list[bool]]:
    """IoU and absence of the rows with one of some decisions, in the rows' order."""
    values, absent = [], []
    for row in rows.select(["frame_index", "object_id", "decision", "visibility"]).to_pylist():
        key = (row["frame_index"], row["object_id"])
        if row["decision"] in decisions and key in ious:
            values.append(ious[key])
            absent.append(row["visibility"] == "absent")
    return values, absent


def _summed(parts: Sequence[tuple[list[float], list[bool]]]) -> Agreement:
    values = [value for part, _ in parts for value in part]
    absent = [flag for _, part in parts for flag in part]
    if not values:
        return Agreement(0, None, None, None)
    n = len(values)
    return Agreement(n, math.fsum(values) / n, sum(value >= 0.5 for value in values) / n, sum(absent) / n)


def run_demo(
    out: Path,
    settings: Settings,
    *,
    progress: Callable[[str, Progress], None] | None = None,
    done: Callable[[VideoReport], None] | None = None,
) -> DemoReport:
    """Make the drop, label it, hold it against the truth, draw the pictures.

    Args:
        out: folder for everything: drop/, labels/, show/.
        settings: as for label_video.
        progress: called with the clip's name and the job's progress.
        done: called with each clip's report.
    Raises: MasksieveError as label_video does.
    """
    from pipeline.certificate import UNCERTIFIED
    from pipeline.label import label_video
    from pipeline.models import load_model
    from pipeline.render.contact import draw_contact_sheet
    from pipeline.render.labelled import read_labelled
    from pipeline.render.show import render_film
    from pipeline.render.timeline import draw_timeline

    clips = make_drop(out / "drop")
    labels, pictures = out / "labels", out / "show"
    model = load_model(settings.model.name, device=settings.model.device, cache_dir=settings.model.cache_dir)
    reports, films, tracks, tiles, parts = [], [], [], [], []
    flagged_stretches, labelled = 0, None
    for clip in clips:
        report = label_video(
            str(clip.video),
            clip.prompts,
            str(labels),
            settings,
            drop="demo",
            model=model,
            progress=partial(progress, clip.name) if progress else None,
        )
        if done is not None:
            done(report)
        labelled = read_labelled(str(labels), report.video_id, settings.storage)
        ious = true_ious(labelled.rows, clip.ids_thw)
        film = render_film(
            clip.video,
            labelled,
            pictures / f"{clip.name}{FILM_SUFFIX}",
            settings.decode,
            true_iou=ious,
            max_tiles=4,
            source=clip.name,
        )
        reports.append(report)
        films.append(film.path)
        tracks += [track.renamed(clip.name) for track in film.tracks]
        tiles += film.tiles
        flagged_stretches += labelled.stretches.num_rows
        parts.append(
            [agreement(labelled.rows, ious, kinds) for kinds in (["accept"], ["review"], ["accept", "review", "hold"])]
        )
    accepted, flagged, every = (_summed([part[i] for part in parts]) for i in range(3))
    evidence = labelled.evidence if labelled else ""
    timeline = draw_timeline(
        tracks,
        pictures / "timeline.png",
        title="masksieve demo",
        threshold=labelled.threshold if labelled else None,
        support=labelled.support if labelled else UNCERTIFIED,
        by_label=labelled.by_label if labelled else None,
    )
    contact = draw_contact_sheet(
        tiles,
        pictures / "flagged.png",
        title="masksieve demo: flagged masks",
        note=f"{len(tiles)} of {flagged_stretches} flagged stretches, by clip; {evidence}",
    )
    coverage = accepted.rows / every.rows if every.rows else None
    return DemoReport(reports, accepted, flagged, every, coverage, films, timeline, contact, labels)
