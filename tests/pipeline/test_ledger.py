"""Commits: one writer per generation on every kind of store, a re-run is done, a dead writer is not seen."""

from __future__ import annotations

import json
import logging
import random
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import psycopg
import pytest
from pydantic import SecretStr

from pipeline.errors import StorageError, UnavailableError
from pipeline.ledger import Commit, CommitConflict, Ledger, commit_key, work_key
from pipeline.storage.manifest import FileRecord
from pipeline.storage.objects import ObjectStore

VIDEO = "cd" * 32
STARTED = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(params=["local", "rclone", "moto", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "local":
        return Ledger(ObjectStore(tmp_path / "out"), tmp_path / "commits.sqlite")
    if request.param == "postgres":
        server = request.getfixturevalue("rclone_s3")
        return Ledger(ObjectStore(server.new_bucket(), server.settings()), request.getfixturevalue("postgres_url"))
    server = request.getfixturevalue(f"{request.param}_s3")
    return Ledger(ObjectStore(server.new_bucket() + "/out", server.settings()), tmp_path / "commits.sqlite")


def commit(
    ledger: Ledger, parent: int, key: str = "k", run: str = "run", drop: str = "first", video: str = VIDEO
) -> Commit:
    facts = f"masks/drop={drop}/{video}-{key}-{run}.parquet"
    ledger.store.put_atomic(facts, b"facts")
    return ledger.commit(
        video,
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


def test_a_commit_says_which_answers_it_rests_on_and_otherwise_reads_as_ever(ledger: Ledger) -> None:
    plain = commit(ledger, 0, "k1")
    body = json.loads(ledger.store.get(commit_key(VIDEO, 1)))
    assert not {"corrects", "answers", "base_work_key"} & body.keys()
    assert plain.label_key == "k1"
    about: dict[str, Any] = {
        "work_key": "k1", "video_uri": "v.mp4", "drop": "first", "files": plain.files, "attempt": 1,
        "started_at": STARTED, "corrects": 1, "answers": ["b" * 8, "a" * 8],
    }  # fmt: skip
    corrected = ledger.commit(VIDEO, parent=1, run_id="one", **about)
    assert (corrected.corrects, corrected.answers) == (1, ("a" * 8, "b" * 8))
    assert corrected.label_key == "k1" != corrected.work_key
    assert ledger.newest(VIDEO) == corrected
    assert ledger.commit(VIDEO, parent=1, run_id="two", **about) == corrected  # the same answers: the same work
    with pytest.raises(CommitConflict):
        ledger.commit(VIDEO, parent=1, run_id="three", **about | {"answers": ["c" * 8]})


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


def ids(count: int) -> list[str]:
    return [f"{number:064x}" for number in range(count)]


def test_all_newest_commits_come_from_one_listing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, video in enumerate(ids(5)):
        for parent in range(number % 2 + 1):
            commit(ledger, parent, f"k{parent}", video=video)
    listed, listing = list[str](), ledger.store.list
    monkeypatch.setattr(ledger.store, "list", lambda prefix="": listed.append(prefix) or listing(prefix))
    assert ledger.newest_generations() == {video: number % 2 + 1 for number, video in enumerate(ids(5))}
    assert listed == ["commits/"]
    assert {one.video_id: one.generation for one in ledger.read_all()} == ledger.newest_generations()
    some = [*ids(2), "ef" * 32]
    assert sorted(one.video_id for one in ledger.read_all(some)) == ids(2)


def test_removed_commits_do_not_come_back(ledger: Ledger) -> None:
    first, second = ids(2)
    for parent in range(2):
        commit(ledger, parent, f"k{parent}", video=first)
    commit(ledger, 0, video=second)
    ledger.remove(first)
    ledger.remove(first)
    assert ledger.newest(first) is None
    assert ledger.newest_generations() == {second: 1}
    assert commit(ledger, 0, "again", video=first).generation == 1


@pytest.mark.parametrize("sql", ["sqlite", "postgres"])
def test_rows_that_nobody_copied_yet_are_among_the_newest(
    sql: str, rclone_s3: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = tmp_path / "commits.sqlite" if sql == "sqlite" else request.getfixturevalue("postgres_url")
    ledger = Ledger(ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings()), place)
    for video in ids(3):
        commit(ledger, 0, video=video)
    for video in ids(3)[:2]:
        ledger.store.delete(commit_key(video, 1))
    ledger.store.delete(f"masks/drop=first/{ids(3)[1]}-k-run.parquet")
    assert ledger.newest_generations() == {ids(3)[0]: 1, ids(3)[2]: 1}
    assert ledger.store.exists(commit_key(ids(3)[0], 1))


def test_a_damaged_commit_among_many_is_named(tmp_path: Path) -> None:
    ledger = Ledger(ObjectStore(tmp_path))
    commit(ledger, 0)
    ledger.store.put_atomic(commit_key(ids(1)[0], 1), b"{}")
    with pytest.raises(StorageError, match="readable commit"):
        list(ledger.read_all())


_RACER = """
import json, sys, time
from datetime import datetime, UTC
from pathlib import Path
from pipeline.ledger import CommitConflict, Ledger
from pipeline.settings import StorageSettings
from pipeline.storage.objects import ObjectStore

url, settings, sql, me, rival, meet = sys.argv[1:]
ledger = Ledger(ObjectStore(url, StorageSettings.model_validate_json(settings)), sql)
ledger.store.capabilities()
won = []
for race in range(50):
    Path(meet, f"{race}-{me}").touch()
    while not Path(meet, f"{race}-{rival}").exists():
        time.sleep(0.0005)
    try:
        ledger.commit(f"{race:064x}", parent=0, work_key=me, video_uri="v", drop="d", files=[], run_id=me, attempt=1,
                      started_at=datetime.now(UTC))
        won.append(race)
    except CommitConflict:
        pass
print(json.dumps(won))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moto", "sqlite", "postgres"])
def test_two_processes_that_race_for_fifty_commits_make_fifty(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server = request.getfixturevalue("moto_s3" if kind == "moto" else "rclone_s3")
    sql = request.getfixturevalue("postgres_url") if kind == "postgres" else str(tmp_path / "commits.sqlite")
    url, meet = server.new_bucket(), tmp_path / "meet"
    meet.mkdir()
    settings = server.settings()
    told = {name: value.get_secret_value() for name, value in settings if isinstance(value, SecretStr)}
    words = [sys.executable, "-c", _RACER, url, json.dumps({**settings.model_dump(mode="json"), **told}), sql]
    racers = [
        subprocess.Popen([*words, me, rival, str(meet)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for me, rival in ("ab", "ba")
    ]
    ended = [one.communicate(timeout=120) for one in racers]
    assert [one.returncode for one in racers] == [0, 0], ended
    won_a, won_b = (set(json.loads(out)) for out, _ in ended)
    assert won_a | won_b == set(range(50))
    assert not won_a & won_b
    ledger = Ledger(ObjectStore(url, settings), sql)
    found = {int(one.video_id, 16): one.run_id for one in ledger.read_all()}
    assert found == {race: "a" if race in won_a else "b" for race in range(50)}
    assert len(ledger.store.list("commits/")) == 50


def test_a_database_that_is_away_for_a_while_is_waited_for(postgres_url: str, rclone_s3: Any) -> None:
    """Connections break at random, before and after the row is in."""
    import sqlalchemy

    store = ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings(retry_seconds=20))
    ledger = Ledger(store, postgres_url)
    engine, rng = ledger.sql.database.engine, random.Random(4)

    def breaking(connection: Any) -> None:
        if rng.random() < 0.4:
            raise sqlalchemy.exc.OperationalError("x", {}, psycopg.OperationalError("connection lost"))

    sqlalchemy.event.listen(engine, "begin", breaking)
    for number in range(8):
        assert commit(ledger, 0, video=ids(8)[number]).generation == 1
    sqlalchemy.event.remove(engine, "begin", breaking)

    landed = iter((True,))
    real = type(ledger.sql.database).begun

    @contextmanager
    def lost_answer(self: Any, **given: Any) -> Iterator[Any]:
        with real(self, **given) as connection:
            yield connection
        if next(landed, False):
            raise sqlalchemy.exc.OperationalError("x", {}, psycopg.OperationalError("connection lost"))

    sql: Any = ledger.sql
    sql.database.begun = lost_answer.__get__(sql.database)
    assert sql.insert("elsewhere", VIDEO, 1, b"mine")
    assert not sql.insert("elsewhere", VIDEO, 1, b"another")
    sql.database.begun = real.__get__(sql.database)
    sql.delete("elsewhere", VIDEO)


def test_the_password_of_a_database_is_told_to_nobody(
    postgres_url: str, rclone_s3: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    store = ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings(retry_seconds=0.2))
    monkeypatch.setenv("MASKSIEVE_LEDGER", postgres_url)
    commit(Ledger(store), 0)
    said = [record.getMessage() for record in caplog.records]
    for secret, url in {
        "not-the-one": postgres_url.replace("pg-secret-word", "not-the-one"),
        "s3cr%2Ft": "postgresql://masksieve:s3cr%2Ft@127.0.0.1:9/x",
        "in-the-query": "postgresql://127.0.0.1:9/postgres?user=masksieve&password=in-the-query",
        "pg-secret-word": postgres_url.rpartition("/")[0] + "/no_such_database",
        "odd-word": "postgresql://me:odd-word@host:noport/x",
        "other-word": "mysql://me:other-word@host/x",
    }.items():
        with pytest.raises(StorageError) as told:
            Ledger(store, url).sql.generations("x")
        text = "".join(traceback.format_exception(told.value)) + repr(Ledger(store, url)) + str(told.value)
        assert secret not in text
        assert unquote(secret) not in text
        assert isinstance(told.value, UnavailableError) == (":9/" in url), text
        said += [text]
    assert not any("pg-secret-word" in line for line in said)


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
