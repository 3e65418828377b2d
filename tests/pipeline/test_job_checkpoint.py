"""A checkpoint is whole or not there, belongs to one job and one process, and does not stay for ever."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import job_checkpoint
from pipeline.errors import DiskSpaceError
from pipeline.job_checkpoint import JobCheckpoint, discard_checkpoint, open_checkpoint

KEY, OTHER = "ab" * 32, "cd" * 32
STATE = {"tensor": torch.arange(1000.0), "next": 7, "name": "forward", "marks": [{"ends": [1, 2], "last": None}]}


def job(root: Path, key: str = KEY, **made_by: Any) -> JobCheckpoint:
    checkpoint = open_checkpoint(root, key, made_by)
    assert checkpoint is not None
    return checkpoint


def same(one: Any, other: Any) -> bool:
    return torch.equal(one.pop("tensor"), other["tensor"]) and one == {k: v for k, v in other.items() if k != "tensor"}


def test_the_last_save_comes_back(tmp_path: Path) -> None:
    first = job(tmp_path, torch="1")
    assert first.load() is None
    first.save({"old": 1})
    first.save(STATE)
    first.release()
    state = job(tmp_path, torch="1").load()
    assert same(state, STATE)


def test_a_job_that_saved_nothing_or_is_done_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "jobs"
    job(root).release()
    assert not root.exists()
    done = job(root)
    (done.folder / "rows").write_bytes(b"scratch")
    done.save(STATE)
    done.discard()
    assert not root.exists()


@pytest.mark.parametrize("made_by", [{"torch": "2"}, {}, {"torch": "1", "device": "cuda"}])
def test_what_other_software_made_is_not_used(
    tmp_path: Path, made_by: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    first = job(tmp_path, torch="1")
    first.save(STATE)
    first.release()
    other = job(tmp_path, **made_by)
    assert other.load() is None
    other.save({"n": 1})
    other.discard()
    again = job(tmp_path, torch="1")
    assert same(again.load(), STATE)  # two machines that share the disk leave each other's alone
    again.release()
    again.folder.rename(other.folder)
    with caplog.at_level(logging.WARNING):
        assert job(tmp_path, **made_by).load() is None
    assert "starting over" in caplog.text
    assert "other software" in caplog.text


def test_a_checkpoint_under_the_name_of_another_job_is_not_used(tmp_path: Path) -> None:
    first = job(tmp_path)
    first.save(STATE)
    first.release()
    second = job(tmp_path, OTHER)
    second.release()
    first.folder.rename(second.folder)
    assert job(tmp_path, OTHER).load() is None


@pytest.mark.parametrize("at", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("how", ["cut", "flip"])
def test_a_damaged_checkpoint_is_not_used(tmp_path: Path, at: float, how: str) -> None:
    first = job(tmp_path)
    first.save(STATE)
    first.release()
    path = first.folder / "state"
    data = bytearray(path.read_bytes())
    place = min(int(at * len(data)), len(data) - 1)
    if how == "flip":
        data[place] ^= 0x10
    path.write_bytes(data[:place] if how == "cut" else data)
    again = job(tmp_path)
    state = again.load()
    assert state is None or (how == "flip" and same(state, STATE))  # a flip in the header's padding harms nothing
    assert again.load() is None or state is not None


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = job(tmp_path)
    checkpoint.save(STATE)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskSpaceError, match="checkpoint_seconds"):
        checkpoint.save({"new": 1})
    assert not checkpoint.save_if_due(lambda: {"new": 1})
    assert same(checkpoint.load(), STATE)
    assert sorted(path.name for path in checkpoint.folder.iterdir()) == ["lock", "state"]


def test_two_processes_do_not_share_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import sys, pathlib; from pipeline.job_checkpoint import open_checkpoint\n"
        f"c = open_checkpoint(pathlib.Path(sys.argv[1]), {KEY!r}, {{}})\n"
        "c.save({'n': 1}); print('mine', flush=True)\n"
        "sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(tmp_path, KEY, {}) is None
    assert "another process" in caplog.text
    job(tmp_path, OTHER).discard()
    other.kill()
    other.communicate()
    assert job(tmp_path).load() == {"n": 1}


def test_old_folders_are_swept_and_fresh_or_held_ones_stay(tmp_path: Path) -> None:
    keys = [f"{n:02d}" * 32 for n in range(3)]
    folders = []
    for key in keys:
        checkpoint = job(tmp_path, key)
        folders.append(checkpoint.folder)
        checkpoint.save(STATE)
        checkpoint.release()
    held = job(tmp_path, keys[2])
    long_ago = time.time() - (job_checkpoint.KEPT_DAYS + 1) * 86400
    for folder in (folders[0], folders[2]):
        os.utime(folder, (long_ago, long_ago))
    (tmp_path / "somebody-elses").mkdir()
    os.utime(tmp_path / "somebody-elses", (long_ago, long_ago))
    mine = job(tmp_path)
    assert set(tmp_path.iterdir()) == {folders[1], folders[2], mine.folder, tmp_path / "somebody-elses"}
    assert held.load() is not None


def test_only_so_many_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_checkpoint, "KEPT_JOBS", 3)
    for n in range(6):
        checkpoint = job(tmp_path, f"{n:02d}" * 32)
        checkpoint.save(STATE)
        checkpoint.release()
        os.utime(checkpoint.folder, (time.time() - 60 + n,) * 2)
    assert sorted(path.name[:2] for path in tmp_path.iterdir()) == ["03", "04", "05"]


def test_a_root_that_cannot_be_written_means_no_checkpoints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(tmp_path / "file" / "jobs", KEY, {}) is None
    assert "no checkpoints" in caplog.text


def test_what_goes_wrong_with_the_job_is_not_taken_for_a_failed_checkpoint(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise DiskSpaceError("room for the scratch rows", "a full disk", "free space")

    with pytest.raises(DiskSpaceError, match="scratch rows"):
        job(tmp_path).save_if_due(fail)


def leave(checkpoint: JobCheckpoint) -> None:
    """As a process does that is killed: the lock goes, and nothing else."""
    (checkpoint.folder / "rows").write_bytes(b"scratch")
    checkpoint._lock.close()


def test_what_nobody_can_go_on_from_is_swept_at_once(tmp_path: Path) -> None:
    leave(job(tmp_path, OTHER))
    (tmp_path / "going-ab").mkdir()
    held = job(tmp_path, "ef" * 32)
    mine = job(tmp_path)
    assert set(tmp_path.iterdir()) == {held.folder, mine.folder}


def test_who_comes_while_a_folder_is_removed_gets_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, others = shutil.rmtree, []

    def rival_comes(path: Path, **how: Any) -> None:
        monkeypatch.undo()
        others.append(job(tmp_path))
        others[0].save(STATE)
        real(path, **how)

    monkeypatch.setattr(shutil, "rmtree", rival_comes)
    done = job(tmp_path)
    done.save({"old": 1})
    done.discard()
    assert same(others[0].load(), STATE)
    assert list(tmp_path.iterdir()) == [others[0].folder]


def test_what_a_done_job_left_can_be_removed_by_name(tmp_path: Path) -> None:
    root = tmp_path / "jobs"
    discard_checkpoint(root, KEY, {})
    assert not root.exists()
    mine, other = job(root), job(root, OTHER)
    for checkpoint in (mine, other):
        checkpoint.save(STATE)
    discard_checkpoint(root, KEY, {})
    assert mine.load() is not None  # somebody is at it
    leave(mine)
    discard_checkpoint(root, KEY, {})
    assert list(root.iterdir()) == [other.folder]
