"""A labelling process that is told to stop cleans up after itself, whatever it is at, and says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL

from pipeline.demo import DEMO_CLIPS, make_drop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

LABEL = """
import json, sys, time
import flows.label
from pipeline.metrics import VideoClock
items, out, scratch, at = json.loads(sys.argv[1]), *sys.argv[2:]
see, seen = VideoClock.see, []
def told(self, step):
    see(self, step)
    seen.append(step.stage)
    if seen.count(at) == 1 and step.stage == at:
        print("there", flush=True)
        time.sleep(100)
VideoClock.see = told
settings = {"model.device": "cpu", "output.scratch_dir": scratch, "decode.queue_frames": 2}
flows.label.label_batch(items, out, overrides=settings)
"""
"""All of it is real, but that it holds its breath when it gets there."""
FRAMES = 24  # many more than are decoded ahead: at the first one propagated the decoder is not near its end


@pytest.mark.parametrize(
    ("number", "stage"),
    [(signal.SIGTERM, "propagate"), (signal.SIGINT, "write"), (signal.SIGTERM, "download")],
)
def test_nothing_is_left_behind(
    number: signal.Signals, stage: str, items: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    make_drop(tmp_path / "night", DEMO_CLIPS[:1], num_frames=FRAMES)
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    environment = {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "MASKSIEVE_SLOTS": str(tmp_path / "s"),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", LABEL, json.dumps(items(tmp_path / "night")), str(out), str(scratch), stage],
        env=environment, stdout=subprocess.PIPE, stderr=(tmp_path / "log").open("wb"),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n", (tmp_path / "log").read_text()[-2000:]
    children = _children(process.pid)
    assert bool(children) == (stage == "propagate")
    assert list(scratch.iterdir())
    process.send_signal(number)
    assert process.wait(90) != 0
    (record,) = out.glob("work/**/*.json")
    assert record.name.endswith(".cancelled.json")
    assert json.loads(record.read_text())["stage"] == stage
    assert [path for path in scratch.rglob("*") if path.is_file() and "checkpoints" not in path.parts] == []
    assert not list(out.rglob("*.parquet"))
    assert not list(out.glob("commits/*/*"))
    end = time.monotonic() + 5
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end, "a decoding child outlived its run"
        time.sleep(0.05)


def _children(parent: int) -> list[int]:
    """The decoding processes of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == parent and b"pipeline.video.child" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue
    return found
