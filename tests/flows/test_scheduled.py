"""A whole night in a minute: `masksieve up` with two workers, videos that arrive in every shape, and only the schedule.

Nothing is replaced: the console script, a real Prefect server, real workers, the embedded model.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.demo import DEMO_CLIPS, make_drop
from pipeline.plan import Plan, plan_drop
from pipeline.settings import Settings, load_settings
from pipeline.storage.objects import ObjectStore

pytestmark = pytest.mark.slow

FRAMES, SETTLE_SECONDS = 4, 3.0
WHOLE = ("a", "b", "c", "d", "e", "f", "sub/g", "h")
SETTINGS = {
    "drops.settle_seconds": SETTLE_SECONDS, "drops.batch_videos": 4, "drops.retry_seconds": 0.2,
    "output.review_frames": False,
}  # fmt: skip


def _settings(**more: object) -> Settings:
    return load_settings(None, {**SETTINGS, **more})


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos: eight whole ones, one that comes slowly, a twin, a broken one, and one without prompts."""
    folder = tmp_path_factory.mktemp("videos")
    names = [*WHOLE, "slow", "lonely"]
    clips = [replace(DEMO_CLIPS[n % 3], name=name.replace("/", "_"), seed=7000 + n) for n, name in enumerate(names)]
    make_drop(folder, clips, num_frames=FRAMES)
    (folder / "lonely.prompts.json").unlink()
    for suffix in (".mp4", ".prompts.json"):
        (folder / f"twin{suffix}").write_bytes((folder / f"a{suffix}").read_bytes())
    (folder / "broken.mp4").write_bytes(random.Random(1).randbytes(20_000))
    (folder / "broken.prompts.json").write_bytes((folder / "a.prompts.json").read_bytes())
    return folder


def _until(true: Callable[[], object], seconds: float, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"it ended with {process.returncode}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < end, f"not within {seconds} s:\n{log.read_text()[-3000:]}"
        time.sleep(0.25)


@contextmanager
def _up(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`masksieve up` over folder/drop; gone after the block in any case."""
    log = folder / "up.log"
    words = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "up",
        "--drop",
        "drop",
        "--out",
        "out",
        "--home",
        "home",
        "--port",
        "0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, "--metrics-port", "0", *words, *more], cwd=folder, env=environment, stdout=out, stderr=out
        )
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _left(home: Path) -> list[str]:
    """Processes that belong to a home."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                if f"PREFECT_HOME={home}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found


def _plan(folder: Path, **more: object) -> Plan:
    return plan_drop(ObjectStore(str(folder / "drop")), ObjectStore(str(folder / "out")), _settings(**more))


def _names(plan: Plan, bucket: str) -> set[str]:
    return {item.video.partition("/drop/")[2].removesuffix(".mp4") for item in plan.buckets[bucket]}  # type: ignore[index]


def _drip(source: Path, target: Path, seconds: float) -> None:
    """An upload that is never silent for as long as it would take to count as done, and ends."""
    content = source.read_bytes()
    steps = max(2, int(seconds / (SETTLE_SECONDS / 4)))
    for step in range(1, steps + 1):
        target.write_bytes(content[: len(content) * step // steps])
        time.sleep(seconds / steps)


def _metrics(log: Path) -> dict[str, float]:
    (line,) = {line for line in log.read_text().splitlines() if line.startswith("metrics ")}
    text = urllib.request.urlopen(line.split()[1], timeout=10).read().decode()
    return {
        name: float(value)
        for name, _, value in (one.rpartition(" ") for one in text.splitlines() if one[:1] not in "#")
    }


def test_a_night_over_twelve_videos(videos: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    drop, out = tmp_path / "drop", tmp_path / "out"
    (drop / "sub").mkdir(parents=True)
    with _up(tmp_path, "--workers", "2", "--every", "6") as (process, log):
        _until(lambda: "no videos yet" in log.read_text(), 240, process, log)  # all is up, and the drop is empty
        for file in sorted(videos.iterdir()):
            if file.name != "slow.mp4":
                (drop / file.name.replace("sub_", "sub/")).write_bytes(file.read_bytes())
        slow = threading.Thread(target=_drip, args=(videos / "slow.mp4", drop / "slow.mp4", 15.0))
        slow.start()
        listed = {*WHOLE, "slow", "lonely", "twin", "broken"}
        aside = {"lonely", "broken"}
        _until(lambda: _names(_plan(tmp_path), "done") == listed - aside, 300, process, log)
        slow.join()
        _until(lambda: _names(_plan(tmp_path), "quarantined") == {"broken"}, 120, process, log)
        metrics = _metrics(log)
        (second,) = (
            subprocess.run(
                [sys.executable, "-m", "flows.cli", "up", "--drop", "drop", "--out", "out", "--home", "home"],
                cwd=tmp_path, capture_output=True, text=True,
            ),
        )  # fmt: skip
    assert process.returncode == 0, log.read_text()[-3000:]
    assert _left(tmp_path / "home") == []
    assert second.returncode == 2
    assert f"PID {process.pid}" in second.stderr

    plan = _plan(tmp_path)
    assert _names(plan, "needs_prompts") == {"lonely"}
    assert _names(_plan(tmp_path, **{"prompts.on_missing": "auto"}), "wanted") == {"lonely"}

    # Labelled exactly once: one generation each, one labelling each, no row twice, whole videos only.
    generations = Counter(path.parent.name for path in (out / "commits").glob("*/*.json"))
    assert len(generations) == len(WHOLE) + 1
    assert set(generations.values()) == {1}
    assert metrics['masksieve_videos_total{outcome="labelled"}'] == len(WHOLE) + 1
    rows = pq.read_table(out / "labels", columns=["video_id", "frame_index", "object_id"]).to_pandas()
    assert not rows.duplicated().any()
    assert (rows.groupby("video_id").frame_index.nunique() == FRAMES).all()
    assert set(rows.video_id) == set(generations)

    # The same bytes under two names: labelled once, listed twice.
    done = Counter(path.name for path in (out / "work").glob("*/*/done-*.json"))
    assert sorted(done.values()) == [1] * len(WHOLE) + [2]

    # The broken one says why, and was tried as often as it gets.
    (record,) = (out / "work").glob("*/*/quarantined.json")
    body = json.loads(record.read_text())
    assert body["video"].endswith("broken.mp4")
    assert [attempt["state"] for attempt in body["attempts"]] == ["failed"] * 3
    assert "expected" in body["error"]
    assert metrics["masksieve_quarantined_total"] == 1

    # Both workers worked.
    for name in ("gpu-1", "gpu-2"):
        assert "submitting flow run" in (tmp_path / "home" / "logs" / f"{name}.log").read_text()

    # The next one on the same home finds nothing to do, changes nothing, and says what waits for people.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    with _up(tmp_path, "--once") as (process, log):
        assert process.wait(240) == 1
    assert "1 quarantined" in log.read_text().splitlines()[-2]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before
    assert _left(tmp_path / "home") == []
