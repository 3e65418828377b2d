"""Pictures for the review list: the worst frame of each flagged stretch, plain and with the mask drawn on it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline.derive import ReviewImages, picture_keys
from pipeline.ledger import Commit
from pipeline.render.overlay import MaskView, draw_frame
from pipeline.settings import Settings
from pipeline.storage.objects import ObjectStore
from pipeline.stretches import Stretch
from pipeline.video.probe import VideoInfo
from pipeline.video.stream import FrameStream

COLUMNS = ("frame_index", "object_id", "label", "height", "width", "rle", "visibility", "prompted")


def worst_stretches(stretches: Sequence[Stretch], most: int) -> list[Stretch]:
    """At most so many stretches, the most uncertain first; one without a score counts as fully uncertain."""

    def worst_first(stretch: Stretch) -> tuple[float, str]:
        return -(1.0 if stretch.uncertainty is None else stretch.uncertainty), stretch.review_id

    return sorted(stretches, key=worst_first)[:most]


def write_review_images(
    stretches: Sequence[Stretch], store: ObjectStore, commit: Commit, info: VideoInfo, settings: Settings
) -> Mapping[str, ReviewImages]:
    """Decode the representative frames once more and store them as JPEG.

    Args:
        stretches: of the video; the `output.max_review_frames` most uncertain ones get pictures.
        commit: whose facts the masks are read from; pictures lie at keys of this generation.
        info: the video, still on disk.
    Returns: URIs by review_id.
    Raises: VideoError, StorageError.
    """
    chosen = worst_stretches(stretches, settings.output.max_review_frames)
    wanted: dict[int, list[Stretch]] = {}
    for stretch in chosen:
        wanted.setdefault(stretch.representative_frame, []).append(stretch)
    if not wanted:
        return {}
    frames = sorted(wanted)
    with store.open(commit.file("masks").key) as file:
        table = pq.read_table(file, columns=list(COLUMNS), filters=[("frame_index", "in", frames)])
    rows = {(row["frame_index"], row["object_id"]): row for row in table.to_pylist()}
    found: dict[str, ReviewImages] = {}
    with FrameStream(info, settings.decode, indices=frames) as stream:
        for frame in stream:
            plain = picture_keys(commit, wanted[frame.index][0])[0]
            store.put_atomic(plain, jpeg_bytes(frame.rgb_hw3, settings.output.jpeg_quality))
            for stretch in wanted[frame.index]:
                row = rows[frame.index, stretch.object_id]
                view = MaskView.of_row(row | {"decision": "review", "uncertainty": stretch.uncertainty})
                overlay = picture_keys(commit, stretch)[1]
                store.put_atomic(overlay, jpeg_bytes(draw_frame(frame.rgb_hw3, [view]), settings.output.jpeg_quality))
                found[stretch.review_id] = ReviewImages(store.uri(plain), store.uri(overlay))
    return found


def jpeg_bytes(rgb_hw3: NDArray[np.uint8], quality: int, size: tuple[int, int] | None = None) -> bytes:
    """A picture as JPEG.

    Args:    quality: Pillow's, 1..95.
             size: height and width in pixels, if other than the picture's.
    """
    out = io.BytesIO()
    image = Image.fromarray(rgb_hw3)
    if size not in (None, rgb_hw3.shape[:2]):
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()
