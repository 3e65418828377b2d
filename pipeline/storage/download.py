"""Copies an object to local disk whole and verified or not at all: room first, hashed on the way, breaks mended."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import StorageError
from pipeline.scratch import RESERVE_BYTES, require_room

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
BREAKS = 5
"""So many breaks in a row, each before another megabyte came, end a download."""
BACKOFF_SECONDS = 0.2
READINGS = 2
"""An object that changes while it is read, or fails its checksum, is read so many times in all."""


@dataclass(frozen=True)
class ObjectFacts:
    """What a store says of an object before it is read.

    Args:
        size_bytes: of the whole object.
        tag: names this version of the bytes, for example an ETag; None if the store has none.
        md5, sha256: of the bytes, lower-case hex, where the store gives a real one.
    """

    size_bytes: int
    tag: str | None = None
    md5: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing.

    Args:
        key: relative to the store's root.
        tag: names this version of the bytes: an ETag, or inode and times of a file.
        modified: Unix time in s of the last change that anyone could make, as far as the store knows.
    """

    key: str
    size_bytes: int
    tag: str | None
    modified: float


class BrokenConnection(Exception):
    """The bytes stopped before their end; reading on from there may help."""


class Misread(Exception):
    """What came is not the object that was described; reading it anew may help."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = expected, got


class Readable(Protocol):
    """The part of a store that a download needs."""

    def uri(self, key: str) -> str: ...
    def facts(self, key: str) -> ObjectFacts:
        """Raises the store's own exception if there is no such object."""
        ...

    def stream(self, key: str, offset: int, facts: ObjectFacts, stop: threading.Event) -> Iterator[bytes]:
        """The bytes from an offset on. Raises BrokenConnection, Misread (another version), or the store's own."""
        ...


def stopped(uri: str) -> StorageError:
    """The error of a download that its own process called off."""
    return StorageError(f"the download of {uri} to its end", "a stop before it", "run again")


def download(
    store: Readable,
    key: str,
    target: Path,
    *,
    stop: threading.Event | None = None,
    reserve_bytes: int = RESERVE_BYTES,
) -> str:
    """Copy an object to a local file.

    Args:
        target: written over; removed again if anything goes wrong.
        stop: set by another thread to call the download off.
        reserve_bytes: disk that must stay free beside the object.
    Returns: SHA-256 of the bytes, hex.
    Raises:  DiskSpaceError before a byte is read; StorageError if the object is cut short, changes all the time, does
        not match the store's own checksum, or was called off; the store's own exceptions.
    """
    stop = stop or threading.Event()
    try:
        for reading in range(READINGS):
            facts = store.facts(key)
            require_room(target.parent, facts.size_bytes, store.uri(key), reserve_bytes=reserve_bytes)
            try:
                return _read(store, key, facts, target, stop)
            except Misread as error:
                log.info("reading %s anew: %s", store.uri(key), error)
                if reading + 1 == READINGS:
                    step = "see whether it is being written, or upload it again"
                    raise StorageError(f"{error.expected} at {store.uri(key)}", error.got, step) from error
        raise AssertionError("unreachable")
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _read(store: Readable, key: str, facts: ObjectFacts, target: Path, stop: threading.Event) -> str:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    uri, size = store.uri(key), facts.size_bytes
    received = breaks = 0
    with target.open("wb") as out:
        while True:
            before = received
            try:
                for chunk in store.stream(key, received, facts, stop):
                    if stop.is_set():
                        raise stopped(uri)
                    received += len(chunk)
                    if received > size:
                        raise Misread(f"{size} bytes", "more")
                    sha256.update(chunk)
                    if facts.md5 is not None:
                        md5.update(chunk)
                    out.write(chunk)
                reason = "the store ended its answer"
            except BrokenConnection as error:
                reason = str(error)
            if received == size:
                break
            breaks = 1 if received - before >= CHUNK_BYTES else breaks + 1
            log.info("%s broke at byte %d of %d: %s", uri, received, size, reason)
            if breaks > BREAKS:
                step = "run again, and see whether the store and the network hold"
                raise StorageError(f"{size} bytes of {uri}", f"{received}, {breaks} breaks in a row ({reason})", step)
            if stop.wait(BACKOFF_SECONDS * 2**breaks):
                raise stopped(uri)
    for name, expected, got in (("MD5", facts.md5, md5.hexdigest()), ("SHA-256", facts.sha256, sha256.hexdigest())):
        if expected not in (None, got):
            raise Misread(f"bytes with {name} {expected}", f"{got}, a damaged copy")
    return sha256.hexdigest()
