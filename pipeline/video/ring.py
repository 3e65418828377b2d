"""A ring of full-size frames in anonymous shared memory: no name, so nothing can be left behind."""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
from numpy.typing import NDArray

MAX_RING_BYTES = 256 << 20


def ring_slots(wanted: int, height: int, width: int) -> int:
    """Number of slots: `wanted`, fewer for huge frames (256 MiB in all), never under two."""
    return max(2, min(wanted, MAX_RING_BYTES // (height * width * 3)))


def open_shared_file(size_bytes: int) -> int:
    """File descriptor of `size_bytes` of shared memory without a name (an unlinked file where there is no memfd)."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("masksieve-frames")
    else:  # pragma: no cover - macOS
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size_bytes)
    return fd


class FrameRing:
    """`slots` frames of (height, width, 3) uint8 over one shared file descriptor, which stays the caller's to close."""

    def __init__(self, fd: int, slots: int, height: int, width: int) -> None:
        self.slots = slots
        self._shape = (height, width, 3)
        self._slot_bytes = height * width * 3
        self._map = mmap.mmap(fd, slots * self._slot_bytes)

    def view(self, slot: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 view of one slot; drop it before `close`."""
        offset = slot * self._slot_bytes
        return np.frombuffer(self._map, np.uint8, self._slot_bytes, offset).reshape(self._shape)

    def close(self) -> None:
        self._map.close()
