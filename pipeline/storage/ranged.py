"""A remote object as a file: random reads as requests for ranges, each of them checked and tried again by its store."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast

READ_AHEAD_BYTES = 2**20


class _Ranges(io.RawIOBase):
    def __init__(self, size_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch, self._at = size_bytes, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"a place before the beginning: {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._fetch(self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def ranged(size_bytes: int, fetch: Callable[[int, int], bytes]) -> BinaryIO:
    """A file for reading, with little read-ahead.

    Args:
        fetch: gives the bytes of [start, end), all of them, or raises a typed error: what else is raised while the
            file is read is the reader's (see `ObjectStore.open`).
    """
    return cast(BinaryIO, io.BufferedReader(_Ranges(size_bytes, fetch), READ_AHEAD_BYTES))
