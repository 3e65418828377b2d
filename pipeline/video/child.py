"""The decoding process: writes frames into the ring, and stands still while the ring is full.

decord's own thread decodes ahead without bound (2-4 GB in 10 s at 1080p) whenever nobody takes its frames. No call
pauses it, so this process stops itself as a whole (SIGSTOP) while it has no free slot, and the reader continues it
(SIGCONT): nothing is decoded far ahead, nothing twice.

Messages to the reader: ("frame", index, slot, pts_seconds), ("skipped", index), ("end",), ("error", VideoError).
From the reader: one job, then one message per slot that is free again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

from pipeline.errors import VideoError
from pipeline.video.job import Decoded, Job
from pipeline.video.process import enter_child
from pipeline.video.ring import FrameRing

HEARTBEAT_SECONDS = 0.5


class SlotCounter:
    """Free slots of the ring, as the reader hands them back."""

    def __init__(self, connection: Connection, slots: int, stand_still: bool) -> None:
        self._connection, self._free, self._stand_still = connection, slots, stand_still

    def take(self) -> None:
        """Wait for a free slot; EOFError when the reader is gone."""
        while self._connection.poll(0) or not self._free:
            if self._free or self._connection.poll(0) or not self._stand_still:
                self._connection.recv_bytes()
                self._free += 1
            else:
                os.kill(os.getpid(), signal.SIGSTOP)
        self._free -= 1


def main(link_fd: int, parent_pid: int, memory_bytes: int, ring_fd: int) -> None:
    """Entry point of the process; both descriptors are inherited from the reader."""
    connection = enter_child(link_fd, parent_pid, memory_bytes)
    job: Job = connection.recv()
    try:
        ring = FrameRing(ring_fd, job.slots, job.height, job.width)
        _deliver(job, ring, connection)
        connection.send(("end",))
    except VideoError as error:
        connection.send(("error", error))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # the reader has gone or has enough
    except Exception as error:  # noqa: BLE001 - every reason travels to the reader
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        expected, step = f"the {job.decoder} decoder to read {job.path}", "set decode.decoder to pyav"
        connection.send(("error", VideoError(expected, reason, step, path=job.path)))


def _frames(job: Job) -> Iterator[Decoded]:
    if job.decoder == "decord":
        from pipeline.video.decord import read_decord

        return read_decord(job)
    from pipeline.video.pyav import read_pyav

    return read_pyav(job)


def decoded_frames(job: Job) -> Iterator[Decoded]:
    """What the decoder gives out, up to the last frame that is wanted; None for the pixels of the others.

    Raises: VideoError of the decoder, or for a frame of another size than the ring's.
    """
    if job.indices is not None and not job.indices.size:
        return
    last = None if job.indices is None else int(job.indices[-1])
    for index, pts_seconds, rgb_hw3 in _frames(job):
        if rgb_hw3 is None or not job.wants(index):
            yield index, pts_seconds, None
        elif rgb_hw3.shape != (job.height, job.width, 3):
            expected = f"frames of {job.width}x{job.height} throughout"
            got = f"{rgb_hw3.shape[1]}x{rgb_hw3.shape[0]} at frame {index} of {job.path}"
            raise VideoError(expected, got, "encode the video at one size", path=job.path, frame=index)
        else:
            yield index, pts_seconds, rgb_hw3
        if index == last:
            return


def _deliver(job: Job, ring: FrameRing, connection: Connection) -> None:
    free = SlotCounter(connection, job.slots, stand_still=job.decoder == "decord")
    delivered = 0
    spoke = time.monotonic()
    for index, pts_seconds, rgb_hw3 in decoded_frames(job):
        if rgb_hw3 is not None:
            free.take()
            slot = delivered % job.slots
            ring.view(slot)[:] = rgb_hw3
            connection.send(("frame", index, slot, pts_seconds))
            delivered += 1
            spoke = time.monotonic()
        elif time.monotonic() - spoke > HEARTBEAT_SECONDS:  # frames that nobody wants take time too
            connection.send(("skipped", index))
            spoke = time.monotonic()
