"""As many processes as there are slots hold one at a time; a killed one gives its slot back at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.device_slot import FOLDER_VARIABLE, device_slot
from pipeline.errors import StorageError
from pipeline.settings import load_settings

HOLD = """
import sys, time, pathlib
sys.modules["torch"] = type(sys)("torch"); sys.modules["torch"].cuda = type("cuda", (), {"is_available": lambda: False})
from pipeline.device_slot import device_slot
from pipeline.settings import load_settings
log, slots, turns, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
slot = device_slot(load_settings(None, {"model.slots": slots, "model.device": "cpu"}))
def tell(word):
    with open(log, "ab", 0) as file:
        file.write(f"{word} {time.monotonic_ns()}\\n".encode())
for _ in range(turns):
    with slot():
        tell("in")
        time.sleep(seconds)
        tell("out")
"""
"""Torch is stood in for: a slot of the CPU needs nothing of it, and each process would load it for seconds."""


def _start(log: Path, slots: int, turns: int = 1, seconds: float = 60.0) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(log), str(slots), str(turns), str(seconds)])


def _until(log: Path, lines: int, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        assert time.monotonic() < end, "nobody got a slot"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "slots"))
    return tmp_path / "slots"


@pytest.mark.parametrize("slots", [1, 2])
def test_never_more_hold_one_than_there_are_slots(slots: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for process in [_start(log, slots, turns=3, seconds=0.03) for _ in range(slots + 2)]:
        assert process.wait(60) == 0
    steps = sorted((line.split() for line in log.read_text().splitlines()), key=lambda step: int(step[1]))
    held = most = 0
    for word, _ in steps:
        held += 1 if word == "in" else -1
        most = max(most, held)
    assert len(steps) == (slots + 2) * 6
    assert most == slots


def test_a_killed_process_gives_its_slot_back_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = _start(log, 1)
    _until(log, 1)
    second = _start(log, 1)
    time.sleep(1.0)
    assert len(log.read_text().splitlines()) == 1
    first.send_signal(signal.SIGKILL)
    first.wait()
    _until(log, 2, seconds=5)
    second.kill()
    second.wait()


def test_waiting_for_a_slot_can_be_interrupted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    holder = _start(log, 1)
    _until(log, 1)
    waiter = _start(log, 1)
    time.sleep(1.0)
    waiter.send_signal(signal.SIGINT)
    assert waiter.wait(30) != 0
    holder.kill()
    holder.wait()


def test_a_child_of_the_holder_does_not_keep_the_slot(tmp_path: Path) -> None:
    settings = load_settings(None, {"model.device": "cpu"})
    with device_slot(settings)():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], close_fds=False)
    log = tmp_path / "log"
    other = _start(log, 1, seconds=0.01)
    assert other.wait(20) == 0
    child.kill()
    child.wait()


def test_a_lock_file_that_was_swept_away_is_no_second_slot(own_folder: Path, tmp_path: Path) -> None:
    """Whoever waits at a removed file must not take it for the slot."""
    from pipeline.device_slot import _try

    own_folder.mkdir(mode=0o700)
    path = own_folder / "cpu.0"
    stale = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    held = _try(path)
    assert held is not None
    assert _try(path) is None
    os.close(held)
    os.close(stale)


@pytest.mark.parametrize("how", ["link", "open to others", "file"])
def test_a_folder_that_others_can_write_to_is_refused(how: str, own_folder: Path, tmp_path: Path) -> None:
    if how == "link":
        (tmp_path / "elsewhere").mkdir()
        own_folder.symlink_to(tmp_path / "elsewhere")
    elif how == "file":
        own_folder.write_text("")
    else:
        own_folder.mkdir()
        own_folder.chmod(0o777)
    with pytest.raises(StorageError, match="device slots of one's own"):
        device_slot(load_settings(None, {"model.device": "cpu"}))
