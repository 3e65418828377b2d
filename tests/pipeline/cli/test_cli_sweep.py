"""`masksieve sweep` at the command line: what it prints and writes, and one line with exit code 2 for mistakes."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.certificate import Certificate, process_of, write_certificate
from pipeline.ledger import Commit
from pipeline.policy import Policy
from pipeline.storage.objects import ObjectStore

from ..conftest import S3Server
from ..sweeping import MAKER, facts, video_id, write_labels, write_truth
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
    text = {"video_id": ["v"], "frame_index": [0], "object_id": [1], "iou": ["good"]}
    pq.write_table(pa.table(text), folder / "text.parquet")
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
        ([out, "--truth", folder / "text.parquet"], "Failed to parse string"),
        ([out, "--drop", "weekend"], "choose among day"),
        ([folder / "truth.parquet"], "column"),
        ([out, "--no-examples", "--out", folder / "typo.yaml"], "a writable folder"),
    ):
        assert run("sweep", *words, *([] if "--out" in words else ["--out", folder / "pages"])) == 2, words
        captured = capsys.readouterr()
        assert said in captured.err, captured.err
        assert "Traceback" not in captured.err
        assert len([line for line in captured.err.splitlines() if not line.startswith("warning:")]) == 1
        assert captured.out == ""
    assert not (folder / "pages").exists()


def test_a_certificate_stands_behind_the_thresholds_that_it_passed(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    issued = datetime.now(UTC)
    certificate = Certificate.issue(
        status="certified", promise={"kind": "error_rate", "bad_iou": 0.5, "at_most": 0.05}, confidence=0.9,
        estimand="rows", max_rows_per_video=48, start_coverage=0.2, policy=Policy().model_dump(mode="json"),
        groups=[{
            "match": {}, "threshold": 0.3, "passed": (0.1234, 0.2, 0.3), "videos": 400, "rows": 9000, "observed": 0.03,
            "bound": 0.049, "coverage": 0.6, "level": 0.1,
        }],
        processes=[process_of(MAKER)], review={"rows_per_day": 12.5, "stretches_per_day": 3.0}, issued_at=issued,
        truth={"kind": "davis", "sha256": "c" * 64, "videos": 500, "rows": 12000, "attempts": 0},
        valid_until=issued + timedelta(days=90), software={},
    )  # fmt: skip
    write_certificate(ObjectStore(tmp_path / "out"), certificate)
    policy = Policy(max_uncertainty=0.2, certificate=certificate.id)
    write_labels(tmp_path / "out", facts(0), policy=policy)
    words = ["sweep", tmp_path / "out", "--out", tmp_path / "pages", "--no-examples"]
    assert run(*words) == 0
    assert f"certified until {certificate.valid_until:%Y-%m-%d} by {certificate.id[:12]}" in capsys.readouterr().out
    page = (tmp_path / "pages/sweep.html").read_text()
    passed = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])  # type: ignore[index]
    assert [at for at, one in zip(passed["thresholds"], passed["passed"], strict=True) if one] == [0.1234, 0.2, 0.3]
    write_labels(tmp_path / "out", facts(1), policy=policy, maker={**MAKER, "heads_sha256": "f" * 64})
    assert run(*words) == 0  # one video of other heads
    assert "is for other heads" in capsys.readouterr().out


def test_the_load_of_a_day_is_told_where_the_commits_lie_on_several_days(
    out: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        at = datetime(2026, 11, 1 + 3 * number, tzinfo=UTC)
        one = Commit(
            video_id=video_id(number), generation=1, parent=0, work_key="w", video_uri="v.mp4", drop="day",
            first_seen="day", files=(), rows=1, run_id="r", attempt=1, started_at=at, finished_at=at, host="h",
        )  # fmt: skip
        ObjectStore(out).put_atomic(f"commits/{video_id(number)}/000001.json", one.model_dump_json().encode())
    assert run("sweep", out, "--out", out.parent / "pages", "--no-examples", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["days"] == 10
    assert told["current"]["stretches_per_day"] == pytest.approx(told["current"]["review_stretches"] / 10)


def test_labels_in_a_bucket_are_swept_where_they_are(
    out: Path, run: Run, rclone_s3: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(f"{rclone_s3.new_bucket()}/labels-of-2026", rclone_s3.settings())
    for path in (out / "labels").rglob("*.parquet"):
        store.put_atomic(str(path.relative_to(out)), path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", rclone_s3.endpoint_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", rclone_s3.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rclone_s3.secret_access_key)
    told = []
    for place in (out, store.url):
        assert run("sweep", place, "--out", out.parent / "pages", "--no-examples", "--json") == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["thresholds"] == told[1]["thresholds"]
