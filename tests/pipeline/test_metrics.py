"""One server tells for all processes of a folder: counts stay when a process dies, its gauges go."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.metrics import MetricsServer, start_metrics_server

COUNT = """
import sys
from pipeline import metrics
metrics.VIDEOS.labels("labelled").inc(int(sys.argv[1]))
metrics.STAGE_SECONDS.labels("propagate").observe(3)
metrics.WAITING.set(int(sys.argv[1]))
metrics.FAILURES.labels("VideoError").inc()
print("counted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MetricsServer]:
    server = start_metrics_server(0, tmp_path / "metrics")
    yield server
    server.close()


def _process(folder: Path, videos: int) -> subprocess.Popen[str]:
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", COUNT, str(videos)],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "counted\n"
    return process


def _read(server: MetricsServer) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {found[1]: float(found[2]) for found in re.finditer(r"^(masksieve_\S+) (\S+)$", text, re.MULTILINE)}


VIDEOS = 'masksieve_videos_total{outcome="labelled"}'


def test_two_processes_add_up_and_a_killed_one_leaves_its_counts(server: MetricsServer, tmp_path: Path) -> None:
    first, second = _process(tmp_path / "metrics", 3), _process(tmp_path / "metrics", 5)
    both = _read(server)
    assert both[VIDEOS] == 8
    assert both["masksieve_videos_waiting"] == 8
    assert both['masksieve_stage_seconds_bucket{le="5.0",stage="propagate"}'] == 2
    first.kill()
    first.wait()
    for _ in range(2):  # the second time from what was folded
        after = _read(server)
        assert after[VIDEOS] == 8
        assert after["masksieve_videos_waiting"] == 5
        assert after['masksieve_stage_seconds_sum{stage="propagate"}'] == 6
        assert after['masksieve_stage_seconds_count{stage="propagate"}'] == 2
        assert after['masksieve_stage_seconds_bucket{le="2.0",stage="propagate"}'] == 0
    second.communicate("")
    assert _read(server)[VIDEOS] == 8
    assert "masksieve_videos_waiting" not in _read(server)


def test_files_do_not_grow_in_number_with_the_runs(server: MetricsServer, tmp_path: Path) -> None:
    for run in range(3):
        _process(tmp_path / "metrics", run).communicate("")
        _read(server)
    assert sorted(path.name for path in (tmp_path / "metrics").iterdir()) == [
        "counter_folded.db",
        "histogram_folded.db",
    ]
    assert _read(server)[VIDEOS] == 3
    assert _read(server)['masksieve_failures_total{error="VideoError"}'] == 3


def test_a_file_cut_short_by_a_kill_does_not_end_the_telling(server: MetricsServer, tmp_path: Path) -> None:
    _process(tmp_path / "metrics", 4).communicate("")
    (tmp_path / "metrics" / "counter_999999999.db").write_bytes(b"")
    (tmp_path / "metrics" / "histogram_999999998.db").write_bytes(b"\xff" * 4096)
    assert _read(server)[VIDEOS] == 4


def test_nothing_but_this_machine_is_listened_to(server: MetricsServer) -> None:
    assert server._server.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_told(server: MetricsServer, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="choose another port"):
        start_metrics_server(server.port, tmp_path / "others")


def test_a_closed_server_frees_its_port(tmp_path: Path) -> None:
    server = start_metrics_server(0, tmp_path)
    server.close()
    start_metrics_server(server.port, tmp_path).close()
