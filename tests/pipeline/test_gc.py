"""Garbage: nothing goes that a commit or a snapshot names, or that somebody is writing; all else that is old does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.checksum import file_sha256
from pipeline.errors import StorageError
from pipeline.ledger import Commit, Ledger, commit_key
from pipeline.settings import DropSettings
from pipeline.storage.download import Staged
from pipeline.storage.manifest import FileRecord, derived_key, facts_key
from pipeline.storage.objects import ObjectStore
from pipeline.work import Item, WorkLog

from .garbage import LIMIT_SECONDS, VIDEO, collect, labels, sweep


def test_an_output_that_is_whole_has_no_garbage(lake: Path) -> None:
    store = ObjectStore(lake)
    before = {path: file_sha256(path) for path in lake.rglob("*") if path.is_file()}
    assert collect(sweep(store, superseded=True)) == []
    orphan = facts_key("masks", "night", VIDEO, "000001-dead")
    store.put_atomic(orphan, b"of a worker that was killed")
    assert collect(sweep(store)) == [orphan]
    assert {path: file_sha256(path) for path in lake.rglob("*") if path.is_file()} == before


@pytest.fixture(params=["local", "moto", "rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return ObjectStore(tmp_path / "out")
    server = request.getfixturevalue(f"{request.param}_s3")
    return ObjectStore(server.new_bucket() + "/out", server.settings())


@pytest.fixture
def ledger(store: ObjectStore, tmp_path: Path) -> Ledger:
    return Ledger(store, tmp_path / "commits.sqlite")


def facts(store: ObjectStore, attempt: str = "000001-1", video: str = VIDEO) -> str:
    key = facts_key("masks", "night", video, attempt)
    store.put_atomic(key, b"facts")
    return key


def commit(ledger: Ledger, key: str, parent: int = 0, video: str = VIDEO) -> Commit:
    return ledger.commit(
        video, parent=parent, work_key=key, video_uri="v.mp4", drop="night", run_id="run", attempt=1,
        files=[FileRecord("masks", key, 7, 5, "00")], started_at=datetime.now(UTC),
    )  # fmt: skip


def test_what_was_committed_since_somebody_looked_stays(store: ObjectStore, ledger: Ledger) -> None:
    commit(ledger, facts(store, video="ef" * 32), video="ef" * 32)
    taken, left = facts(store), facts(store, "000001-2")
    other = facts(store, video="ab" * 32)
    for layer in ("labels", "review"):
        store.put_atomic(derived_key(layer, "night", VIDEO), labels(1))
    sweeper = sweep(store, ledger)
    garbage = sweeper.look()
    assert {taken, left, other} < {one.key for one in garbage.orphans}
    commit(ledger, taken)
    assert {one.key for one in sweeper.remove(garbage.orphans)} == {left, other}
    assert store.exists(taken)
    assert store.exists(derived_key("labels", "night", VIDEO))


def test_what_is_committed_while_somebody_looks_stays(
    store: ObjectStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are listed before the commits are read, never the other way round."""
    key, staged = facts(store), ObjectStore.staged

    def late(self: ObjectStore) -> Iterator[Staged]:  # is asked for when the layers are listed
        commit(ledger, key)
        monkeypatch.undo()
        return staged(self)

    monkeypatch.setattr(ObjectStore, "staged", late)
    assert sweep(store, ledger).look().orphans == ()


def test_what_an_attempt_under_way_has_written_stays_whatever_its_age(store: ObjectStore, ledger: Ledger) -> None:
    work = WorkLog(store, DropSettings(lease_seconds=30))
    attempt = work.begin(Item("v.mp4", None, "night", "1" * 64), "run")
    assert attempt is not None
    with attempt:
        key = facts(store)
        half = unfinished(store, "masks/drop=night/x.parquet") if "://" not in store.url else []
        garbage = sweep(store, ledger).look()
        assert (garbage.orphans, garbage.kept_young) == ((), 1 + len(half))
    assert [one.key for one in sweep(store, ledger).look().orphans] == sorted([key, *half])


def unfinished(store: ObjectStore, key: str) -> list[str]:
    """Begin to write an object and leave it so; the keys by which the store tells of it."""
    path = store.path(key)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.{'0' * 32}.tmp").write_bytes(b"half of i")
    else:
        backend: Any = store._backend
        backend.call("create_multipart_upload", key, backend.patience())
    return [one.key for one in store.staged()]


def test_what_nobody_published_goes_with_age(store: ObjectStore, ledger: Ledger) -> None:
    if not unfinished(store, "labels/drop=night/x.parquet"):
        return  # this server does not list uploads
    if "://" not in store.url:  # moto says 2010 of each upload
        assert sweep(store, ledger, older_than_seconds=LIMIT_SECONDS).look().kept_young == 1
    sweeper = sweep(store, ledger)
    (one,) = sweeper.look().orphans
    assert one.reason in ("upload that never ended", "temporary file of a writer that is gone")
    assert sweeper.remove([one]) == [one]
    assert list(store.staged()) == []


def test_a_row_that_only_sql_knows_is_a_commit(rclone_s3: Any, tmp_path: Path) -> None:
    """Its writer died before it wrote the JSON."""
    store = ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings())
    ledger = Ledger(store, tmp_path / "commits.sqlite")
    key = facts(store)
    commit(ledger, key)
    store.delete(commit_key(VIDEO, 1))
    assert sweep(store, ledger).look().orphans == ()
    assert store.exists(commit_key(VIDEO, 1))


@pytest.mark.parametrize("wrong_by", [-86_400.0, 86_400.0])
def test_age_goes_by_the_stores_clock(
    store: ObjectStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, wrong_by: float
) -> None:
    facts(store)
    real = time.time
    monkeypatch.setattr("pipeline.work.time.time", lambda: real() + wrong_by)
    found = sweep(store, ledger, older_than_seconds=LIMIT_SECONDS).look()
    assert (found.orphans, found.kept_young) == ((), 1)
    assert len(sweep(store, ledger).look().orphans) == 1


def damaged(store: ObjectStore) -> str:
    store.put_atomic(commit_key(VIDEO, 1), b"{")
    return "a readable commit"


def of_another(store: ObjectStore) -> str:
    store.put_atomic(commit_key("ab" * 32, 1), store.get(commit_key(VIDEO, 1)))
    return "the commit of its name"


def without_the_first(store: ObjectStore) -> str:
    body = store.get(commit_key(VIDEO, 1)).replace(b'"generation": 1', b'"generation": 2')
    store.put_atomic(commit_key(VIDEO, 2), body)
    store.delete(commit_key(VIDEO, 1))
    return "none, and later ones"


def with_something_else(store: ObjectStore) -> str:
    store.put_atomic("commits/backup.json", b"{}")
    return "nothing but commits"


def without_any(store: ObjectStore) -> str:
    store.put_atomic(derived_key("labels", "night", VIDEO), labels(1))
    store.delete(commit_key(VIDEO, 1))
    return "commits beside labels"


@pytest.mark.parametrize("spoil", [damaged, of_another, without_the_first, with_something_else, without_any])
def test_where_commits_cannot_be_trusted_nothing_goes(tmp_path: Path, spoil: Callable[[ObjectStore], str]) -> None:
    store = ObjectStore(tmp_path / "out")
    ledger = Ledger(store)
    commit(ledger, facts(store))
    facts(store, "000009-1")
    before = sweep(store)
    orphans = before.look().orphans
    assert len(orphans) == 1
    said = spoil(store)
    left = store.list()
    with pytest.raises(StorageError, match=said):
        sweep(store).look()
    if spoil is damaged:
        with pytest.raises(StorageError, match=said):
            before.remove(orphans)
        assert store.list() == left


def test_files_of_a_video_that_is_done_on_record_stay_without_its_commit(tmp_path: Path) -> None:
    """Somebody lost a commit: its files are what it can be restored from."""
    store = ObjectStore(tmp_path / "out")
    commit(Ledger(store), facts(store))
    lost = facts(store, video="ab" * 32)
    work = WorkLog(store, DropSettings())
    work.put(work.done_key(Item("v", None, "night", "1" * 64), "ab" * 32), {})
    assert collect(sweep(store)) == []
    assert store.exists(lost)


def test_records_of_attempts_go_once_the_work_is_done(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "out")
    work = WorkLog(store, DropSettings(lease_seconds=30))
    commit(Ledger(store), facts(store))
    done, failing = (Item("v", None, "night", str(number) * 64) for number in (1, 2))
    for item in (done, failing):
        work.put(work.attempt_key(item, "0-1", "failed"), {"error": "x"})
    work.put(work.done_key(done, VIDEO), {})
    assert collect(sweep(store)) == [work.attempt_key(done, "0-1", "failed")]
    assert work.standing(done).done == VIDEO
    assert work.standing(failing).counted == 1


def test_what_could_not_be_removed_is_told_and_the_rest_goes(
    store: ObjectStore, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(ledger, facts(store))
    stuck, other = facts(store, video="ab" * 32), facts(store, video="ef" * 32)
    delete = ObjectStore.delete

    def refuse(self: ObjectStore, key: str) -> None:
        if key == stuck:
            raise StorageError("to delete it", "no leave", "ask for it")
        delete(self, key)

    sweeper = sweep(store, ledger)
    orphans = sweeper.look().orphans
    monkeypatch.setattr(ObjectStore, "delete", refuse)
    with pytest.raises(StorageError, match="no leave"):
        sweeper.remove(orphans)
    assert store.exists(stuck)
    assert not store.exists(other)


def test_workers_lose_nothing_to_a_sweep_that_never_stops(tmp_path: Path) -> None:
    """Neither while they write, nor between their files and the commit, nor right behind it."""
    store = ObjectStore(tmp_path / "out")
    work, ledger, busy = WorkLog(store, DropSettings(lease_seconds=30)), Ledger(store), threading.Event()
    commit(ledger, facts(store))

    def label(number: int) -> None:
        video_id = f"{number:064x}"
        item = Item(f"{number}.mp4", None, "night", video_id)
        attempt = work.begin(item, "run")
        assert attempt is not None
        with attempt:
            key = facts(store, video=video_id)
            time.sleep(0.2)  # the next layer; old by then, as the sweep sees it
            commit(ledger, key, video=video_id)
            for layer in ("labels", "review"):
                store.put_atomic(derived_key(layer, "night", video_id), labels(1))
            work.put(work.done_key(item, video_id), {})

    def sweeping() -> int:
        rounds = 0
        while not busy.is_set():
            collect(sweep(store, older_than_seconds=0.1))
            rounds += 1
        return rounds

    with ThreadPoolExecutor(3) as pool:
        sweeper = pool.submit(sweeping)
        try:
            list(pool.map(label, range(1, 17)))
        finally:
            busy.set()
        assert sweeper.result() > 3
    commits = list(ledger.read_all())
    assert len(commits) == 17
    for one in commits:
        assert store.exists(one.files[0].key)
        assert one.video_id == VIDEO or store.exists(derived_key("labels", "night", one.video_id))
