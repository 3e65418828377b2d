"""Read frames in order with decord, for files that the probe found clean."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import VideoError
from pipeline.video.damage import AGAIN, FrameCheck, LibavLog
from pipeline.video.job import Decoded, Job


def read_decord(job: Job) -> Iterator[Decoded]:
    """Yield every frame as (frame_index, pts_seconds, (H, W, 3) uint8 RGB), without a seek.

    decord decodes ahead without bound in a thread of its own while nobody calls `next()`; whoever iterates slowly must
    stop the whole process meanwhile (child.py does). It conceals damage without a word, but its libav logs it.

    Raises: VideoError if libav logged an error, or decord finds another number of frames than the probe.
    """
    import decord

    decord.logging.set_level(decord.logging.ERROR)
    check = FrameCheck(job.path, LibavLog(frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "vorbis"})))
    seconds_n = None if job.index is None else job.index.seconds()
    counted = f"{job.num_frames} frames as the probe counted"
    try:
        reader = decord.VideoReader(str(job.path.absolute()), num_threads=1)
        if len(reader) != job.num_frames:
            raise VideoError(
                counted, f"{len(reader)} by decord in {job.path}", AGAIN, path=job.path, frames=len(reader)
            )
        for index in range(job.num_frames):
            rgb_hw3 = reader.next().asnumpy()
            check.look(index)
            yield index, index / job.fps if seconds_n is None else float(seconds_n[index]), rgb_hw3
    except StopIteration:
        raise VideoError(counted, f"{index} by decord in {job.path}", AGAIN, path=job.path, frames=index) from None
    except decord.DECORDError as error:
        reason = " ".join(str(error).split())[:120]
        raise VideoError("a video that decord reads", f"{job.path} ({reason})", AGAIN, path=job.path) from error
