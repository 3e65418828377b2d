"""A checkpoint is whole or not there, belongs to one job and one process, and does not stay for ever."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import job_checkpoint
from pipeline.errors import DiskSpaceError
from pipeline.job_checkpoint import JobCheckpoint, open_checkpoint

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
    with caplog.at_level(logging.WARNING):
        assert job(tmp_path, **made_by).load() is None
    assert "starting over" in caplog.text
    assert "other software" in caplog.text


def test_a_checkpoint_under_the_name_of_another_job_is_not_used(tmp_path: Path) -> None:
    first = job(tmp_path)
    first.save(STATE)
    first.release()
    first.folder.rename(first.folder.with_name(OTHER[:32]))
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
    for key in keys:
        checkpoint = job(tmp_path, key)
        checkpoint.save(STATE)
        checkpoint.release()
    held = job(tmp_path, keys[2])
    long_ago = time.time() - (job_checkpoint.KEPT_DAYS + 1) * 86400
    for key in (keys[0], keys[2]):
        os.utime(tmp_path / key[:32], (long_ago, long_ago))
    (tmp_path / "somebody-elses").mkdir()
    os.utime(tmp_path / "somebody-elses", (long_ago, long_ago))
    job(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {keys[1][:32], keys[2][:32], KEY[:32], "somebody-elses"}
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
