"""Commits: one writer per generation on every kind of store, a re-run is done, a dead writer is not seen."""

from __future__ import annotations

import json
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageError
from pipeline.ledger import Commit, CommitConflict, Ledger, commit_key, work_key
from pipeline.storage.manifest import FileRecord
from pipeline.storage.objects import ObjectStore

VIDEO = "cd" * 32
STARTED = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(params=["local", "rclone", "moto"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "local":
        return Ledger(ObjectStore(tmp_path / "out"), tmp_path / "commits.sqlite")
    server = request.getfixturevalue(f"{request.param}_s3")
    return Ledger(ObjectStore(server.new_bucket() + "/out", server.settings()), tmp_path / "commits.sqlite")


def commit(ledger: Ledger, parent: int, key: str = "k", run: str = "run", drop: str = "first") -> Commit:
    facts = f"masks/drop={drop}/{VIDEO}-{key}-{run}.parquet"
    ledger.store.put_atomic(facts, b"facts")
    return ledger.commit(
        VIDEO,
        parent=parent,
        work_key=key,
        video_uri="v.mp4",
        drop=drop,
        files=[FileRecord("masks", facts, 7, 5, "00")],
        run_id=run,
        attempt=1,
        started_at=STARTED,
    )


def test_generations_count_up_and_the_newest_decides(ledger: Ledger) -> None:
    assert ledger.newest(VIDEO) is None
    first = commit(ledger, 0, "k1")
    assert (first.generation, first.parent, first.rows, first.first_seen) == (1, 0, 7, "first")
    second = commit(ledger, 1, "k2", drop="second")
    assert (second.generation, second.drop, second.first_seen) == (2, "second", "first")
    assert ledger.newest(VIDEO) == second
    assert ledger.generations(VIDEO) == [1, 2]
    listed = [key for key in ledger.store.list() if key.startswith("commits/")]
    assert listed == [f"commits/{VIDEO}/000001.json", f"commits/{VIDEO}/000002.json"]
    body = json.loads(ledger.store.get(listed[1]))
    assert body["files"][0] == {"layer": "masks", "key": second.files[0].key, "rows": 7, "bytes": 5, "sha256": "00"}
    assert body["run_id"] == "run"
    assert body["host"]


def test_work_begun_on_an_older_generation_is_refused(ledger: Ledger) -> None:
    commit(ledger, 0, "k1")
    commit(ledger, 1, "k2")
    with pytest.raises(CommitConflict, match="generation 2 of run run"):
        commit(ledger, 1, "k3", run="orphan")
    assert ledger.generations(VIDEO) == [1, 2]


def test_a_rival_that_did_the_same_work_is_no_conflict(ledger: Ledger) -> None:
    won = commit(ledger, 0, "same", run="a")
    assert commit(ledger, 0, "same", run="b") == won


def test_an_orphan_and_a_rerun_cannot_both_publish(ledger: Ledger) -> None:
    ledger.store.probe_conditional_put()
    gate = threading.Barrier(6)

    def race(number: int) -> bool:
        gate.wait()
        try:
            commit(ledger, 0, f"k{number}", run=str(number))
        except CommitConflict:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(race, range(6)))
    assert sum(won) == 1
    newest = ledger.newest(VIDEO)
    assert newest is not None
    assert (newest.generation, newest.run_id) == (1, str(won.index(True)))


def test_a_store_that_ignores_conditions_is_said(
    rclone_s3: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings()), tmp_path / "sub/commits.sqlite")
    commit(ledger, 0, "k1")
    commit(ledger, 1, "k2")
    told = [record.message for record in caplog.records if "no conditional writes" in record.message]
    assert len(told) == 1
    assert ledger.store.url in told[0]
    assert ledger.sql.where in told[0]


def test_a_writer_that_ends_between_the_row_and_the_json_has_committed(rclone_s3: Any, tmp_path: Path) -> None:
    ledger = Ledger(ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings()), tmp_path / "commits.sqlite")
    first = commit(ledger, 0, "k1")
    ledger.store.delete(commit_key(VIDEO, 1))
    assert ledger.newest(VIDEO) == first
    assert ledger.store.exists(commit_key(VIDEO, 1))


def test_rows_of_an_emptied_store_are_forgotten(rclone_s3: Any, tmp_path: Path) -> None:
    ledger = Ledger(ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings()), tmp_path / "commits.sqlite")
    first = commit(ledger, 0, "k1")
    for key in (commit_key(VIDEO, 1), first.files[0].key):
        ledger.store.delete(key)
    assert ledger.newest(VIDEO) is None
    assert commit(ledger, 0, "k1", run="again").run_id == "again"


def test_a_commit_of_a_writer_with_another_sql_file_is_kept(rclone_s3: Any, tmp_path: Path) -> None:
    store = ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings())
    commit(Ledger(store, tmp_path / "a.sqlite"), 0, "k1", run="a")
    with pytest.raises(CommitConflict):
        commit(Ledger(store, tmp_path / "b.sqlite"), 0, "k2", run="b")


def test_a_damaged_commit_and_a_damaged_ledger_are_named(rclone_s3: Any, tmp_path: Path) -> None:
    local = Ledger(ObjectStore(tmp_path / "out"))
    local.store.put_atomic(commit_key(VIDEO, 1), b'{"generation": "one"}')
    with pytest.raises(StorageError, match=r"readable commit.*000001\.json"):
        local.newest(VIDEO)
    (tmp_path / "bad.sqlite").write_text("no database, " * 100)
    ledger = Ledger(ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings()), tmp_path / "bad.sqlite")
    with pytest.raises(StorageError, match="MASKSIEVE_LEDGER"):
        ledger.newest(VIDEO)


def test_the_sql_file_is_only_for_stores_that_need_it(tmp_path: Path) -> None:
    ledger = Ledger(ObjectStore(tmp_path / "out"), tmp_path / "commits.sqlite")
    commit(ledger, 0)
    assert not (tmp_path / "commits.sqlite").exists()
    sqlite3.connect(tmp_path / "commits.sqlite").close()
    assert ledger.generations(VIDEO) == [1]


def test_work_keys_tell_every_ingredient_apart() -> None:
    base = (VIDEO, "p", "m", "h", {"decoder": "decord", "reverse": True})
    keys = {
        work_key(*base),
        work_key("ef" * 32, *base[1:]),
        work_key(VIDEO, "p2", *base[2:]),
        work_key(VIDEO, "p", "m2", *base[3:]),
        work_key(VIDEO, "p", "m", None, base[4]),
        work_key(*base[:4], {"decoder": "pyav", "reverse": True}),
    }
    assert len(keys) == 6
    assert work_key(*base[:4], {"reverse": True, "decoder": "decord"}) == work_key(*base)
