"""Scratch folders end with their block, or are swept once their process is gone; nothing else is ever touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.scratch import OWNER, scratch_folder, sweep_scratch
from pipeline.settings import Settings, load_settings

_HOLDER = """
import sys, time
from types import SimpleNamespace as Some
from pathlib import Path
from pipeline.scratch import scratch_folder
with scratch_folder(Some(output=Some(scratch_dir=Path(sys.argv[1])))) as folder:
    Path(folder, "rows").mkdir()
    Path(folder, "rows", "0.arrow").write_bytes(b"rows")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "scratch").mkdir()
    return load_settings(None, {"output.scratch_dir": str(tmp_path / "scratch")})


@contextmanager
def holder(settings: Settings) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process with a scratch folder."""
    words = [sys.executable, "-c", _HOLDER, str(settings.output.scratch_dir)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield child, Path(child.stdout.readline().strip())
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_folder_ends_with_its_block(settings: Settings) -> None:
    with scratch_folder(settings) as folder:
        Path(folder, "x").write_bytes(b"x")
        assert sweep_scratch(settings) == 0
        assert Path(folder, "x").exists()
    assert list(Path(folder).parent.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(settings: Settings) -> None:
    with holder(settings) as (dead, left), holder(settings) as (_, living):
        assert sweep_scratch(settings) == 0
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert sweep_scratch(settings) == 1
        assert not left.exists()
        assert (living / "rows" / "0.arrow").read_bytes() == b"rows"
    assert sweep_scratch(settings) == 1


def test_what_is_not_a_scratch_folder_stays(settings: Settings, tmp_path: Path) -> None:
    root = tmp_path / "scratch"
    (root / "masksieve-data").mkdir()
    (root / "masksieve-data" / "precious").write_text("mine")
    (root / "masksieve-notes.txt").write_text("mine")
    (root / "masksieve-empty").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / OWNER).touch()
    (root / "masksieve-link").symlink_to(tmp_path / "elsewhere")
    (root / "masksieve-trap").mkdir()
    (root / "masksieve-trap" / OWNER).symlink_to(root / "masksieve-notes.txt")
    (root / "other").mkdir()
    (root / "other" / OWNER).touch()
    before = sorted(path for path in root.rglob("*"))
    assert sweep_scratch(settings) == 0
    assert sorted(path for path in root.rglob("*")) == before
    assert (tmp_path / "elsewhere" / OWNER).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make somebody else's file; no gpu needed to say so")
def test_another_users_folder_stays(settings: Settings, tmp_path: Path) -> None:
    theirs = tmp_path / "scratch" / "masksieve-theirs"
    theirs.mkdir()
    (theirs / OWNER).touch()
    os.chown(theirs, 12345, 12345)
    assert sweep_scratch(settings) == 0
    assert theirs.exists()


def test_sweepers_and_newcomers_do_not_disturb_each_other(settings: Settings) -> None:
    def come(number: int) -> bool:
        for _ in range(40):
            with scratch_folder(settings) as folder:
                Path(folder, "mine").write_text(str(number))
                if Path(folder, "mine").read_text() != str(number):
                    return False
        return True

    with ThreadPoolExecutor(6) as pool:
        comers = [pool.submit(come, number) for number in range(4)]
        while not all(one.done() for one in comers):
            sweep_scratch(settings)
        assert all(one.result() for one in comers)
    assert sweep_scratch(settings) == 0


def test_no_folder_is_there_and_nothing_is_made(tmp_path: Path) -> None:
    settings = load_settings(None, {"output.scratch_dir": str(tmp_path / "not" / "there")})
    assert sweep_scratch(settings) == 0
    assert list(tmp_path.iterdir()) == []
