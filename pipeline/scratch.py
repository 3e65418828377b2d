"""Scratch disk: folders that end with their block or are swept after a crash, and a check of the room beforehand."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DiskSpaceError, StorageError

if TYPE_CHECKING:
    from pipeline.settings import Settings

log = logging.getLogger(__name__)

RESERVE_BYTES = 64 << 20
"""What always stays free."""
PREFIX = "masksieve-"
OWNER = ".masksieve-owner"
"""Locked by the owner of a scratch folder for as long as its process lives; the kernel lets go after `kill -9` too."""


@contextmanager
def scratch_folder(settings: Settings) -> Iterator[str]:
    """A new folder where `output.scratch_dir` says.

    Raises: StorageError if it cannot be made.
    """
    folder = settings.output.scratch_dir
    try:
        if folder is not None:
            folder.mkdir(exist_ok=True)  # never its parents: they would be a typing mistake come true
        path, owner = _owned(folder)
    except OSError as error:
        raise StorageError(
            "a writable scratch folder", f"{folder}: {error.strerror}", "set output.scratch_dir"
        ) from error
    try:
        yield str(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(owner)


def sweep_scratch(settings: Settings) -> int:
    """Remove scratch folders whose owners are gone, and nothing else. Returns how many."""
    root = settings.output.scratch_dir or Path(tempfile.gettempdir())
    swept = 0
    for path in root.glob(f"{PREFIX}*"):
        try:
            if path.is_symlink() or path.stat().st_uid != os.geteuid():
                continue
            owner = os.open(path / OWNER, os.O_RDWR | os.O_NOFOLLOW)  # not there: not one of ours
        except OSError:
            continue
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # its owner lives, or this disk knows no locks
        else:
            log.info("removing %s, whose owner is gone", path)
            shutil.rmtree(path, ignore_errors=True)
            swept += not path.exists()
        finally:
            os.close(owner)
    return swept


def _owned(folder: Path | None) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock; under its name only once it is locked."""
    made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=folder))
    owner = os.open(made / OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # a disk without locks, where nothing is swept either
            log.debug("no lock on %s: %s", made, error)
        path = made.with_name(made.name.removeprefix("."))
        made.rename(path)
    except BaseException:
        os.close(owner)
        shutil.rmtree(made, ignore_errors=True)
        raise
    return path, owner


def require_room(folder: Path, need_bytes: int, what: str, *, reserve_bytes: int = RESERVE_BYTES) -> None:
    """Check that so many bytes fit on a disk and a reserve stays free.

    Raises: DiskSpaceError with both figures.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < need_bytes + reserve_bytes:
        raise DiskSpaceError(
            f"{need_bytes / 1e6:.1f} MB of scratch disk for {what}, and {reserve_bytes / 1e6:.0f} MB in reserve",
            f"{free_bytes / 1e6:.1f} MB free at {folder}",
            "free space or set output.scratch_dir",
        )
