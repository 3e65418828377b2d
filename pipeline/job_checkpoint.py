"""Where a labelling job stood, kept on disk: a run that was killed goes on from there as if it had not been.

A job has one folder, named by its work key and by what it runs on, so that machines which share a scratch disk leave
each other's checkpoints alone. It holds the job's scratch (row and frame spools) and, from the first checkpoint on,
`state`: one line of JSON about it and then what the stages need to go on. A checkpoint is written beside the one before
and renamed over it, so a reader finds the old or the new one. While a job runs it holds a lock on its folder; a second
job of the same name does not get it and works without checkpoints. A folder that goes is renamed first: nobody finds
half of one under a job's name.

On disk: the scratch that the job needs anyway, and at most two states (`state`, and the next one while it is written).
A job that ends well removes its folder. The next job sweeps what killed ones left: at once where no checkpoint was
reached, else after `KEPT_DAYS` days, and beyond `KEPT_JOBS` folders the oldest first.
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
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from pipeline.errors import DiskSpaceError, StorageError
from pipeline.storage.local import sync_folder

log = logging.getLogger(__name__)

FORMAT = 2
KEPT_DAYS = 7
KEPT_JOBS = 16
LOCK, STATE = "lock", "state"
GOING = "going-"  # what the name of a folder starts with that is being removed
_HEADER_BYTES = 512


class JobCheckpoint:
    """The folder of one job, locked. Made by `open_checkpoint`; ends with `discard` or `release`.

    Attributes:
        folder: for the job's scratch; it outlives the process if a checkpoint was saved.
    """

    def __init__(self, folder: Path, lock: IO[bytes], made_by: Mapping[str, Any], every_seconds: float) -> None:
        self.folder, self._lock, self._every_seconds = folder, lock, every_seconds
        self._made_by = json.loads(json.dumps(made_by))
        self._path = folder / STATE
        lock.truncate(0)
        lock.write(str(made_by.get("video_id", "")).encode())  # for `discard_checkpoints_of`
        lock.flush()
        self._due = time.monotonic() + every_seconds

    def save_if_due(self, take_state: Callable[[], Mapping[str, Any]]) -> bool:
        """Save if `every_seconds` have gone by since the last time; returns whether a new checkpoint is in place.

        A disk that is too full for it costs the checkpoint, not the job; what `take_state` raises is the job's.
        """
        if time.monotonic() < self._due:
            return False
        state = take_state()
        try:
            self.save(state)
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
            sync_folder(self.folder)
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
            _remove(self.folder)
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


def discard_checkpoint(root: Path, work_key: str, made_by: Mapping[str, Any]) -> None:
    """Remove what a run of this job left that was killed between its commit and its end."""
    folder = _folder(root, work_key, made_by)
    with suppress(OSError):
        lock = _locked(folder) if folder.is_dir() else None
        if lock is not None:
            JobCheckpoint(folder, lock, {}, 0.0).discard()


def discard_checkpoints_of(root: Path, video_id: str) -> tuple[int, list[Path]]:
    """Remove what jobs saved of one video: those whose `made_by` says `video_id`.

    Returns: how many went, and the folders of jobs that run now.
    """
    gone, held = 0, []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            if (folder / LOCK).read_text() != video_id:
                continue
            lock = _locked(folder)
        except OSError:  # its owner ended and removed it
            continue
        if lock is None:
            held.append(folder)
            continue
        _remove(folder)
        lock.close()
        gone += 1
    return gone, held


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
    folder = _folder(root, work_key, made_by)
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


def _folder(root: Path, work_key: str, made_by: Mapping[str, Any]) -> Path:
    return root / f"{work_key[:32]}-{_digest(made_by)[:16]}"


def _locked(folder: Path, tries: int = 20) -> IO[bytes] | None:
    """An open file that holds the lock of a folder, made if missing; None if another process holds it."""
    for _ in range(tries):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("ab")
        except FileNotFoundError:  # its owner ended and removed it
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == os.stat(folder / LOCK).st_ino:
                return file
        except BlockingIOError:
            time.sleep(0.01)  # it may be a sweep, which soon lets go
        except FileNotFoundError:
            pass  # the lock of a folder that was removed in between
        file.close()
    return None


def _remove(folder: Path) -> None:
    """Remove a folder of which one holds the lock."""
    going = folder.with_name(f"{GOING}{uuid.uuid4().hex}")
    try:
        folder.rename(going)
    except OSError as error:
        log.warning("cannot remove %s: %s", folder, error.strerror)
    shutil.rmtree(going, ignore_errors=True)


def _sweep(root: Path, mine: Path) -> None:
    """Remove folders that nobody holds and from which nobody can go on, or that are old, or too many."""
    if not root.is_dir():
        return
    now, kept = time.time(), 0
    for folder in sorted(root.iterdir(), key=_modified, reverse=True):
        if folder.name.startswith(GOING):  # whoever removed it was killed
            shutil.rmtree(folder, ignore_errors=True)
        if folder == mine or not (folder / LOCK).is_file():
            continue
        useful = (folder / STATE).exists()
        kept += useful
        if useful and kept < KEPT_JOBS and now - _modified(folder) < KEPT_DAYS * 86400:
            continue
        lock = _locked(folder, tries=1)
        if lock is not None:
            if useful or not (folder / STATE).exists():  # else its job saved one and ended just now
                log.info("removing what a job left that never came back: %s", folder)
                _remove(folder)
            lock.close()


def _modified(folder: Path) -> float:
    """When a job last began or saved in a folder; 0 if it is gone."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _cannot_write(folder: Path, error: Exception) -> StorageError:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    kind = DiskSpaceError if full else StorageError
    step = "free space, set output.scratch_dir, or turn checkpoints off with output.checkpoint_seconds: null"
    return kind("room for a checkpoint", f"{error} at {folder}", step)
