"""Copies an object to local disk whole and verified or not at all: room first, hashed on the way, breaks mended."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import StorageError, UnavailableError
from pipeline.scratch import RESERVE_BYTES, require_room
from pipeline.storage.retry import BrokenConnection, Misread, Patience

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
PROGRESS_BYTES = 1 << 16
"""So much more than before a break is progress, and the time budget begins anew."""
READINGS = 3
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


@dataclass(frozen=True, slots=True)
class Staged:
    """What a writer has not published: of a living one that is under way, of a dead one it is litter.

    Args:
        key: of a temporary object, or of the object to come.
        size_bytes: 0 where the store does not say.
        modified: Unix time in s.
        upload: names an upload in parts, which is to be aborted; None for an object, which is to be deleted.
    """

    key: str
    size_bytes: int
    modified: float
    upload: str | None = None


class Readable(Protocol):
    """The part of a store that a download needs."""

    def uri(self, key: str) -> str: ...
    def patience(self) -> Patience: ...
    def facts(self, key: str) -> ObjectFacts:
        """Raises the store's own exception if there is no such object."""
        ...

    def stream(
        self, key: str, offset: int, facts: ObjectFacts, patience: Patience, stop: threading.Event
    ) -> Iterator[bytes]:
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
        not match the store's own checksum, or was called off; UnavailableError if no `PROGRESS_BYTES` came within the
        store's budget; the store's own exceptions.
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
    received = mark = 0
    patience = store.patience()
    with target.open("wb") as out:
        while True:
            try:
                for chunk in store.stream(key, received, facts, patience, stop):
                    if stop.is_set():
                        raise stopped(uri)
                    received += len(chunk)
                    if received > size:
                        raise Misread(f"{size} bytes", "more")
                    sha256.update(chunk)
                    if facts.md5 is not None:
                        md5.update(chunk)
                    out.write(chunk)
                broken = BrokenConnection("the store ended its answer")
            except BrokenConnection as error:
                broken = error
            if received == size:
                break
            if received - mark >= PROGRESS_BYTES:
                mark = received
                patience.renew()
            log.info("%s broke at byte %d of %d: %s", uri, received, size, broken)
            try:
                patience.pause(broken, stop)
            except BrokenConnection as error:
                got = f"{received}, {patience.breaks} breaks in a row ({error})"
                step = "run again, and see whether the store and the network hold"
                raise UnavailableError(f"{size} bytes of {uri}", got, step) from error
            if stop.is_set():
                raise stopped(uri)
    for name, expected, got in (("MD5", facts.md5, md5.hexdigest()), ("SHA-256", facts.sha256, sha256.hexdigest())):
        if expected not in (None, got):
            raise Misread(f"bytes with {name} {expected}", f"{got}, a damaged copy")
    return sha256.hexdigest()
