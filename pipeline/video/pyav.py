"""Read frames in order with PyAV: every file that FFmpeg knows, rotation applied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import VideoError
from pipeline.video.decord import Decoded
from pipeline.video.probe import video_stream


def read_pyav(path: Path, num_frames: int, fps: float, rotation: int) -> Iterator[Decoded]:
    """Yield every frame as (frame_index, pts_seconds, (H, W, 3) uint8 RGB), upright.

    One decoding thread, because damaged files do not decode the same way twice with several. A frame without a time
    gets frame_index / fps.

    Raises: VideoError on damage, or if another number of frames than `num_frames` comes out.
    """
    import av

    again = "copy or download it again, or encode it again"
    index = 0
    try:
        with av.open(str(path)) as container:
            stream = video_stream(container)
            if stream is None:
                raise VideoError("a file with a video stream", f"none in {path}", "name a video")
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise VideoError("an undamaged video", f"{path} with damaged frame {index}", again)
                pts_seconds = index / fps if frame.pts is None else float(frame.pts * frame.time_base)
                rgb_hw3 = frame.to_ndarray(format="rgb24")
                yield index, pts_seconds, np.rot90(rgb_hw3, rotation // 90) if rotation else rgb_hw3
                index += 1
    except av.FFmpegError as error:
        got = f"{path} that breaks at frame {index} ({error.strerror})"
        raise VideoError("an undamaged video", got, again) from error
    if index != num_frames:
        raise VideoError(f"{num_frames} frames as the probe counted", f"{index} decoded from {path}", again)
