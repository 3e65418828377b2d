"""`masksieve sweep` at the command line: what it prints and writes, and one line with exit code 2 for mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ..sweeping import facts, write_labels, write_truth
from .conftest import Run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Labels of four videos, with truth of two beside them."""
    tables = [facts(number) for number in range(4)]
    for table in tables:
        write_labels(tmp_path / "out", table)
    write_truth(tmp_path / "truth.parquet", tables[:2])
    return tmp_path / "out"


def test_table_files_and_json_say_the_same(out: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    pages = out.parent / "pages"
    words = ["sweep", out, "--truth", out.parent / "truth.parquet", "--out", pages]
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "< policy" in printed
    assert "uncertified: the threshold rests on no evidence yet" in printed
    assert "masks of 2 videos with truth; its intervals are over videos and pointwise, no certificate" in printed
    assert {path.name for path in pages.iterdir()} == {"sweep.html", "sweep.png", "sweep.csv", "groups.csv"}
    assert run(*words, "--json", "--no-examples") == 0
    told = json.loads(capsys.readouterr().out)
    with (pages / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(told["thresholds"]) >= 150
    for row, one in zip(rows, told["thresholds"], strict=True):
        assert float(row["coverage"]) == pytest.approx(one["coverage"], rel=1e-5)
        assert (row["error_rate"] == "") == (one["error_rate"] is None)
        assert int(row["review_stretches"]) == one["review_stretches"]
    (now,) = [one for one in told["thresholds"] if one["current"]]
    assert now == told["current"]
    assert f"{100 * now['coverage']:.1f}%" in printed
    assert (told["certified"], told["truth"]["videos"], told["days"]) == (False, 2, None)


def test_a_policy_of_ones_own_is_swept_and_labels_may_lie_anywhere(
    out: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = out.parent / "mine.yaml"
    policy.write_text("name: mine\nmax_uncertainty: 0.1\ngroups: [{label: cup, max_uncertainty: 0.3}]\n")
    files = sorted((out / "labels").rglob("*.parquet"))
    for place, videos in ((out, 4), (out / "labels", 4), (files[0], 1)):
        assert run("sweep", place, "--policy", policy, "--json", "--no-examples", "--out", out.parent / "pages") == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["policy"]["name"], told["videos"], told["truth"]) == ("mine", videos, None)
        assert told["thresholds"][-1]["threshold"] is None  # by group
        assert told["thresholds"][-1] == told["current"]
        assert {group["threshold"] for group in told["groups"]} == {0.1, 0.3}


def test_nothing_accepted_is_said(out: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", out, "--out", out.parent / "pages", "--no-examples", "--set", "storage.retry_seconds=1") == 0
    policy = out.parent / "none.yaml"
    policy.write_text("max_uncertainty: 0.0\nmin_area_px: 100000\n")
    capsys.readouterr()
    assert run("sweep", out, "--policy", policy, "--out", out.parent / "pages", "--no-examples") == 0
    assert "no threshold accepts a mask" in capsys.readouterr().out


def test_mistakes_are_one_line_and_exit_code_2(out: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = out.parent
    (folder / "empty").mkdir()
    (folder / "typo.yaml").write_text("max_uncertainy: 0.2\n")
    (folder / "crossed.yaml").write_text("max_uncertainty: 0.5\nhold_above_uncertainty: 0.2\n")
    write_labels(folder / "nan", facts(0, iou_stacked=float("nan"), score_source="iou_stacked"))
    write_truth(folder / "other.parquet", [facts(77)])
    pq.write_table(pq.read_table(folder / "truth.parquet").drop_columns("object_id"), folder / "wrong.parquet")
    for words, said in (
        ([folder / "nowhere"], "no folder"),
        ([folder / "empty"], "no Parquet file"),
        ([folder / "nan"], "without one"),
        ([out, "--policy", folder / "typo.yaml"], "did you mean 'max_uncertainty'"),
        ([out, "--policy", folder / "crossed.yaml"], "crossed thresholds"),
        ([out, "--policy", folder / "none.yaml"], "none.yaml"),
        ([out, "--truth", folder / "other.parquet"], "no row is one of"),
        ([out, "--truth", folder / "wrong.parquet"], "object_id"),
        ([out, "--truth", folder / "nothing"], "nothing there"),
        ([out, "--drop", "weekend"], "choose among day"),
        ([folder / "truth.parquet"], "column"),
    ):
        assert run("sweep", *words, "--out", folder / "pages") == 2, words
        captured = capsys.readouterr()
        assert said in captured.err, captured.err
        assert "Traceback" not in captured.err
        assert len([line for line in captured.err.splitlines() if not line.startswith("warning:")]) == 1
        assert captured.out == ""
    assert not (folder / "pages").exists()
