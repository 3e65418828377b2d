"""Any store that fsspec has a driver for: objects appear whole, requests are tried again, no conditional writes."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pipeline.errors import DiskSpaceError, StorageError, UnavailableError
from pipeline.storage.download import CHUNK_BYTES, Entry, ObjectFacts, Staged, stopped
from pipeline.storage.local import STAGED
from pipeline.storage.ranged import ranged
from pipeline.storage.retry import BrokenConnection, Misread, Patience, passing, reason, within

if TYPE_CHECKING:
    from pipeline.settings import StorageSettings

ATOMIC = frozenset(("gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "ocilake", "oss", "tos", "obs", "cos"))
"""Object stores, where a PUT is seen whole or not at all."""
AZURE = frozenset(("az", "abfs", "abfss"))  # whose driver must be told that it may overwrite
SLOWEST_BYTES_PER_SECOND = 2**18
"""A transfer may take so much longer than a stall before it is given up: these drivers tell of no progress."""
TAGS = ("ETag", "etag", "e_tag", "md5Hash", "generation", "content_md5", "sha256", "checksum", "ino")
TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "time_modified", "timeModified", "created")

T = TypeVar("T")


class FsspecBackend:
    """Objects below a URL such as `gs://bucket/prefix`, `az://...`, `sftp://host/folder` or `memory://name`.

    Args:
        url: without keys; the driver finds them where it always does.
    Raises: StorageError if fsspec knows no such store, or its driver is not installed.
    """

    def __init__(self, url: str, settings: StorageSettings) -> None:
        import fsspec

        self._url, self._settings = url.rstrip("/"), settings
        self._scheme = url.partition("://")[0]
        try:
            self._kind = fsspec.get_filesystem_class(self._scheme)
            self._root = str(self._kind._strip_protocol(url)).rstrip("/")
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or getattr(error, "name", None) or "its driver"
            got = " ".join(str(error).split())
            raise StorageError(f"a driver for {self._scheme}://", got, f"pip install {missing}") from error
        except ValueError as error:
            expected = "a folder, s3://bucket/prefix, or another address that fsspec knows"
            raise StorageError(expected, f"{self._scheme}://", "write the output as one of these") from error
        self.identity = self._url
        self.no_conditions = True

    def patience(self) -> Patience:
        """The budget of a new operation."""
        return Patience(self._settings.retry_seconds, self._settings.stall_seconds)

    def uri(self, key: str) -> str:
        """The URL of an object."""
        return f"{self._url}/{key}"

    def path(self, key: str) -> Path | None:
        """Nothing: the object is not a file here, as far as one knows."""
        return None

    def put(self, key: str, source: Path | bytes) -> None:
        """Written directly where a store shows objects whole, else beside its place and moved there; then measured."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size

        def write() -> None:
            target = self._at(key)
            if self._scheme in ATOMIC:
                self._write(target, source)
            else:
                self._write_aside(target, source)
            found = self._fs.info(target).get("size")
            if found != size:
                raise BrokenConnection(f"{found} of {size} bytes are there after the upload")

        self._call(write, size)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """A look and a write: a rival may slip in between, so `ObjectStore.capabilities` says that there is no such."""
        if self.version(key) is not None:
            return False
        self.put(key, data)
        return True

    def replace(self, key: str, source: Path | bytes, version: str | None) -> bool:
        """A look and a write."""
        if self.version(key) != version:
            return False
        self.put(key, source)
        return True

    def refuses_stale(self, key: str) -> bool:
        """It does not."""
        return False

    def version(self, key: str) -> str | None:
        """What the store says of the object that changes with a write; None if there is no such object."""
        try:
            return _tag(self._info(key))
        except FileNotFoundError:
            return None

    def get(self, key: str) -> bytes:
        """The whole object, of the length that the store says."""

        def read() -> bytes:
            size = int(self._info_once(key)["size"])
            data: bytes = self._fs.cat_file(self._at(key))
            if len(data) != size:
                raise BrokenConnection(f"{len(data)} of {size} bytes came")
            return data

        return self._call(read, self.facts(key).size_bytes)

    def open(self, key: str) -> BinaryIO:
        """Open for random reads."""

        def fetch(start: int, end: int) -> bytes:
            try:
                return self._range(key, start, end)
            except Exception as error:
                raise self.error(error, "read", self.uri(key)) from error

        return ranged(self.facts(key).size_bytes, fetch)

    def facts(self, key: str) -> ObjectFacts:
        """Size and version."""
        info = self._info(key)
        return ObjectFacts(int(info["size"]), _tag(info))

    def stream(
        self, key: str, offset: int, facts: ObjectFacts, patience: Patience, stop: threading.Event
    ) -> Iterator[bytes]:
        """The bytes from an offset on, a range at a time."""
        while offset < facts.size_bytes:
            if stop.is_set():
                raise stopped(self.uri(key))
            chunk = self._range(key, offset, min(offset + CHUNK_BYTES, facts.size_bytes))
            yield chunk
            offset += len(chunk)
        if self.version(key) != facts.tag:
            raise Misread(f"the version {facts.tag}", "another one")

    def list(self, prefix: str) -> list[str]:
        """Keys below a folder prefix."""
        return [entry.key for entry in self.entries(prefix)]

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Objects below a folder prefix, from one listing; hidden ones left out."""
        for key, info in self._find(prefix):
            if not any(part.startswith(".") for part in key[len(prefix) :].split("/")):
                yield Entry(key, int(info.get("size") or 0), _tag(info), _modified(info))

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        with suppress(FileNotFoundError):
            self._call(lambda: self._fs.rm(self._at(key)))

    def staged(self) -> Iterator[Staged]:
        """Temporary objects of stores that need them."""
        for key, info in () if self._scheme in ATOMIC else self._find(""):
            if STAGED.fullmatch(PurePosixPath(key).name):
                yield Staged(key, int(info.get("size") or 0), _modified(info))

    def abort(self, key: str, upload: str) -> None:
        """Uploads in parts are the drivers' business."""

    def keeps_versions(self) -> bool | None:
        """A driver of fsspec does not say."""
        return None

    def error(self, error: Exception, doing: str, uri: str) -> StorageError:
        """The typed error of an exception."""
        if isinstance(error, Misread):
            return StorageError(f"{error.expected} at {uri}", error.got, "see whether it is being written")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskSpaceError(f"room to {doing} {uri}", "a full disk", "free space there or on this machine")
        if passing(error):
            expected = f"to {doing} {uri} within {self._settings.retry_seconds:g} s"
            return UnavailableError(expected, reason(error), "check the address and the network")
        if isinstance(error, FileNotFoundError):
            return StorageError(f"an object to {doing} at {uri}", "nothing there", "check the path")
        return StorageError(f"to {doing} {uri}", reason(error), "check the address, the keys and the store")

    @cached_property
    def _fs(self) -> Any:
        """The driver, connected when it is first needed."""
        return self._kind(**self._kind._get_kwargs_from_urls(self._url), skip_instance_cache=True)

    def _at(self, key: str) -> str:
        return f"{self._root}/{key}" if key else self._root

    def _call(self, work: Callable[[], T], size_bytes: int = 0) -> T:
        patience = self.patience()
        more = size_bytes / SLOWEST_BYTES_PER_SECOND
        return patience.insist(lambda: within(patience.stall_seconds() + more, work))

    def _info(self, key: str) -> dict[str, Any]:
        return self._call(lambda: self._info_once(key))

    def _info_once(self, key: str) -> dict[str, Any]:
        self._fs.invalidate_cache()
        info: dict[str, Any] = self._fs.info(self._at(key))
        if info.get("type") == "directory":
            raise FileNotFoundError(self._at(key))
        return info

    def _find(self, prefix: str) -> Iterable[tuple[str, dict[str, Any]]]:
        """Keys below a prefix with what the store says of them."""
        folder = self._at(prefix).rstrip("/")

        def find() -> dict[str, dict[str, Any]]:
            self._fs.invalidate_cache()
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(folder, detail=True)
            except FileNotFoundError:
                return {}
            return found

        root = f"{self._root}/"
        found = self._call(find, 2**27)  # a long listing is many requests
        return [(path[len(root) :], info) for path, info in found.items() if path.startswith(f"{folder}/")]

    def _range(self, key: str, start: int, end: int) -> bytes:
        def read() -> bytes:
            data: bytes = self._fs.cat_file(self._at(key), start=start, end=end)
            if len(data) != end - start:
                raise BrokenConnection(f"{len(data)} of {end - start} bytes came")
            return data

        return self._call(read, end - start)

    def _write(self, target: str, source: Path | bytes) -> None:
        options = {"overwrite": True} if self._scheme in AZURE else {}
        if isinstance(source, bytes):
            self._fs.pipe_file(target, source, **options)
        else:
            self._fs.put_file(os.fspath(source), target, **options)

    def _write_aside(self, target: str, source: Path | bytes) -> None:
        folder, _, name = target.rpartition("/")
        staged = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
        try:
            self._fs.makedirs(folder, exist_ok=True)
            self._write(staged, source)
            try:
                self._fs.mv(staged, target)
            except FileExistsError:  # a store whose move does not replace
                self._fs.rm(target)
                self._fs.mv(staged, target)
        except BaseException:
            with suppress(Exception):
                self._fs.rm(staged)
            raise


def _tag(info: dict[str, Any]) -> str:
    """Names the version of an object by what a store says of it."""
    facts = [info.get("size"), _modified(info), *(info.get(name) for name in TAGS)]
    return "-".join(str(fact) for fact in facts if fact is not None)


def _modified(info: dict[str, Any]) -> float:
    """When an object was changed, Unix time in s; 0 where the store does not say."""
    for name in TIMES:
        found = info.get(name)
        if isinstance(found, str):
            with suppress(ValueError):
                found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if isinstance(found, int | float):
            return float(found)
    return 0.0
