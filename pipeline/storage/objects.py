"""One small interface over a folder, an S3 bucket or any store of fsspec: whole objects, one winner, typed errors."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from pipeline.errors import MasksieveError, StorageError
from pipeline.scratch import RESERVE_BYTES
from pipeline.storage.download import Entry, ObjectFacts, Staged, download
from pipeline.storage.local import LocalBackend
from pipeline.storage.retry import Patience, reason
from pipeline.storage.secrets import checked_url

if TYPE_CHECKING:
    from pipeline.settings import StorageSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Capabilities:
    """What a store was seen to do.

    Args:
        create: it keeps the first of two writers of one object.
        replace: it refuses to replace an object that changed since one looked.
        fresh_listing: a listing shows what was just written.
    """

    create: bool
    replace: bool
    fresh_listing: bool


_KNOWN: dict[str, Capabilities] = {}  # of this process, by the stores' identities
_PROBING = threading.Lock()


class Backend(Protocol):
    """What a kind of store has to do; exceptions are its own and `error` types them."""

    identity: str  # two stores of one identity are one store
    no_conditions: bool  # the store has said that it knows no conditional writes

    def patience(self) -> Patience: ...
    def uri(self, key: str) -> str: ...
    def path(self, key: str) -> Path | None: ...
    def put(self, key: str, source: Path | bytes) -> None: ...
    def put_if_absent(self, key: str, data: bytes) -> bool: ...
    def replace(self, key: str, source: Path | bytes, version: str | None) -> bool: ...
    def refuses_stale(self, key: str) -> bool: ...
    def version(self, key: str) -> str | None: ...
    def get(self, key: str) -> bytes: ...
    def open(self, key: str) -> BinaryIO: ...
    def facts(self, key: str) -> ObjectFacts: ...
    def stream(
        self, key: str, offset: int, facts: ObjectFacts, patience: Patience, stop: threading.Event
    ) -> Iterator[bytes]: ...
    def list(self, prefix: str) -> list[str]: ...
    def entries(self, prefix: str) -> Iterator[Entry]: ...
    def delete(self, key: str) -> None: ...
    def staged(self) -> Iterator[Staged]: ...
    def abort(self, key: str, upload: str) -> None: ...
    def keeps_versions(self) -> bool | None: ...
    def error(self, error: Exception, doing: str, uri: str) -> StorageError: ...


class ObjectStore:
    """Objects below one root. Keys are relative, with forward slashes.

    Every operation waits out passing errors for `storage.retry_seconds`; lasting ones are raised at once.

    Args:
        url: a folder, `file:///folder`, `s3://bucket[/prefix]`, or what else fsspec has a driver for (`gs://`, `az://`,
            `sftp://`, `memory://`, ...), without keys in it.
        settings: budgets, and endpoint, region and keys of an S3 store; those left out come from the AWS_* variables.
    Raises: StorageError for another kind of URL, a missing driver, or keys in the URL.

    Example: `ObjectStore("out").put_atomic("a/b.json", b"{}")`.
    """

    def __init__(self, url: str | Path, settings: StorageSettings | None = None) -> None:
        text = checked_url(str(url))
        scheme, found, rest = text.partition("://")
        self._backend: Backend
        if not found or scheme == "file":
            self._backend = LocalBackend(Path(rest if found else text).expanduser().absolute())
        else:
            self._backend = _remote(scheme, rest, settings)
        self.url = self._backend.uri("").rstrip("/")
        self.identity = self._backend.identity

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def uri(self, key: str) -> str:
        """Where a reader finds the object: an absolute path or an s3:// address."""
        return self._backend.uri(_checked(key))

    def path(self, key: str) -> Path | None:
        """The object as a local file, or None where the store is not on this machine."""
        return self._backend.path(_checked(key))

    def put_atomic(self, key: str, source: Path | bytes) -> None:
        """Write an object, from bytes or a local file; readers see the old one or the new one, never a part."""
        with self._typed("write", key):
            self._backend.put(_checked(key), source)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one. True if this call wrote it."""
        with self._typed("write", key):
            return self._backend.put_if_absent(_checked(key), data)

    def replace(self, key: str, source: Path | bytes, version: str | None) -> bool:
        """Write an object only if it is still of `version` (None: only if absent). True if this call wrote it.

        On a server without conditional writes, and for files over 64 MiB on S3, a rival may slip in between look and
        write; a caller that must know looks again afterwards.
        """
        with self._typed("write", key):
            return self._backend.replace(_checked(key), source, version)

    def version(self, key: str) -> str | None:
        """A token that changes with every write; None if there is no such object."""
        with self._typed("read", key):
            return self._backend.version(_checked(key))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self.version(key) is not None

    def get(self, key: str) -> bytes:
        """The whole object, checked against length and checksum. Raises StorageError if there is none."""
        with self._typed("read", key):
            return self._backend.get(_checked(key))

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """The object for random reads.

        Raises: StorageError if there is none, or the block can make nothing of its bytes.
        """
        with self._typed("read", key), self._backend.open(_checked(key)) as file:
            try:
                yield file
            except Exception as error:
                if isinstance(error, MasksieveError) or getattr(error, "errno", None) is not None:
                    raise  # of the store, or of a disk
                # pyarrow's errors about what a file holds are OSErrors, and would pass for the network's.
                expected, got = f"an undamaged object at {self._backend.uri(key)}", reason(error)
                raise StorageError(expected, got, "restore it, or let it be written anew") from error

    def get_file(
        self,
        key: str,
        target: Path,
        *,
        stop: threading.Event | None = None,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> str:
        """Copy an object to a local file, whole and verified, or leave nothing; see `download`.

        Returns: the SHA-256 of its bytes, computed on the way.
        Raises:  StorageError, DiskSpaceError.
        """
        with self._typed("read", key):
            return download(self._backend, _checked(key), target, stop=stop, reserve_bytes=reserve_bytes)

    def list(self, prefix: str = "") -> list[str]:
        """Keys below a folder prefix such as `commits/`, sorted; hidden (dot) files of a local folder left out."""
        if prefix and not prefix.endswith("/"):
            raise StorageError("a folder prefix that ends in /", repr(prefix), f"ask for {prefix + '/'!r}")
        with self._typed("list", prefix):
            return sorted(self._backend.list(_checked(prefix) if prefix else ""))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """The objects below a folder prefix with size, version and time, in no order, as one listing gives them."""
        if prefix and not prefix.endswith("/"):
            raise StorageError("a folder prefix that ends in /", repr(prefix), f"ask for {prefix + '/'!r}")
        with self._typed("list", prefix):
            yield from self._backend.entries(_checked(prefix) if prefix else "")

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        with self._typed("delete", key):
            self._backend.delete(_checked(key))

    def capabilities(self) -> Capabilities:
        """What the store can do, tried once per process with an object that is removed again.

        Raises: StorageError if the store can't be written at all, so the first call is also the check of an output.
        """
        with _PROBING:
            if self.identity not in _KNOWN:
                _KNOWN[self.identity] = found = self._probe()
                log.info("%s: %s", self.url, found)
                if not found.fresh_listing:
                    log.warning(
                        "listings of %s lag behind writes: work may be done twice, never counted twice", self.url
                    )
            return _KNOWN[self.identity]

    def probe_conditional_put(self) -> bool:
        """Whether the store keeps the first of two writers. Raises StorageError if it can't be written at all."""
        return self.capabilities().create

    def staged(self) -> Iterator[Staged]:
        """What writers have not published: temporary files of a folder, uploads in parts of a bucket, in no order."""
        with self._typed("list", ""):
            yield from self._backend.staged()

    def abort(self, key: str, upload: str) -> None:
        """Let go of an upload in parts; one that is gone is no error."""
        with self._typed("delete", key):
            self._backend.abort(_checked(key), upload)

    def keeps_versions(self) -> bool | None:
        """Whether what is deleted or replaced can be had again from the store; None if it does not say."""
        return self._backend.keeps_versions()

    @property
    def known_conditional(self) -> bool:
        """Whether this process has seen that the store keeps the first of two writers; asks nothing of it."""
        return self.identity in _KNOWN and _KNOWN[self.identity].create

    def patience(self) -> Patience:
        """The budget of an operation on this store."""
        return self._backend.patience()

    def _probe(self) -> Capabilities:
        folder = f"probes/{uuid.uuid4().hex}/"
        key = f"{folder}object"
        put = self._backend.put_if_absent
        with self._typed("write", key, at=self.url):  # the probe's own name would tell a person nothing
            try:
                create = put(key, b"first") and not put(key, b"second") and self._backend.get(key) == b"first"
                replace = self._backend.refuses_stale(key)
                listed = any(entry.key == key for entry in self._backend.entries(folder))
            finally:
                with suppress(Exception):
                    self._backend.delete(key)
        honest = not self._backend.no_conditions  # the look before a write is no condition
        return Capabilities(create and honest, replace and honest, listed)

    @contextmanager
    def _typed(self, doing: str, key: str, at: str | None = None) -> Iterator[None]:
        """Any other error of the block as a typed one that names the object, or what `at` says."""
        try:
            yield
        except MasksieveError:
            raise
        except Exception as error:
            raise self._backend.error(error, doing, at or self._backend.uri(key)) from error


def _remote(scheme: str, rest: str, settings: StorageSettings | None) -> Backend:
    """The backend of a store that is not a folder."""
    if settings is None:
        from pipeline.settings import StorageSettings

        settings = StorageSettings()
    place = rest.strip("/")
    if any(part in (".", "..") for part in place.split("/")) or not place.isprintable():
        raise StorageError("an address without dot parts", repr(f"{scheme}://{place}"), "write the prefix itself")
    if scheme == "s3" and place:
        from pipeline.storage.s3 import S3Backend

        bucket, _, prefix = place.partition("/")
        return S3Backend(bucket, prefix, settings)
    if scheme in ("s3", "s3a", "s3n"):
        raise StorageError("s3://bucket/prefix", repr(f"{scheme}://{place}"), "name the bucket")
    from pipeline.storage.generic import FsspecBackend

    return FsspecBackend(f"{scheme}://{rest}", settings)


def _checked(key: str) -> str:
    """A key that can't leave the root, and that is one line of a log."""
    parts = key.rstrip("/").split("/")
    bad = any(part in ("", ".", "..") for part in parts) or "\\" in key or any(ord(one) < 32 for one in key)
    if not key or bad or "\x7f" in key:
        step = "rename the object: no empty or dot parts, backslashes or control characters"
        raise StorageError("a relative key such as labels/x.parquet", repr(key), step)
    return key
