"""Where a labelling job stood, kept on disk: a run that was killed goes on from there as if it had not been.

A job has one folder, named by its work key. It holds the job's scratch (row and frame spools) and, from the first
checkpoint on, `state`: one line of JSON about it and then what the stages need to go on. A checkpoint is written beside
the one before and renamed over it, so a reader finds the old or the new one. While a job runs it holds a lock on its
folder; a second job of the same key does not get it and works without checkpoints.

On disk: the scratch that the job needs anyway, and at most two states (`state`, and the next one while it is written)
of about 4 MB per object. A job that ends well removes its folder. What killed jobs left is removed after `KEPT_DAYS`
days, and beyond `KEPT_JOBS` folders the oldest first.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from pipeline.errors import DiskSpaceError, StorageError

log = logging.getLogger(__name__)

FORMAT = 1
KEPT_DAYS = 7
KEPT_JOBS = 16
LOCK = "lock"
_HEADER_BYTES = 512


class JobCheckpoint:
    """The folder of one job, locked. Made by `open_checkpoint`; ends with `discard` or `release`.

    Attributes:
        folder: for the job's scratch; it outlives the process if a checkpoint was saved.
    """

    def __init__(self, folder: Path, lock: IO[bytes], made_by: Mapping[str, Any], every_seconds: float) -> None:
        self.folder, self._lock, self._every_seconds = folder, lock, every_seconds
        self._made_by = json.loads(json.dumps(made_by))
        self._path = folder / "state"
        self._due = time.monotonic() + every_seconds

    def save_if_due(self, take_state: Callable[[], Mapping[str, Any]]) -> bool:
        """Save if `every_seconds` have gone by since the last time; returns whether a new checkpoint is in place.

        A disk that is too full for it costs the checkpoint, not the job.
        """
        if time.monotonic() < self._due:
            return False
        try:
            self.save(take_state())
        except StorageError as error:
            log.warning("%s", error)
            return False
        finally:
            self._due = time.monotonic() + self._every_seconds
        return True

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Args:   state: tensors, numbers, text, lists and dicts; the scratch that it speaks of is already on the disk.
        Raises: DiskSpaceError if the disk is full (the checkpoint before stays); StorageError.
        """
        new = self._path.with_suffix(".new")
        try:
            with new.open("w+b") as file:
                file.write(b" " * _HEADER_BYTES)
                torch.save(dict(state), file)
                file.seek(_HEADER_BYTES)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                head = {"format": FORMAT, "sha256": digest, "made_by": _digest(self._made_by)}
                file.seek(0)
                file.write(json.dumps(head).encode().ljust(_HEADER_BYTES - 1) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
            _sync_folder(self.folder)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            new.unlink(missing_ok=True)
            raise _cannot_write(self.folder, error) from error

    def load(self) -> dict[str, Any] | None:
        """The checkpoint that an earlier run of this job saved; None if there is none that can be used."""
        if not self._path.exists():
            return None
        try:
            with self._path.open("rb") as file:
                head = json.loads(file.read(_HEADER_BYTES))
                if head["format"] != FORMAT or head["made_by"] != _digest(self._made_by):
                    raise ValueError("other software, hardware or settings made it")
                if hashlib.file_digest(file, "sha256").hexdigest() != head["sha256"]:
                    raise ValueError("it is damaged")
                file.seek(_HEADER_BYTES)
                state = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError("it is damaged")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the job can start over
            self.reject(error)
            return None
        return state

    def reject(self, reason: object) -> None:
        """Give the checkpoint up: the job starts over."""
        log.warning("starting over instead of going on from the checkpoint in %s: %s", self.folder, reason)
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove everything: the job is done."""
        if not self._lock.closed:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._close()

    def release(self) -> None:
        """Let go of the folder; it stays for the next run if it holds a checkpoint. After `discard` it does nothing."""
        if self._path.exists():
            self._close()
        else:
            self.discard()

    def _close(self) -> None:
        self._lock.close()
        with suppress(OSError):  # other jobs are in there
            self.folder.parent.rmdir()


def open_checkpoint(
    root: Path, work_key: str, made_by: Mapping[str, Any], every_seconds: float = 0.0
) -> JobCheckpoint | None:
    """Take the folder of a job, and sweep what other jobs left behind long ago.

    Args:    root: folder of all jobs' folders, made if missing.
             work_key: of the job, see `pipeline.ledger.work_key`.
             made_by: JSON values that must be the same for the job to go on bit by bit: versions, device, threads.
             every_seconds: time between checkpoints at least.
    Returns: the folder, locked; None if another process has it, or if `root` cannot be written (a warning says so).
    """
    folder = root / work_key[:32]
    try:
        _sweep(root, folder)
        lock = _locked(folder)
    except OSError as error:
        log.warning("no checkpoints, a crash would cost the whole video: %s: %s", root, error.strerror)
        return None
    if lock is None:
        log.warning("another process labels the same video with the same settings; this one makes no checkpoints")
        return None
    os.utime(folder)
    return JobCheckpoint(folder, lock, {"work_key": work_key, **made_by}, every_seconds)


def _locked(folder: Path) -> IO[bytes] | None:
    """An open file that holds the lock of a folder, made if missing; None if another process holds it."""
    for _ in range(100):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = (folder / LOCK).open("ab")
        except FileNotFoundError:  # its owner ended and removed it
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == os.stat(folder / LOCK).st_ino:
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()  # the lock of a folder that was removed in between
    return None


def _sweep(root: Path, mine: Path) -> None:
    """Remove folders that nobody holds and that are old, or too many."""
    if not root.is_dir():
        return
    now, kept = time.time(), 0
    for folder in sorted(root.iterdir(), key=_modified, reverse=True):
        if folder == mine or not (folder / LOCK).is_file():
            continue
        kept += 1
        if kept < KEPT_JOBS and now - _modified(folder) < KEPT_DAYS * 86400:
            continue
        lock = _locked(folder)
        if lock is not None:
            log.info("removing the checkpoint of a job that never came back: %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()


def _modified(folder: Path) -> float:
    """When a job last began or saved in a folder; 0 if it is gone."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(folder: Path, error: Exception) -> StorageError:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    kind = DiskSpaceError if full else StorageError
    step = "free space, set output.scratch_dir, or turn checkpoints off with output.checkpoint_seconds: null"
    return kind("room for a checkpoint", f"{error} at {folder}", step)
