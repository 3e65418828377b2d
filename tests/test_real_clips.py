"""A real video through the command line: exact rows, a damaged neighbour that fails alone, and pictures of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLIPS.is_dir(), reason="the real clips of ../shared/data are not on this machine"),
]


def _masksieve(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One good clip, and a truncated copy of it in the same call."""
    folder = tmp_path_factory.mktemp("real")
    good = CLIPS / "bedroom.mp4"
    cut = folder / "cut.mp4"
    cut.write_bytes(good.read_bytes()[:1_000_000])
    (folder / "cut.prompts.json").write_bytes((CLIPS / "bedroom.prompts.json").read_bytes())
    return folder, _masksieve("label", cut, good, "--out", folder / "out", "--json")


def test_a_damaged_neighbour_fails_alone_and_the_rows_are_exact(
    labelled: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = labelled
    assert done.returncode == 1
    summary = json.loads(done.stdout)
    by_name = {Path(one["video"]).name: one for one in summary["videos"]}
    assert by_name["cut.mp4"]["status"] == "failed"
    assert "expected" in by_name["cut.mp4"]["error"]
    assert by_name["bedroom.mp4"]["rows"] == 200 * 2
    rows = pd.read_parquet(folder / "out" / "labels")
    assert len(rows) == 400
    assert rows.groupby("object_id").frame_index.nunique().tolist() == [200, 200]
    assert (rows.height.unique().tolist(), rows.width.unique().tolist()) == ([540], [960])
    assert "Traceback" not in done.stderr


def test_the_labelled_video_can_be_shown(labelled: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = labelled
    done = _masksieve("show", CLIPS / "bedroom.mp4", "--labels", folder / "out", "--out", folder / "show")
    assert done.returncode == 0, done.stderr
    kinds = {path.suffix for path in (folder / "show").iterdir() if path.stat().st_size > 1000}
    assert {".mp4", ".png"} <= kinds
