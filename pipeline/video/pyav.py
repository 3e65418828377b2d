"""Read frames in order with PyAV: every file that FFmpeg knows, rotation applied, every frame checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import VideoError
from pipeline.video.containers import open_container
from pipeline.video.damage import AGAIN, FrameCheck, LibavLog, other_codecs
from pipeline.video.job import Decoded, Job
from pipeline.video.orientation import Orientation
from pipeline.video.packets import video_stream

# Checks that decoders leave out by default. dav1d looks at the padding of tiles only when it is strict: without that,
# random bytes in AV1 decode without a word.
CHECKS = {"err_detect": "crccheck+bitstream+buffer"}
STRICT_CODECS = ("av1",)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """A container and its video stream, with one decoding thread: several do not meet damage the same way twice."""
    with open_container(path) as container:
        stream = video_stream(container)
        if stream is None:
            raise VideoError("a file with a video stream", f"none in {path}", "name a video")
        stream.codec_context.thread_count = 1
        strict = stream.codec_context.codec.canonical_name in STRICT_CODECS
        stream.codec_context.options = {**CHECKS, "strict": "1"} if strict else CHECKS
        yield container, stream


def checked_frames(path: Path, seek_ticks: int | None = None, first_index: int = 0) -> Iterator[Any]:
    """PyAV's frames in order of presentation, up to the first sign of damage.

    Args:
        seek_ticks: begin with the frame of this time, a keyframe; None begins with the first frame.
        first_index: frame_index of the first frame that comes.
    Raises: VideoError whose `frame` is the first that cannot be trusted.
    """
    import av

    LibavLog.listen()
    log = LibavLog()
    check = FrameCheck(path, log)
    index = first_index
    try:
        with open_video(path) as (container, stream):
            log.ignored = other_codecs(container, stream)
            # What the codec said while FFmpeg looked ahead it will say again; what a demuxer left out is gone.
            if (error := log.first_error(besides=stream.codec_context.name)) is not None:
                raise check.damaged(index, f"damage ({error})")
            if seek_ticks is not None:
                container.seek(seek_ticks, stream=stream)
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise check.damaged(index, "a damaged packet")
                for frame in packet.decode():
                    check.frame(index, frame)
                    yield frame
                    index += 1
            check.look(index, "a container that breaks")
    except av.FFmpegError as error:
        raise check.damaged(index, f"data that breaks ({error.strerror})") from error


def read_pyav(job: Job) -> Iterator[Decoded]:
    """Yield (frame_index, pts_seconds, (H, W, 3) uint8 RGB, upright, or None for a frame that is not wanted).

    Frames that are not wanted are passed over by a seek where the index knows an entry after them; otherwise they are
    decoded and dropped.

    Raises: VideoError on damage, on a time that the probe did not see, or if another number of frames comes out.
    """
    turn, counted = Orientation(job.rotation, job.mirrored), f"{job.num_frames} frames as the probe counted"
    seconds_n = None if job.index is None else job.index.seconds()
    for begin, end in job.stretches():
        for index, frame in _from_entry(job, begin):
            if index >= job.num_frames and not job.is_prefix:
                got = f"more decoded from {job.path}"
                raise VideoError(counted, got, AGAIN, path=job.path, frame=index)
            if index >= (job.num_frames if end is None else end):
                break
            pts_seconds = index / job.fps if seconds_n is None else float(seconds_n[index])
            wanted = index >= begin and job.wants(index)  # an inexact seek begins with frames that were delivered
            yield index, pts_seconds, _rgb(frame, turn) if wanted else None
            if end is not None and index == end - 1:
                break
        else:
            if index != job.num_frames - 1 and end is None:
                got = f"{index + 1} decoded from {job.path}"
                raise VideoError(counted, got, AGAIN, path=job.path)


def _from_entry(job: Job, begin: int) -> Iterator[tuple[int, Any]]:
    """Frames from `begin` (an entry of the index) on; from the first frame on if the seek turns out inexact."""
    ticks_n = None if job.index is None or not job.index.exact else job.index.ticks_n
    frames = checked_frames(job.path, None if begin == 0 or ticks_n is None else int(ticks_n[begin]), begin)
    for offset, frame in enumerate(frames):
        index = begin + offset
        if ticks_n is not None and index < len(ticks_n) and frame.pts != ticks_n[index]:
            if begin and not offset:
                yield from _from_entry(job, 0)
                return
            got = f"{frame.pts} at frame {index} of {job.path}"
            raise VideoError(f"the time {ticks_n[index]} as the probe saw", got, AGAIN, path=job.path, frame=index)
        yield index, frame


def _rgb(frame: Any, turn: Orientation) -> NDArray[np.uint8]:
    """Bicubic where chroma needs a filter, as ffmpeg does by default; the frame's own matrix and range."""
    rgb_hw3: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", interpolation="BICUBIC")
    return turn.apply(rgb_hw3)
