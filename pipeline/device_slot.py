"""A slot of the device for unattended jobs: so many at a time on one machine, given back by the kernel come what may.

A slot is a file lock (flock): it ends with the process that holds it, also by `kill -9`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.settings import Settings

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
FOLDER_VARIABLE = "MASKSIEVE_SLOTS"


def device_slot(settings: Settings) -> Callable[[], AbstractContextManager[None]]:
    """What makes a job wait until it may use the device, for `label_video(slot=...)`.

    Args:    settings: `model.device` and how many `model.slots` it has; jobs that share a device should agree on it.
    Returns: makes context managers: entering one waits for a slot, leaving it gives the slot back.
    Raises:  StorageError if the folder of the locks is not this user's alone.

    A GPU is told by its UUID, so that jobs see the same one whatever CUDA_VISIBLE_DEVICES calls it. The CPU's device is
    the set of cores that the process may use: jobs that are pinned to other cores do not wait for each other.
    """
    folder = _own_folder()
    stem = re.sub(r"[^A-Za-z0-9.-]", "-", _device(settings.model.device))
    files = [folder / f"{stem}.{number}" for number in range(settings.model.slots)]

    @contextmanager
    def slot() -> Iterator[None]:
        file = _wait(files)
        try:
            yield
        finally:
            os.close(file)

    return slot


def _wait(files: list[Path]) -> int:
    """The descriptor of the first file that could be locked. Interrupted by signals, as a sleep is."""
    told = False
    while True:
        for path in files:
            file = _try(path)
            if file is not None:
                return file
        if not told:
            log.info("waiting for one of %d slots of %s", len(files), files[0].stem)
            told = True
        time.sleep(POLL_SECONDS)


def _try(path: Path) -> int | None:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _same(file, path):  # not if the file was removed, and perhaps made anew, between opening and locking it
            os.utime(file)  # what cleans temporary folders by age passes over it
            return file
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(file)
            raise _refused(path, error.strerror or str(error)) from error
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _own_folder() -> Path:
    """The folder of the locks, one per user and machine; nobody else can write there."""
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named) if named else Path(tempfile.gettempdir()) / f"masksieve-slots-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError as error:
        raise _refused(folder, error.strerror or str(error)) from error
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise _refused(folder, "something that others can write to")
    return folder


def _refused(path: Path, got: str) -> StorageError:
    return StorageError(f"a folder of device slots of one's own at {path}", got, f"remove it, or set {FOLDER_VARIABLE}")


def _device(name: str) -> str:
    import torch

    if name != "cpu" and torch.cuda.is_available():
        index = torch.cuda.current_device()
        uuid = getattr(torch.cuda.get_device_properties(index), "uuid", index)
        return f"cuda-{uuid}"
    return "cpu-" + _ranges(sorted(os.sched_getaffinity(0)))


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers, runs of them as first-last: [0, 1, 2, 5] is "0-2.5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ".".join("-".join(str(end) for end in run) for run in runs)
