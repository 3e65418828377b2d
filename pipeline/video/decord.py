"""Read frames in order with decord, for files that the probe found clean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import VideoError
from pipeline.video.probe import presentation_times

Decoded = tuple[int, float, NDArray[np.uint8]]


def read_decord(path: Path, num_frames: int) -> Iterator[Decoded]:
    """Yield every frame as (frame_index, pts_seconds, (H, W, 3) uint8 RGB), without a seek.

    decord decodes ahead without bound in a thread of its own while nobody calls `next()`; whoever iterates slowly must
    stop the whole process meanwhile (child.py does).

    Raises: VideoError if decord finds another number of frames than `num_frames`.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    times = presentation_times(path)
    reader = decord.VideoReader(str(path), num_threads=1)
    again = "set decode.decoder to pyav, or encode the video again"
    if len(reader) != num_frames or len(times) != num_frames:
        got = f"{len(reader)} by decord and {len(times)} times in {path}"
        raise VideoError(f"{num_frames} frames as the probe counted", got, again)
    for index in range(num_frames):
        try:
            rgb_hw3 = reader.next().asnumpy()
        except StopIteration:
            raise VideoError(
                f"{num_frames} frames as the probe counted", f"{index} by decord in {path}", again
            ) from None
        except decord.DECORDError as error:
            step = "copy or download it again, or encode it again"
            raise VideoError("an undamaged video", f"{path} that breaks at frame {index}", step) from error
        yield index, times[index], rgb_hw3
