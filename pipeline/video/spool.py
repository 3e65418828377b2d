"""Model-size frames on scratch disk, for the reverse pass: read backwards without a backwards seek."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pipeline.errors import DiskSpaceError, ShapeError, StorageError
from pipeline.video.stream import Frame

RESERVE_BYTES = 64 << 20  # scratch disk that stays free


class FrameSpool:
    """Consecutive frames in an unnamed scratch file: gone when closed, and when the process dies.

    With `path` the file has a name and stays, so that a later run can go on from where one died (`mark`, `restore`).

    Reads and writes go through the page cache, not through a mapping, so memory does not grow with the number of frames
    and a full disk is an error that can be caught.

    Args:
        scratch_dir: folder of the file, made if missing.
        capacity_frames: number of frames that will come at most.
        size: side of the square frames in px.
        path: where to keep the file for good; None for an unnamed one.

    Raises:
        DiskSpaceError: at once if `capacity_frames` do not fit on the disk; in `append` if the disk filled up since.
    """

    def __init__(self, scratch_dir: Path, capacity_frames: int, size: int, *, path: Path | None = None) -> None:
        self.capacity_frames, self.size = capacity_frames, size
        self._frame_bytes = size * size * 3
        self._dir = Path(scratch_dir)
        self._first = 0
        self._pts_seconds = array("d")
        self._crc = 0
        need = predicted_bytes(capacity_frames, size)
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._dir).free - RESERVE_BYTES
            if path is not None and path.exists():
                free += path.stat().st_size
            if need > free:
                raise _too_little(self._dir, need, free)
            if path is None:
                self._file = tempfile.TemporaryFile(dir=self._dir, buffering=0)  # noqa: SIM115 - lives as long as we do
            else:
                self._file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            got = f"{self._dir} ({error.strerror})"
            raise DiskSpaceError("a writable scratch folder", got, "set output.scratch_dir") from error

    def append(self, frame: Frame) -> None:
        """Add the next frame.

        Args:
            frame: (size, size, 3) uint8, one index above the frame before it; the first may have any index.

        Raises:
            ShapeError: another shape or dtype, an index that does not follow, more frames than the capacity.
            DiskSpaceError: the disk is full.
        """
        count = len(self)
        if frame.rgb_hw3.shape != (self.size, self.size, 3) or frame.rgb_hw3.dtype != np.uint8:
            got = f"{frame.rgb_hw3.shape} {frame.rgb_hw3.dtype}"
            raise ShapeError(
                f"a ({self.size}, {self.size}, 3) uint8 frame", got, "stream with resize set to the model's size"
            )
        if count == self.capacity_frames:
            raise ShapeError(f"at most {count} frames", "one more", "make the spool larger")
        if count and frame.index != self._first + count:
            raise ShapeError(f"frame {self._first + count} next", f"frame {frame.index}", "append frames in order")
        data = memoryview(frame.rgb_hw3.tobytes())
        crc = zlib.crc32(data, self._crc)
        offset = count * self._frame_bytes
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            need = (self.capacity_frames - count) * self._frame_bytes
            raise _too_little(self._dir, need, shutil.disk_usage(self._dir).free) from error
        if not count:
            self._first = frame.index
        self._pts_seconds.append(frame.pts_seconds)
        self._crc = crc

    def mark(self) -> dict[str, Any]:
        """Put every frame on the disk for good, and say how far that is: numbers that `restore` takes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            got = f"{self._dir}: {error.strerror}"
            raise StorageError("scratch frames on the disk", got, "free some, or set output.scratch_dir") from error
        return {"first": self._first, "pts_seconds": self._pts_seconds.tolist(), "crc": self._crc}

    def restore(self, mark: Mapping[str, Any]) -> None:
        """Take the frames that another process left in `path`, cut to its mark.

        Raises: StorageError if the file is shorter than its mark, or not what it was then.
        """
        pts_seconds, crc, data = array("d", mark["pts_seconds"]), 0, bytearray(self._frame_bytes)
        for position in range(len(pts_seconds)):
            if os.preadv(self._file.fileno(), [data], position * self._frame_bytes) != len(data):
                break
            crc = zlib.crc32(data, crc)
        if crc != mark["crc"] or len(pts_seconds) > self.capacity_frames:
            raise StorageError(
                f"{len(pts_seconds)} frames as they were at the checkpoint", "others", "start the video over"
            )
        os.ftruncate(self._file.fileno(), len(pts_seconds) * self._frame_bytes)
        self._first, self._pts_seconds, self._crc = mark["first"], pts_seconds, crc

    def read(self, index: int) -> Frame:
        """The frame of that frame_index, as appended.

        Raises: ShapeError for a frame that was not appended.
        """
        position = index - self._first
        if not 0 <= position < len(self):
            held = f"frames {self._first}..{self._first + len(self) - 1}" if len(self) else "no frames yet"
            raise ShapeError("a frame that was spooled", f"frame {index} ({held})", "append it first")
        data = bytearray(self._frame_bytes)
        view, offset = memoryview(data), position * self._frame_bytes
        while view:
            got = os.preadv(self._file.fileno(), [view], offset)
            view, offset = view[got:], offset + got
        return Frame(index, self._pts_seconds[position], np.frombuffer(data, np.uint8).reshape(self.size, self.size, 3))

    def __len__(self) -> int:
        return len(self._pts_seconds)

    def close(self) -> None:
        """Give the disk space back (a file with a name stays); safe to call more than once."""
        self._file.close()

    def __enter__(self) -> FrameSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def predicted_bytes(capacity_frames: int, size: int) -> int:
    """Scratch bytes that `capacity_frames` frames of (size, size, 3) uint8 take."""
    return capacity_frames * size * size * 3


def _too_little(folder: Path, need: int, free: int) -> DiskSpaceError:
    return DiskSpaceError(
        f"{need / 1e6:.0f} MB of scratch disk in {folder}",
        f"{max(free, 0) / 1e6:.0f} MB",
        "free some, set output.scratch_dir to a larger disk, or prompt on an earlier frame",
    )
