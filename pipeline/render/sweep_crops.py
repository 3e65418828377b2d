"""Crops of the example masks of a sweep as small JPEGs: from the video where it is at hand, else the mask alone."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import MasksieveError, StorageError
from pipeline.render.contact import crop_box
from pipeline.render.overlay import MaskView, draw_frame
from pipeline.review_images import jpeg_bytes
from pipeline.rle import decode
from pipeline.settings import DecodeSettings
from pipeline.source import video_sha256
from pipeline.sweep_examples import VIDEOS, Example
from pipeline.video.probe import probe_video
from pipeline.video.stream import FrameStream

log = logging.getLogger(__name__)

MOST = 144
NEAR = 4
"""So many are shown on each side of a threshold."""
CLOSE_FRAMES = 4
SIDE_PX = 176
QUALITY = 78
GROUND = 128
SECONDS = 30.0
READERS = 2
MASK_COLOUR_OF = 6
"""The object whose colour all examples have: a colour here means nothing."""
_COLUMNS = ["video_id", "video_uri", "frame_index", "object_id", "label", "height", "width", "rle"]

Key = tuple[str, int, int]


@dataclass(frozen=True)
class Crop:
    """One example as a picture.

    Args:
        compared: what the threshold is compared with.
        caption: which video, frame and object.
        iou: with the truth, None where it is not known.
        from_video: whether there is a frame behind the mask.
    """

    jpeg: bytes = field(repr=False)
    compared: float
    caption: str
    iou: float | None
    from_video: bool


def draw_crops(
    examples: Sequence[Example],
    told: Sequence[int],
    now: int,
    settings: DecodeSettings,
    *,
    seconds: float = SECONDS,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Crop]:
    """Draw at most `MOST` examples, spread over the thresholds that are told.

    Args:
        examples: by bin. told: positions of thresholds in the grid. now: that of the policy, near which all are drawn.
        settings: how videos are read.
        seconds: for reading videos; examples of those that are left are masks alone.
        progress: called with a video's name, how many are done, and how many there are.
    Returns: by `compared`; rows without a stored mask are left out.
    """
    wanted = spread(examples, told, now)
    rows = dict(_rows(wanted))
    frames = _frames(rows.values(), settings, time.monotonic() + seconds, progress)
    crops = []
    for one in wanted:
        row = rows.get((one.video_id, one.frame_index, one.object_id))
        if row is not None:
            crops.append(_draw(one, row, frames.get((one.video_id, one.frame_index))))
    return sorted(crops, key=lambda crop: crop.compared)


def spread(examples: Sequence[Example], told: Sequence[int], now: int) -> list[Example]:
    """Examples at even steps of the thresholds that are told, of few videos where these do; some next to the policy.

    Masks of one object on close frames look alike, so no two such follow each other.
    """
    few = {video for video, _ in Counter(one.video_id for one in examples).most_common(VIDEOS)}
    some = [one for one in examples if one.video_id in few]
    some = some if 2 * len(some) > MOST else list(examples)
    place = np.searchsorted(np.asarray(told), [one.bin for one in some])
    steps = np.searchsorted(place, np.linspace(0, len(told) - 1, MOST)).clip(0, max(0, len(some) - 1))
    near = int(np.searchsorted([one.bin for one in examples], now, side="right"))
    wanted = {some[i] for i in steps.tolist() if some} | set(examples[max(0, near - NEAR) : near + NEAR])
    picked: list[Example] = []
    for one in sorted(wanted, key=lambda one: (one.compared, one.bin)):
        if not any(_alike(one, other) for other in picked[-NEAR:]):
            picked.append(one)
    return picked


def _alike(one: Example, other: Example) -> bool:
    same = (one.video_id, one.object_id) == (other.video_id, other.object_id)
    return same and abs(one.frame_index - other.frame_index) < CLOSE_FRAMES


def _rows(wanted: Iterable[Example]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The stored masks, with one look into each file."""
    by_file: dict[Any, list[Example]] = defaultdict(list)
    for one in wanted:
        by_file[one.file].append(one)
    for file, some in by_file.items():
        keys = {(one.video_id, one.frame_index, one.object_id) for one in some}
        try:
            with file.store.open(file.key) as raw:
                there = set(pq.read_schema(raw).names)
                filters = [("frame_index", "in", sorted({one.frame_index for one in some}))]
                table = pq.read_table(raw, columns=[name for name in _COLUMNS if name in there], filters=filters)
        except StorageError as error:
            log.warning("no examples of %s: %s", file.uri, error)
            continue
        for row in table.to_pylist():
            row.setdefault("video_id", file.video_id)
            key = (row["video_id"], row["frame_index"], row["object_id"])
            if key in keys and row.get("rle"):
                yield key, row


def _frames(
    rows: Iterable[Mapping[str, Any]],
    settings: DecodeSettings,
    until: float,
    progress: Callable[[str, int, int], None] | None,
) -> dict[tuple[str, int], NDArray[np.uint8]]:
    """Frames of the videos that are on this disk and hold the very bytes that were labelled."""
    videos: dict[tuple[str, str], set[int]] = defaultdict(set)
    for row in rows:
        uri = str(row.get("video_uri") or "")
        if uri and "://" not in uri and Path(uri).is_file():
            videos[row["video_id"], uri].add(row["frame_index"])
    found: dict[tuple[str, int], NDArray[np.uint8]] = {}

    def read(one: tuple[tuple[str, str], set[int]]) -> str:
        (video_id, uri), indices = one
        if time.monotonic() < until:
            try:
                found.update(_of_video(Path(uri), video_id, sorted(indices), settings))
            except MasksieveError as error:
                log.info("masks alone for %s: %s", uri, error)
        return PurePosixPath(uri).name

    order = sorted(videos.items(), key=lambda item: -len(item[1]))
    with ThreadPoolExecutor(READERS, thread_name_prefix="masksieve-examples") as pool:
        for done, name in enumerate(pool.map(read, order), 1):
            if progress is not None:
                progress(name, done, len(order))
    return found


def _of_video(
    path: Path, video_id: str, indices: list[int], settings: DecodeSettings
) -> dict[tuple[str, int], NDArray[np.uint8]]:
    if video_sha256(path) != video_id:
        raise StorageError(f"the bytes that were labelled in {path}", "others", "bring the file back")
    info = probe_video(path, settings)
    indices = [index for index in indices if index < info.num_frames]
    with FrameStream(info.for_frames(indices), settings, indices=indices) as frames:
        return {(video_id, frame.index): frame.rgb_hw3 for frame in frames}


def _draw(example: Example, row: Mapping[str, Any], frame_hw3: NDArray[np.uint8] | None) -> Crop:
    mask_hw = decode(row["rle"], row["height"], row["width"])
    x0, y0, x1, y1 = crop_box(mask_hw)
    from_video = frame_hw3 is not None and frame_hw3.shape[:2] == mask_hw.shape
    ground_hw3 = frame_hw3 if from_video else np.full((*mask_hw.shape, 3), GROUND, np.uint8)
    assert ground_hw3 is not None
    crop_hw3 = np.ascontiguousarray(ground_hw3[y0:y1, x0:x1])
    view = MaskView(MASK_COLOUR_OF, None, mask_hw[y0:y1, x0:x1], "accept", "visible", None)
    picture = draw_frame(crop_hw3, [view], scale=SIDE_PX / max(crop_hw3.shape[:2]), tags=False)
    name = PurePosixPath(str(row.get("video_uri") or example.video_id[:12])).name
    what = f"{example.object_id} {row['label']}" if row.get("label") else f"object {example.object_id}"
    caption = f"{name}, frame {example.frame_index}, {what}"
    return Crop(jpeg_bytes(picture, QUALITY), example.compared, caption, example.iou, from_video)
