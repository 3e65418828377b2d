"""A folder as an object store: objects appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from pipeline.errors import DiskSpaceError, StorageError
from pipeline.storage.download import CHUNK_BYTES, Entry, ObjectFacts, Staged
from pipeline.storage.retry import Patience

STAGED = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""Names of what a writer has not published yet."""
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalBackend:
    """Objects as files below a root that is made by the first write.

    A temporary file lies beside its target and begins with a dot, which readers of Parquet folders and `list` skip.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.identity = f"file://{root}"
        self.no_conditions = False

    def patience(self) -> Patience:
        """None: a disk that fails now will fail again."""
        return Patience(0.0, 0.0)

    def uri(self, key: str) -> str:
        """The file's absolute path."""
        return str(self.root / key)

    def path(self, key: str) -> Path | None:
        """The file itself."""
        return self.root / key

    def put(self, key: str, source: Path | bytes) -> None:
        """Temporary file, fsync, rename, fsync of the folder; nothing is left behind on failure."""
        with self._staged(key, source) as (staged, target):
            os.replace(staged, target)
            sync_folder(target.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Link the finished file to its name: of several writers one wins, whatever their number."""
        with self._staged(key, data) as (staged, target):
            try:
                os.link(staged, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                with _folder_lock(target.parent):
                    if target.exists():
                        return False
                    os.replace(staged, target)
            sync_folder(target.parent)
            return True

    def replace(self, key: str, source: Path | bytes, version: str | None) -> bool:
        """Write only if the object is still of this version; writers of one folder take turns."""
        with self._staged(key, source) as (staged, target), _folder_lock(target.parent):
            if self.version(key) != version:
                return False
            os.replace(staged, target)
            sync_folder(target.parent)
            return True

    def refuses_stale(self, key: str) -> bool:
        """Whether an object that is no longer of the version named stays as it is."""
        return not self.replace(key, b"stale", "another version")

    def version(self, key: str) -> str | None:
        """Inode, time and size; None if there is no such object."""
        try:
            stat = (self.root / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _tag(stat)

    def get(self, key: str) -> bytes:
        """The whole file."""
        return (self.root / key).read_bytes()

    def open(self, key: str) -> BinaryIO:
        """Open for reading."""
        return (self.root / key).open("rb")

    def facts(self, key: str) -> ObjectFacts:
        """Its size."""
        return ObjectFacts((self.root / key).stat().st_size)

    def stream(
        self, key: str, offset: int, facts: ObjectFacts, patience: Patience, stop: threading.Event
    ) -> Iterator[bytes]:
        """The bytes from an offset on."""
        with self.open(key) as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def list(self, prefix: str) -> list[str]:
        """Keys below a folder prefix."""
        return [entry.key for entry in self.entries(prefix)]

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Files below a folder prefix. Their time is the later of content's and inode's: copying can't set it back."""
        for folder, below, files in walk(self.root / prefix):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in files:
                path = os.path.join(folder, name)
                with suppress(FileNotFoundError):  # removed meanwhile
                    stat = os.stat(path)
                    if not name.startswith(".") and S_ISREG(stat.st_mode):
                        modified = max(stat.st_mtime, stat.st_ctime)
                        yield Entry(os.path.relpath(path, self.root), stat.st_size, _tag(stat), modified)

    def delete(self, key: str) -> None:
        """Remove an object, and the folders that are empty then; one that is not there is no error."""
        path = self.root / key
        path.unlink(missing_ok=True)
        with suppress(OSError):
            for folder in path.parents[: len(path.relative_to(self.root).parts) - 1]:
                folder.rmdir()

    def staged(self) -> Iterator[Staged]:
        """Temporary files."""
        for folder, _, files in walk(self.root):
            for path in (os.path.join(folder, name) for name in files if STAGED.fullmatch(name)):
                with suppress(FileNotFoundError):  # published meanwhile
                    stat = os.lstat(path)
                    yield Staged(os.path.relpath(path, self.root), stat.st_size, stat.st_mtime)

    def abort(self, key: str, upload: str) -> None:
        """There are no uploads in parts."""

    def keeps_versions(self) -> bool | None:
        """A folder does not; what makes snapshots of its disk cannot be seen from here."""
        return False

    def error(self, error: Exception, doing: str, uri: str) -> StorageError:
        """The typed error of an exception."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskSpaceError(f"room to {doing} {uri}", "a full disk", "free space or choose another output folder")
        if isinstance(error, FileNotFoundError) and doing == "read":
            return StorageError(f"an object at {uri}", "nothing there", "check the path")
        reason = getattr(error, "strerror", None) or str(error)
        return StorageError(f"to {doing} {uri}", reason, "choose a folder that you may read and write")

    @contextmanager
    def _staged(self, key: str, source: Path | bytes) -> Iterator[tuple[Path, Path]]:
        target = self.root / key
        staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        try:
            with _create(staged) as out:
                if isinstance(source, bytes):
                    out.write(source)
                else:
                    with source.open("rb") as file:
                        shutil.copyfileobj(file, out, 2**20)
                out.flush()
                os.fsync(out.fileno())
            yield staged, target
        finally:
            staged.unlink(missing_ok=True)


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):  # removed meanwhile
        raise error


def walk(root: Path, onerror: Callable[[OSError], None] = _raise) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`, past a file system's `lost+found`. A folder that can't be listed is an error, no empty one."""
    for folder, below, files in os.walk(root, onerror=onerror):
        below[:] = [name for name in below if name != "lost+found"]
        yield folder, below, files


def _tag(stat: os.stat_result) -> str:
    """Names the version of a file."""
    return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"


def _create(path: Path) -> BinaryIO:
    """Open a new file, its folders made; again if another process removed the empty folder in between."""
    for attempt in range(100):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
        except FileNotFoundError:
            if attempt == 99:
                raise
    raise AssertionError("unreachable")


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """An advisory lock on the folder itself, so that no lock file is left; it ends with its process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in a folder outlast a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # somebody removed what was in it, and it then
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
