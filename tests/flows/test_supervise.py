"""What is watched stays alive, and at the end nothing of it is left, in whatever session it hid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.supervise import Child, Supervisor, ended
from pipeline.errors import SettingsError

FOREVER = "import time; time.sleep(1000)"


def _until(true: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not within its time"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _child(tmp_path: Path, code: str, name: str = "one") -> Child:
    return Child(name, [sys.executable, "-c", code], dict(os.environ), tmp_path / f"{name}.log")


def _pids(tmp_path: Path) -> list[int]:
    return [int(file.name) for file in (tmp_path / "pids").iterdir()]


def _writes_its_pid(tmp_path: Path, then: str) -> str:
    (tmp_path / "pids").mkdir(exist_ok=True)
    return f"import os, pathlib; pathlib.Path({str(tmp_path / 'pids')!r}, str(os.getpid())).touch(); {then}"


def test_one_that_is_killed_is_started_again(tmp_path: Path) -> None:
    with ended() as supervisor:
        child = supervisor.start(_child(tmp_path, FOREVER))
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        _until(lambda: (supervisor.keep(), child.pid not in (None, first))[1])
        assert child.restarts == 1


def test_one_that_keeps_dying_waits_longer_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.supervise.FIRST_WAIT_SECONDS", 0.2)
    with ended() as supervisor:
        child = Child(
            "one", [sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ), tmp_path / "log", _wait=0.2
        )
        supervisor.start(child)
        _until(lambda: (supervisor.keep(), child._wait >= 1.6)[1], 20)
        assert child.restarts <= 4  # 0.2 + 0.4 + 0.8 s of waiting lie behind it


def test_grandchildren_in_sessions_of_their_own_end_too(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    grandchild = _writes_its_pid(tmp_path, stubborn)
    parent = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True); time.sleep(1000)"
    )
    supervisor = Supervisor()
    child = supervisor.start(_child(tmp_path, parent))
    _until(lambda: _pids(tmp_path))
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)  # it leaves an orphan
    _until(lambda: child.pid is None)
    (orphan,) = _pids(tmp_path)
    assert _alive(orphan)
    supervisor.stop(grace_seconds=0.3)
    assert not _alive(orphan)


def test_the_server_ends_after_those_that_report_to_it(tmp_path: Path) -> None:
    order = tmp_path / "order"
    late = (
        "import signal, time, sys; "
        "told = lambda *_: (time.sleep({wait}), open({order!r}, 'a').write({name!r}), sys.exit()); "
        "signal.signal(signal.SIGTERM, told); open({ready!r}, 'w'); time.sleep(1000)"
    )
    supervisor = Supervisor()
    for name, wait in (("server", 0.0), ("worker", 0.4)):
        ready = tmp_path / f"{name}.ready"
        code = late.format(wait=wait, order=str(order), name=f"{name} ", ready=str(ready))
        child = supervisor.start(_child(tmp_path, code, name))
        supervisor.last = supervisor.last or (child,)
        _until(ready.exists)
    supervisor.stop()
    assert order.read_text() == "worker server "


def test_a_run_puts_its_work_down_before_its_worker_may_end_it(tmp_path: Path) -> None:
    run = (
        "import pathlib, signal, sys, time; "
        f"put_down = lambda *_: (time.sleep(0.5), pathlib.Path({str(tmp_path / 'put-down')!r}).touch(), sys.exit()); "
        "signal.signal(signal.SIGTERM, put_down); " + _writes_its_pid(tmp_path, "time.sleep(1000)")
    )
    worker = (
        "import signal, subprocess, sys, time; "
        f"run = subprocess.Popen([sys.executable, '-c', {run!r}], start_new_session=True); "
        "signal.signal(signal.SIGTERM, lambda *_: (run.kill(), sys.exit())); time.sleep(1000)"
    )
    supervisor = Supervisor()
    child = _child(tmp_path, worker)
    child.runs_others = True
    supervisor.start(child)
    _until(lambda: _pids(tmp_path))
    supervisor.stop(grace_seconds=10)
    assert (tmp_path / "put-down").exists()
    assert child.pid is None


def test_children_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, time
from flows.supervise import Child, Supervisor
import os
Supervisor().start(Child("one", [sys.executable, "-c", {_writes_its_pid(tmp_path, FOREVER)!r}], dict(os.environ),
                         pathlib.Path({str(tmp_path / "log")!r})))
time.sleep(1000)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code])
    try:
        _until(lambda: _pids(tmp_path))
    finally:
        supervisor.kill()
        supervisor.wait()
    _until(lambda: not any(map(_alive, _pids(tmp_path))))


def test_what_somebody_else_started_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", FOREVER])
    try:
        with ended() as supervisor:
            supervisor.start(_child(tmp_path, FOREVER))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_home_has_one_master(tmp_path: Path) -> None:
    from flows.machine import Home

    home = Home.of(tmp_path / "home")
    told = f"PID {os.getpid()} at http://127.0.0.1:4200"
    with home.claimed() as say:
        say("http://127.0.0.1:4200")
        with pytest.raises(SettingsError, match=told), home.claimed():
            pass
    with home.claimed():
        pass


def test_a_password_is_never_shown() -> None:
    from flows.machine import Home, database_url, shown_database

    url = database_url("postgresql://me:hunter2@db.example:5433/prefect")
    assert url == "postgresql+asyncpg://me:hunter2@db.example:5433/prefect"
    assert shown_database(url, Home(Path("x"))) == "postgresql://db.example:5433/prefect"
    with pytest.raises(SettingsError) as error:
        database_url("mysql://me:hunter2@db.example/prefect")
    assert "hunter2" not in str(error.value)
