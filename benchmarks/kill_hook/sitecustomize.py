"""Put on PYTHONPATH by `benchmarks/kill.py`: tells the stage of every attempt, and ends a process where it is asked to.

`$MASKSIEVE_KILLS/stages.jsonl` gets a line per stage of every labelling process. A file `arm-*.json` there names a
stage and whom to end (engine: this process; worker: its parent; server: by pid file); the first attempt that enters
the stage takes the file and does it before anything else happens, so a boundary is hit exactly.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = os.environ.get("MASKSIEVE_KILLS")
LAST_NUMBER = 2  # the last attempt that a video gets is spared: quarantine is not what is looked at


def told(line: dict[str, Any], name: str = "stages.jsonl") -> None:
    """One line, whole even beside other writers."""
    assert FOLDER is not None
    descriptor = os.open(Path(FOLDER) / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, (json.dumps({**line, "pid": os.getpid(), "at": time.time()}) + "\n").encode())
    os.close(descriptor)


def target_pid(target: str) -> int | None:
    """Whom to end; None where nobody of the kind is there, as when the worker of this engine is dead already."""
    assert FOLDER is not None
    if target == "engine":
        return os.getpid()
    if target == "worker":
        parent = os.getppid()
        command = Path(f"/proc/{parent}/cmdline").read_bytes().replace(b"\0", b" ")
        return parent if b" worker start " in command else None
    if target == "decoder":
        tasks = Path("/proc/self/task").iterdir()  # children are listed by the thread that started them
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        commands = ((pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in children)
        return next((pid for pid, command in commands if b"pipeline.video" in command), None)
    noted = Path(FOLDER) / "server.pid"
    return int(noted.read_text()) if noted.exists() else None


def entered(stage: str, attempt: Any) -> None:
    """An attempt enters a stage: say so, and strike if that was asked for."""
    assert FOLDER is not None
    about = {"stage": stage, "video": Path(attempt.item.video).name, "number": attempt.number}
    told(about)
    for arm in sorted(Path(FOLDER).glob("arm-*.json")):
        wanted = json.loads(arm.read_text())
        if wanted["stage"] != stage or attempt.number > LAST_NUMBER:
            continue
        pid = target_pid(wanted["target"])
        if pid is None:
            continue
        try:
            arm.rename(arm.with_suffix(".taken"))
        except FileNotFoundError:
            continue
        told({**about, "target": wanted["target"], "how": "boundary"}, "kills.jsonl")
        os.kill(pid, signal.SIGKILL)
        return


def watch(module: ModuleType) -> None:
    """Follow `Attempt.stage`, which the label flow sets as the job goes on."""

    def setter(self: Any, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        object.__setattr__(self, name, value)
        if name == "stage" and value != before and value != "start":
            entered(str(value), self)

    module.Attempt.__setattr__ = setter


class Finder(importlib.abc.MetaPathFinder):
    """Lets `watch` see `pipeline.work` once it is loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "pipeline.work":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                watch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if FOLDER:
    sys.meta_path.insert(0, Finder())
