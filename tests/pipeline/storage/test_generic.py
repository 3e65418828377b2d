"""Stores that fsspec has a driver for: whole objects, checked reads, retries, a ledger that knows it needs SQL."""

from __future__ import annotations

import hashlib
import os
import random
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DiskSpaceError, StorageError, UnavailableError
from pipeline.ledger import CommitConflict, Ledger
from pipeline.settings import StorageSettings
from pipeline.storage import retry
from pipeline.storage.objects import Capabilities, ObjectStore

VIDEO = "cd" * 32


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "memory":
        return ObjectStore(f"memory://{uuid.uuid4().hex}/out")
    return ObjectStore(f"local://{tmp_path}/out")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.005)


def test_what_is_put_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(os.urandom(2_300_000))
    store.put_atomic("a/b.bin", source)
    store.put_atomic("a/c d=é.txt", b"old")
    store.put_atomic("a/c d=é.txt", b"new")
    assert store.get("a/b.bin") == source.read_bytes()
    assert store.get("a/c d=é.txt") == b"new"
    assert store.list() == store.list("a/") == ["a/b.bin", "a/c d=é.txt"]
    assert store.list("nothing/") == []
    sizes = {one.key: (one.size_bytes, abs(one.modified - time.time()) < 60) for one in store.entries("a/")}
    assert sizes == {"a/b.bin": (2_300_000, True), "a/c d=é.txt": (3, True)}
    assert {one.tag for one in store.entries()} == {store.version(key) for key in store.list()}
    assert store.get_file("a/b.bin", tmp_path / "copy") == hashlib.sha256(source.read_bytes()).hexdigest()
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert store.list() == ["a/c d=é.txt"]
    with pytest.raises(StorageError, match="nothing there"):
        store.get("a/b.bin")
    assert not store.exists("a")


def test_parquet_is_read_in_ranges(store: ObjectStore, tmp_path: Path) -> None:
    table = pa.table({"x": range(100_000), "y": [str(one) for one in range(100_000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=10_000)
    store.put_atomic("t.parquet", tmp_path / "t.parquet")
    with store.open("t.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(7).equals(table.slice(70_000, 10_000))


def test_replace_needs_the_version_that_was_seen(store: ObjectStore) -> None:
    assert store.replace("x", b"1", None)
    seen = store.version("x")
    assert not store.replace("x", b"2", None)
    assert store.replace("x", b"3 longer", seen)
    assert not store.replace("x", b"4", seen)
    assert store.get("x") == b"3 longer"


def test_it_says_that_it_keeps_no_first_writer_and_commits_go_through_sql(store: ObjectStore, tmp_path: Path) -> None:
    assert store.capabilities() == Capabilities(create=False, replace=False, fresh_listing=True)
    assert store.list() == []
    ledger = Ledger(store, tmp_path / "commits.sqlite")
    about: Any = {"work_key": "k", "video_uri": "v", "drop": "d", "files": [], "attempt": 1}
    ledger.commit(VIDEO, parent=0, run_id="a", started_at=datetime.now(UTC), **about)
    with pytest.raises(CommitConflict):
        ledger.commit(VIDEO, parent=0, run_id="b", started_at=datetime.now(UTC), **about | {"work_key": "k2"})
    assert (tmp_path / "commits.sqlite").exists()
    assert ledger.newest_generations() == {VIDEO: 1}


def test_an_unfinished_write_is_hidden_and_swept(store: ObjectStore) -> None:
    store.put_atomic("a/x", b"1")
    store.put_atomic(f"a/.x.{uuid.uuid4().hex}.tmp", b"half")
    assert store.list() == ["a/x"]
    (half,) = store.staged()
    assert half.size_bytes == 4
    assert abs(half.modified - time.time()) < 60
    store.delete(half.key)
    assert list(store.staged()) == []
    assert store.get("a/x") == b"1"


def test_a_failing_write_leaves_the_old_object_and_nothing_else(store: ObjectStore) -> None:
    store.put_atomic("a/x", b"old")
    driver = store._backend._fs  # type: ignore[attr-defined]
    moved = driver.mv

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    driver.mv = full
    with pytest.raises(DiskSpaceError):
        store.put_atomic("a/x", b"new")
    driver.mv = moved
    assert list(store.staged()) == []
    assert store.get("a/x") == b"old"


class Moody:
    """A driver that fails, cuts and stalls at random."""

    def __init__(self, driver: Any, seed: int) -> None:
        self._driver, self._random, self.failures = driver, random.Random(seed), 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._driver, name)
        if name not in ("cat_file", "pipe_file", "put_file", "info", "find", "mv", "rm"):
            return real

        def moody(*words: Any, **more: Any) -> Any:
            mood = self._random.random()
            self.failures += mood < 0.3
            if mood < 0.1:
                raise ConnectionResetError(104, "Connection reset by peer")
            if mood < 0.12:
                time.sleep(3)
            found = real(*words, **more)
            if mood < 0.2:
                raise TimeoutError("nobody knows whether it was done")
            return found[:-1] if mood < 0.3 and name == "cat_file" else found

        return moody


def test_passing_errors_are_waited_out(store: ObjectStore, tmp_path: Path) -> None:
    backend: Any = store._backend
    backend._settings = StorageSettings(retry_seconds=20, stall_seconds=0.3)
    backend._fs = moody = Moody(backend._fs, 5)
    data = os.urandom(2_100_000)
    for number in range(12):
        store.put_atomic(f"a/{number}", data)
        assert store.get(f"a/{number}") == data
    store.get_file("a/3", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    store.delete("a/3")
    assert moody.failures > 5
    backend._fs = moody._driver
    assert store.list() == sorted(f"a/{number}" for number in range(12) if number != 3)


def test_a_driver_that_hangs_or_fails_for_good_is_unavailable_within_the_budget(store: ObjectStore) -> None:
    backend: Any = store._backend
    backend._settings = StorageSettings(retry_seconds=0.3, stall_seconds=0.2)
    for failing in (lambda *_, **__: time.sleep(5), lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no"))):
        backend._fs.info = failing
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=r"within 0\.3 s"):
            store.version("x")
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("az", "adlfs"), ("sftp", "paramiko")])
def test_a_driver_that_is_not_installed_is_named(scheme: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(StorageError, match=f"pip install {package}"):
        ObjectStore(f"{scheme}://bucket/x")
