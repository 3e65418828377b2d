"""Scratch disk: a folder that ends with its block, and a check of the room before it is used."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DiskSpaceError, StorageError

if TYPE_CHECKING:
    from pipeline.settings import Settings

RESERVE_BYTES = 64 << 20
"""What always stays free."""


def scratch_folder(settings: Settings) -> tempfile.TemporaryDirectory[str]:
    """A new folder where `output.scratch_dir` says; a context manager.

    Raises: StorageError if it cannot be made.
    """
    folder = settings.output.scratch_dir
    try:
        if folder is not None:
            folder.mkdir(exist_ok=True)  # never its parents: they would be a typing mistake come true
        return tempfile.TemporaryDirectory(prefix="masksieve-", dir=folder)
    except OSError as error:
        raise StorageError(
            "a writable scratch folder", f"{folder}: {error.strerror}", "set output.scratch_dir"
        ) from error


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
