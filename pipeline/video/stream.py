"""Frames of a video in order, decoded in a process of their own, bounded in memory, always cleaned up."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import VideoError
from pipeline.video.damage import AGAIN
from pipeline.video.job import Job
from pipeline.video.probe import VideoInfo, memory_limit_bytes
from pipeline.video.process import ChildProcess
from pipeline.video.ring import FrameRing, open_shared_file, ring_slots

if TYPE_CHECKING:
    from pipeline.settings import DecodeSettings

log = logging.getLogger(__name__)

READY_FRAMES = 2  # resized frames that wait for the consumer, besides those in the ring
TICK_SECONDS = 0.05


@dataclass(frozen=True)
class Frame:
    """One presented frame.

    Args:
        index: presented-frame index from 0.
        pts_seconds: presentation time as the container says.
        rgb_hw3: (H, W, 3) uint8 RGB, owned by the receiver.
    """

    index: int
    pts_seconds: float
    rgb_hw3: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"Frame(index={self.index}, pts_seconds={self.pts_seconds:.3f}, rgb_hw3={self.rgb_hw3.shape})"


class FrameStream:
    """Context manager and iterator of the frames of one video, in order.

    A child process decodes into a ring of `settings.queue_frames` frames in shared memory; a thread of this process
    takes them out and resizes them. Whatever the consumer's speed, no more than the ring and three frames are held.
    `damage` says what lies after the last frame of a damaged video, None for a whole one.
    `close` (or the end of the `with` block, or the last reference going) ends the child and frees the ring.

    Args:
        info: what `probe_video` said.
        settings: queue_frames and watchdog_seconds.
        resize: side of the square to resize to with PIL's bicubic filter, exactly as SAM2 loads frames; None keeps the
            video's size.
        start: the first frame to deliver. It never changes the decoder, so that a run that goes on says truly what read
            it.
        indices: frames to deliver, ascending, but for those before `start`; None delivers all, whose number is checked.

    Frames that are not wanted are passed over by a seek where that is exact (`VideoInfo.index`), which only PyAV does:
    `VideoInfo.for_frames` says who reads `indices`. Elsewhere they are decoded and dropped.

    Raises:
        VideoError: while iterating: damage, a wrong number of frames, a child that crashed or made no progress for
            `watchdog_seconds` although there was room for its frames. At once: frames out of order or outside.
    """

    def __init__(
        self,
        info: VideoInfo,
        settings: DecodeSettings,
        *,
        resize: int | None = None,
        start: int = 0,
        indices: Sequence[int] | None = None,
    ) -> None:
        job = new_job(info, settings, start, indices)
        self.damage = _damage(info)
        self._pump = _Pump(job, resize, settings.watchdog_seconds)
        self._finalizer = weakref.finalize(self, self._pump.stop)
        self._done = False

    @property
    def child_pid(self) -> int | None:
        """Process id of the decoding child, None before it runs and after it ended."""
        return self._pump.child_pid

    def __enter__(self) -> FrameStream:
        self._pump.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._done:
            raise StopIteration
        self._pump.start()
        item = self._pump.ready.get()
        if isinstance(item, Frame):
            return item
        self.close()
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """End the child, free the ring; safe to call at any time and more than once. Iteration ends."""
        self._done = True
        self._finalizer()


def new_job(info: VideoInfo, settings: DecodeSettings, start: int = 0, indices: Sequence[int] | None = None) -> Job:
    """What `FrameStream` asks its decoding process for.

    Raises: VideoError for frames out of order or outside.
    """
    wanted_n = None if indices is None else np.asarray(indices, np.int64)
    _require_indices(np.array([start]) if wanted_n is None else wanted_n, info)
    info = info.for_frames(wanted_n)
    if wanted_n is not None:
        wanted_n = wanted_n[np.searchsorted(wanted_n, start) :]
    slots = ring_slots(settings.queue_frames, info.height, info.width)
    return Job(
        info.path, info.decoder, info.num_frames, info.fps, info.rotation, info.mirrored, info.height, info.width,
        info.damage is not None, info.index, start, wanted_n, slots,
    )  # fmt: skip


def _damage(info: VideoInfo) -> VideoError | None:
    if info.damage is None:
        return None
    return VideoError(
        f"an undamaged {info.path}", info.damage, AGAIN, path=info.path, frame=info.num_frames, frames=info.num_frames
    )


def _require_indices(wanted_n: NDArray[np.int64], info: VideoInfo) -> None:
    if (np.diff(wanted_n) <= 0).any():
        raise VideoError("frame indices in ascending order", "indices out of order or repeated", "sort them first")
    for index in wanted_n[[0, -1]] if wanted_n.size else ():
        if not 0 <= index < info.num_frames:
            raise VideoError(
                f"frame indices in 0..{info.num_frames - 1}", f"{index}", f"ask for frames that {info.path} has"
            )


class _Pump:
    """The thread that runs the child and turns ring slots into frames; knows nothing of the stream that owns it."""

    def __init__(self, job: Job, resize: int | None, watchdog_seconds: float) -> None:
        self._job, self._resize, self._watchdog_seconds = job, resize, watchdog_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._start_lock = threading.Lock()
        self.ready: queue.Queue[Frame | Exception | None] = queue.Queue(READY_FRAMES)
        self.child_pid: int | None = None

    def start(self) -> None:
        with self._start_lock:
            if self._thread is None and not self._stop.is_set():
                # This thread starts the child, so that the kernel ends the child when the thread ends, come what may.
                self._thread = threading.Thread(target=self._run, name="masksieve-frames", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        while not self.ready.empty():
            self.ready.get_nowait()
        self.ready.put_nowait(None)  # wakes a consumer that waits in another thread

    def _run(self) -> None:
        last: Exception | None = None
        try:
            self._with_child()
        except Exception as error:  # noqa: BLE001 - the consumer raises it
            last = error
        self._put(last)

    def _put(self, item: Frame | Exception | None) -> None:
        while not self._stop.is_set():
            try:
                self.ready.put(item, timeout=TICK_SECONDS)
                return
            except queue.Full:
                continue

    def _with_child(self) -> None:
        job = self._job
        ring_bytes = job.slots * job.height * job.width * 3
        ring_fd = open_shared_file(ring_bytes)
        try:
            ring = FrameRing(ring_fd, job.slots, job.height, job.width)
            memory_bytes = memory_limit_bytes(job.height * job.width) + ring_bytes
            child = ChildProcess("pipeline.video.child", memory_bytes, (ring_fd,))
            try:
                self.child_pid = child.pid
                child.link.send(job)
                self._relay(child, ring)
            finally:
                child.close()
                self.child_pid = None
                ring.close()
        finally:
            os.close(ring_fd)

    def _relay(self, child: ChildProcess, ring: FrameRing) -> None:
        delivered = 0
        while not self._stop.is_set():
            try:
                if not self._wait(child, delivered):
                    return
                message = child.link.recv()
            except (EOFError, OSError) as error:
                raise VideoError(
                    f"the {self._job.decoder} process to read {self._job.path} to its end",
                    f"its death at frame {delivered} ({child.describe_death()})",
                    "run again, with decode.decoder set to pyav, or encode the video again",
                    path=self._job.path,
                ) from error
            if message[0] == "error":
                raise message[1]
            if message[0] == "end":
                return
            if message[0] == "skipped":
                continue
            _, index, slot, pts_seconds = message
            frame = Frame(index, pts_seconds, self._take(ring, slot))
            self._give_back(child)
            delivered = index + 1
            self._put(frame)

    def _wait(self, child: ChildProcess, delivered: int) -> bool:
        """Wait for a message; the child has free slots all the while, so silence means that it hangs."""
        deadline = time.monotonic() + self._watchdog_seconds
        while not self._stop.is_set():
            if child.link.poll(TICK_SECONDS):
                return True
            child.wake()  # it may have stopped itself just after we freed its slot
            if time.monotonic() > deadline:
                got = f"none after frame {delivered - 1}" if delivered else "none at all"
                raise VideoError(
                    f"a frame of {self._job.path} within {self._watchdog_seconds:g} s",
                    f"{got}; the {self._job.decoder} process was ended",
                    "encode the video again, or raise decode.watchdog_seconds on a slow disk",
                )
        return False

    def _take(self, ring: FrameRing, slot: int) -> NDArray[np.uint8]:
        """Copy a slot out of the ring, resized if wanted."""
        if self._resize is None:
            return ring.view(slot).copy()
        from PIL import Image

        resized = Image.fromarray(ring.view(slot)).resize((self._resize, self._resize))
        return np.array(resized)

    def _give_back(self, child: ChildProcess) -> None:
        try:
            child.link.send_bytes(b"free")
            child.wake()
        except OSError:
            log.debug("the decoding process had ended before its slot was free again")
