"""The frame spool: frames come back as they went in, disk is checked first, nothing is left."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DiskSpaceError, ShapeError, StorageError
from pipeline.video.spool import FrameSpool, predicted_bytes
from pipeline.video.stream import Frame


def frame(index: int, size: int = 8) -> Frame:
    return Frame(index, index / 30, np.random.default_rng(index).integers(0, 256, (size, size, 3), np.uint8))


def test_frames_come_back_in_any_order(tmp_path: Path) -> None:
    with FrameSpool(tmp_path / "scratch", 5, 8) as spool:
        for index in range(3, 8):
            spool.append(frame(index))
        assert len(spool) == 5
        for index in (7, 3, 5, 5, 4, 6):
            read = spool.read(index)
            assert (read.index, read.pts_seconds) == (index, index / 30)
            np.testing.assert_array_equal(read.rgb_hw3, frame(index).rgb_hw3)


def test_nothing_is_visible_on_disk(tmp_path: Path) -> None:
    spool = FrameSpool(tmp_path, 5, 8)
    spool.append(frame(0))
    assert list(tmp_path.iterdir()) == []
    spool.close()
    spool.close()


def test_too_little_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert predicted_bytes(1000, 256) == 196_608_000
    with pytest.raises(DiskSpaceError, match=r"expected 197 MB of scratch disk in .*, got 33 MB; free some"):
        FrameSpool(tmp_path, 1000, 256)


def test_a_disk_that_fills_up_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with FrameSpool(tmp_path, 5, 8) as spool:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(DiskSpaceError, match="scratch disk"):
            spool.append(frame(0))
        assert len(spool) == 0


def test_a_scratch_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskSpaceError, match="expected a writable scratch folder"):
        FrameSpool(tmp_path / "file", 5, 8)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (frame(1, 9), r"expected a \(8, 8, 3\) uint8 frame, got \(9, 9, 3\)"),
        (frame(2), "expected frame 1 next, got frame 2"),
        (Frame(1, 0.0, np.zeros((8, 8, 3), np.int64)), "int64"),
    ],
)
def test_frames_that_do_not_follow_are_refused(tmp_path: Path, bad: Frame, message: str) -> None:
    with FrameSpool(tmp_path, 5, 8) as spool:
        spool.append(frame(0))
        with pytest.raises(ShapeError, match=message):
            spool.append(bad)


def test_more_than_the_capacity_and_unknown_frames_are_refused(tmp_path: Path) -> None:
    with FrameSpool(tmp_path, 1, 8) as spool:
        with pytest.raises(ShapeError, match=r"got frame 0 \(no frames yet\)"):
            spool.read(0)
        spool.append(frame(4))
        with pytest.raises(ShapeError, match="at most 1 frames"):
            spool.append(frame(5))
        with pytest.raises(ShapeError, match=r"got frame 3 \(frames 4..4\)"):
            spool.read(3)


def test_a_spool_that_died_goes_on_from_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "frames"
    died = FrameSpool(tmp_path, 6, 8, path=path)
    for index in range(2, 5):
        died.append(frame(index))
    mark = died.mark()
    died.append(frame(5))
    with FrameSpool(tmp_path, 6, 8, path=path) as spool:
        spool.restore(mark)
        assert (len(spool), path.stat().st_size) == (3, 3 * 8 * 8 * 3)
        spool.append(frame(5))
        for index in range(2, 6):
            np.testing.assert_array_equal(spool.read(index).rgb_hw3, frame(index).rgb_hw3)
            assert spool.read(index).pts_seconds == index / 30
    assert path.exists()


@pytest.mark.parametrize("damage", ["shorter", "another"])
def test_frames_that_are_not_what_they_were_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "frames"
    died = FrameSpool(tmp_path, 2, 8, path=path)
    died.append(frame(0))
    mark, data = died.mark(), path.read_bytes()
    path.write_bytes(data[:-1] if damage == "shorter" else bytes([data[0] ^ 1]) + data[1:])
    with FrameSpool(tmp_path, 2, 8, path=path) as spool, pytest.raises(StorageError, match="start the video over"):
        spool.restore(mark)
