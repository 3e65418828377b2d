"""Turns one labelled video into its three pictures, reading the video once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.drops import FILM_SUFFIX
from pipeline.errors import VideoError
from pipeline.render.contact import Tile, draw_contact_sheet, make_tile
from pipeline.render.film import FilmWriter
from pipeline.render.labelled import Labelled
from pipeline.render.masklet import Masklet, masklets
from pipeline.render.overlay import MaskView, Strip, display_scale, draw_frame
from pipeline.render.timeline import draw_timeline
from pipeline.settings import DecodeSettings
from pipeline.video.probe import VideoInfo, probe_video
from pipeline.video.stream import FrameStream

log = logging.getLogger(__name__)

Key = tuple[int, int]


@dataclass(frozen=True)
class Pictures:
    """Where the pictures of one video are; `codec` is the film's, `flagged` how many stretches the sheet shows."""

    overlay: Path
    timeline: Path
    contact: Path
    codec: str
    frames: int
    flagged: int


@dataclass(frozen=True)
class Film:
    """An overlay film, and what was gathered for the other pictures while the video was being read."""

    path: Path
    codec: str
    frames: int
    tracks: list[Masklet] = field(repr=False)
    tiles: list[Tile] = field(repr=False)


def show_video(
    video: Path,
    labelled: Labelled,
    out: Path,
    decode_settings: DecodeSettings,
    *,
    name: str | None = None,
    max_tiles: int = 12,
    progress: Callable[[int, int], None] | None = None,
) -> Pictures:
    """Write overlay film, timeline and contact sheet of one labelled video.

    Args:
        video: the file that was labelled.
        labelled: its decisions.
        out: folder of the pictures.
        decode_settings: how the video is read.
        name: what the files are called; the video's stem if None.
        max_tiles: at most so many review stretches on the contact sheet.
        progress: called with frames done and frames in all.
    Raises: VideoError if the video cannot be read, or has another size than its labels; StorageError if `out` cannot
        be written.
    """
    name = name or video.stem
    path = out / f"{name}{FILM_SUFFIX}"
    film = render_film(video, labelled, path, decode_settings, max_tiles=max_tiles, progress=progress)
    timeline = draw_timeline(
        film.tracks,
        out / f"{name}.timeline.png",
        title=video.name,
        threshold=labelled.threshold,
        support=labelled.support,
        by_label=labelled.by_label,
    )
    shown = f"{len(film.tiles)} of {labelled.stretches.num_rows} flagged stretches, most uncertain first"
    contact = draw_contact_sheet(
        film.tiles,
        out / f"{name}.flagged.png",
        title=f"{video.name}: flagged masks",
        note=f"{shown}; {labelled.evidence}",
        nothing="Nothing was flagged for review." if film.tracks else "No object was found in this video.",
    )
    return Pictures(film.path, timeline, contact, film.codec, film.frames, len(film.tiles))


def render_film(
    video: Path,
    labelled: Labelled,
    path: Path,
    decode_settings: DecodeSettings,
    *,
    true_iou: Mapping[Key, float] | None = None,
    max_tiles: int = 12,
    source: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Film:
    """Write the overlay film, and cut the tiles of the contact sheet on the way.

    Of a sampled video the film shows the frames that were labelled, at the pace of their own times: it is as long as
    what it shows, and no frame stands there without its masks.

    Args:
        true_iou: IoU with the truth by (frame_index, object_id), where it is known.
        max_tiles: at most so many review stretches become tiles.
        source: written before each tile's heading, for sheets of several videos.
    Raises: as `show_video`.
    """
    info = probe_video(video, decode_settings)
    rows = labelled.rows
    if true_iou is not None:
        keys = zip(rows["frame_index"].to_pylist(), rows["object_id"].to_pylist(), strict=True)
        rows = rows.append_column("true_iou", pa.array([true_iou.get(key) for key in keys], pa.float64()))
    tracks = masklets(rows)
    sampled = labelled.sampled and rows.num_rows > 0
    shown = _shown_frames(rows, info) if sampled else np.arange(info.num_frames)
    codes, ids = _codes(tracks, shown)
    flagged = labelled.stretches.slice(0, max_tiles)
    wanted = list(zip(flagged["frame_index"].to_pylist(), flagged["object_id"].to_pylist(), strict=True))
    tiles: dict[Key, Tile] = {}
    last_box: dict[int, list[float]] = {}
    strip: Strip | None = None
    scale = display_scale(info.height, info.width)
    by_frame = _by_frame(rows, shown, info)
    indices = shown.tolist() if sampled else None
    with (
        FilmWriter(path, _pace(rows, shown, info)) as film,
        FrameStream(info, decode_settings, indices=indices) as frames,
    ):
        for position, frame in enumerate(frames):
            views = next(by_frame)
            picture = draw_frame(frame.rgb_hw3, [view for view, _, _ in views], scale=scale)
            strip = strip or Strip(ids, codes, picture.shape[1], labelled.evidence)
            film.append(strip.draw(picture, position, f"frame {frame.index}   {frame.pts_seconds:.2f} s"))
            for view, box, iou in views:
                key = (frame.index, view.object_id)
                if key in wanted:
                    around = box or last_box.get(view.object_id)
                    tiles[key] = make_tile(
                        frame.rgb_hw3, view, frame.index, around_xyxy=around, true_iou=iou, source=source
                    )
                if box:
                    last_box[view.object_id] = box
            if progress is not None:
                progress(position + 1, shown.size)
    return Film(path, film.codec, film.num_frames, tracks, [tiles[key] for key in wanted if key in tiles])


def _shown_frames(rows: pa.Table, info: VideoInfo) -> NDArray[np.int64]:
    """The frames that have rows, ascending."""
    labelled = np.unique(rows["frame_index"].to_numpy()).astype(np.int64)
    return labelled[labelled < info.num_frames]


def _pace(rows: pa.Table, shown: NDArray[np.int64], info: VideoInfo) -> float:
    """Frames per second of the film: the video's own, less as frames were left out."""
    if shown.size < 2 or shown[-1] - shown[0] == shown.size - 1:
        return info.fps
    times = pc.min_max(rows["pts_seconds"]).as_py()
    return float((shown.size - 1) / max(times["max"] - times["min"], 1e-3))


def _codes(tracks: list[Masklet], shown: NDArray[np.int64]) -> tuple[NDArray[np.uint8], list[int]]:
    """Decision codes (objects, shown frames) for the strip, and the object of each lane."""
    codes = np.zeros((len(tracks), shown.size), np.uint8)
    for lane, track in enumerate(tracks):
        inside = np.isin(track.frame_index_n, shown)
        codes[lane, np.searchsorted(shown, track.frame_index_n[inside])] = track.decision_code_n[inside]
    return codes, [track.object_id for track in tracks]


def _by_frame(
    rows: pa.Table, shown: NDArray[np.int64], info: VideoInfo
) -> Iterator[list[tuple[MaskView, list[float] | None, float | None]]]:
    """The views of each shown frame in turn, with their box and true IoU; masks are decoded as they are needed."""
    sizes = set(zip(pc.unique(rows["height"]).to_pylist(), pc.unique(rows["width"]).to_pylist(), strict=False))
    if sizes and sizes != {(info.height, info.width)}:
        raise VideoError(
            f"a video of {sorted(sizes)[0]}", f"{(info.height, info.width)}", "show the file that was labelled"
        )
    index = rows["frame_index"].to_numpy()
    starts, stops = np.searchsorted(index, shown), np.searchsorted(index, shown, side="right")
    for start, stop in zip(starts, stops, strict=True):
        here = rows.slice(start, stop - start).to_pylist()
        yield [(MaskView.of_row(row), row["bbox_xyxy"], row.get("true_iou")) for row in here]
