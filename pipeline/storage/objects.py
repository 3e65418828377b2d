"""One small interface over a local folder and an S3 bucket: whole objects, first-writer-wins, typed errors."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from pipeline.errors import MasksieveError, StorageError
from pipeline.scratch import RESERVE_BYTES
from pipeline.storage.download import Entry, ObjectFacts, download
from pipeline.storage.local import LocalBackend

if TYPE_CHECKING:
    from pipeline.settings import StorageSettings


class Backend(Protocol):
    """What a kind of store has to do; exceptions are its own and `error` types them."""

    identity: str  # two stores of one identity are one store
    no_conditions: bool  # the store has said that it knows no conditional writes

    def uri(self, key: str) -> str: ...
    def path(self, key: str) -> Path | None: ...
    def put(self, key: str, source: Path | bytes) -> None: ...
    def put_if_absent(self, key: str, data: bytes) -> bool: ...
    def replace(self, key: str, source: Path | bytes, version: str | None) -> bool: ...
    def version(self, key: str) -> str | None: ...
    def open(self, key: str) -> BinaryIO: ...
    def facts(self, key: str) -> ObjectFacts: ...
    def stream(self, key: str, offset: int, facts: ObjectFacts, stop: threading.Event) -> Iterator[bytes]: ...
    def list(self, prefix: str) -> list[str]: ...
    def entries(self, prefix: str) -> Iterator[Entry]: ...
    def delete(self, key: str) -> None: ...
    def error(self, error: Exception, doing: str, uri: str) -> StorageError: ...


class ObjectStore:
    """Objects below one root. Keys are relative, with forward slashes.

    Args:
        url: a folder, `file:///folder`, or `s3://bucket[/prefix]`.
        settings: endpoint, region and keys of an S3 store; what is left out comes from the AWS_* variables.
    Raises: StorageError for another kind of URL.

    Example: `ObjectStore("out").put_atomic("a/b.json", b"{}")`.
    """

    def __init__(self, url: str | Path, settings: StorageSettings | None = None) -> None:
        text = str(url)
        scheme, found, rest = text.partition("://")
        self._backend: Backend
        if not found or scheme == "file":
            self._backend = LocalBackend(Path(rest if found else text).expanduser().absolute())
        elif scheme == "s3" and rest.strip("/"):
            from pipeline.storage.s3 import S3Backend

            bucket, _, prefix = rest.strip("/").partition("/")
            self._backend = S3Backend(bucket, prefix, settings)
        else:
            raise StorageError("a folder or s3://bucket/prefix", repr(text), "write the output as one of these")
        self.url = self._backend.uri("").rstrip("/")
        self.identity = self._backend.identity
        self._conditional: bool | None = None

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
        """The whole object. Raises StorageError if there is none."""
        with self._typed("read", key), self._backend.open(_checked(key)) as file:
            return file.read()

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """The object for random reads. Raises StorageError if there is none."""
        with self._typed("read", key), self._backend.open(_checked(key)) as file:
            yield file

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

    def probe_conditional_put(self) -> bool:
        """Whether the store keeps the first of two writers, tried once with an object that is removed again.

        Raises: StorageError if the store can't be written at all, so this is also the check of an output.
        """
        if self._conditional is None:
            key = f"probes/{uuid.uuid4().hex}"
            put = self._backend.put_if_absent
            try:
                with self._typed("write", key, at=self.url):  # the probe's own name would tell a person nothing
                    first, second = put(key, b"first"), put(key, b"second")
                    kept = first and not second and self.get(key) == b"first"
                self._conditional = kept and not self._backend.no_conditions
            finally:
                if self._conditional is not None:
                    self.delete(key)
        return self._conditional

    @contextmanager
    def _typed(self, doing: str, key: str, at: str | None = None) -> Iterator[None]:
        """Any other error of the block as a typed one that names the object, or what `at` says."""
        try:
            yield
        except MasksieveError:
            raise
        except Exception as error:
            raise self._backend.error(error, doing, at or self._backend.uri(key)) from error


def _checked(key: str) -> str:
    """A key that can't leave the root."""
    parts = key.rstrip("/").split("/")
    if not key or any(part in ("", ".", "..") for part in parts) or "\\" in key or "\0" in key:
        raise StorageError("a relative key such as labels/x.parquet", repr(key), "leave out empty and dot parts")
    return key
