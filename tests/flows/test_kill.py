"""A sample of `benchmarks/kill.py`: SIGKILL at the start of every stage, and what is there in the end is as if nothing
had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL

import pipeline.cli
from benchmarks import kill
from pipeline.settings import load_settings
from pipeline.storage.objects import ObjectStore
from pipeline.work import WorkLog

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

ENGINE = """
import json, os, sys
import flows.label
flows.label._model("sam2_nano", "cpu", None)
for line in sys.stdin:
    child = os.fork()
    if not child:
        flows.label.label_batch(**json.loads(line), return_state=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""An engine process per line that has loaded everything before it was born: loading takes longer than labelling."""
SETTINGS = {**kill.SETTINGS, "drops.lease_seconds": 1.5, "drops.retry_seconds": 0.0, "model.device": "cpu"}
LAYERS = {"masks", "labels", "review", "commits"}


def _readable(out: Path) -> dict[str, str]:
    """But for the picture of a run, which depends on what else was in the run."""
    return {key: digest for key, digest in kill.facts_of(out).items() if not key.endswith("/timeline.png")}


def test_a_kill_at_every_stage_changes_nothing_in_the_end(
    drop: Path, items: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    kills, scratch, out = tmp_path / "kills", tmp_path / "scratch", tmp_path / "out"
    kills.mkdir()
    scratch.mkdir()
    settings = {**SETTINGS, "output.scratch_dir": str(scratch)}
    work = json.dumps({"items": items(drop), "out": str(out), "overrides": settings})
    records = WorkLog(ObjectStore(out), load_settings(None, settings).drops)
    environment = {
        **os.environ, "MASKSIEVE_KILLS": str(kills), "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "MASKSIEVE_SLOTS": str(tmp_path / "slots"), "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch),
        "PYTHONPATH": os.pathsep.join([str(Path(kill.__file__).parent / "kill_hook"), *filter(None, sys.path)]),
    }  # fmt: skip
    codes = []
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(
        [sys.executable, "-c", ENGINE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        text=True,
    ) as engines:  # fmt: skip
        assert engines.stdin is not None
        assert engines.stdout is not None
        end = time.monotonic() + 120
        waiting = list(kill.STAGES)
        while waiting or len([one for one in records.standings().values() if one.done]) < 3:
            assert time.monotonic() < end, f"{waiting} {codes} {(tmp_path / 'log').read_text()[-3000:]}"
            if waiting:
                (kills / "arm-0.json").write_text(json.dumps({"target": "engine", "stage": waiting[0]}))
            engines.stdin.write(f"{work}\n")
            engines.stdin.flush()
            codes.append(int(engines.stdout.readline()))
            if not (kills / "arm-0.json").exists():
                waiting = waiting[1:]
            time.sleep(0.3)
        engines.stdin.close()
    taken = [json.loads(line)["stage"] for line in (kills / "kills.jsonl").read_text().splitlines()]
    assert taken == list(kill.STAGES)
    assert Counter(codes)[-9] == len(kill.STAGES)

    assert kill.orphans(out)  # one was killed between its facts and its commit, or this shows little
    with pytest.raises(SystemExit) as done:
        pipeline.cli.main(["gc", str(out), "--apply", "--older-than", "0", "--set", f"output.scratch_dir={scratch}"])
    assert not done.value.code
    assert kill.orphans(out) == []
    assert kill.rows_twice(out) == 0
    generations = Counter(commit.video_id for commit in kill.commits(out))
    assert set(generations.values()) == {1}
    assert len(generations) == 3
    for one in records.standings().values():
        assert (one.quarantined, one.live, one.lapsed, one.states) == (False, {}, [], {})
    assert [path for path in scratch.rglob("*") if path.is_file()] == []

    killed = out.rename(tmp_path / "killed")
    kill.label_in_peace(drop, out, [path.stem for path in sorted(drop.glob("*.mp4"))])
    found = _readable(killed)
    assert {key.split()[0].split("/")[0] for key in found} >= {"masks", "labels", "review", "review_images"}
    assert found == _readable(out)
