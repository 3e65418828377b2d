"""Object stores: whole or not at all, the first writer wins, errors that one can act on."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.errors import DiskSpaceError, StorageError, UnavailableError
from pipeline.settings import StorageSettings
from pipeline.storage import local
from pipeline.storage.objects import Capabilities, ObjectStore


@pytest.fixture(params=["local", "rclone", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return ObjectStore(tmp_path / "out")
    server = request.getfixturevalue(f"{request.param}_s3")
    return ObjectStore(server.new_bucket() + "/some/prefix", server.settings())


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_is_put_comes_back(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(os.urandom(300_000))
    store.put_atomic("a/b.bin", source)
    store.put_atomic("a/c d=é.txt", b"old")
    store.put_atomic("a/c d=é.txt", b"new")
    assert store.get("a/b.bin") == source.read_bytes()
    assert store.get("a/c d=é.txt") == b"new"
    assert store.list() == store.list("a/") == ["a/b.bin", "a/c d=é.txt"]
    assert store.list("nothing/") == []
    assert store.exists("a/b.bin")
    assert not store.exists("a/b.bi")
    with store.open("a/b.bin") as file:
        file.seek(1000)
        assert file.read(10) == source.read_bytes()[1000:1010]
    copy = tmp_path / "copy.bin"
    assert store.get_file("a/b.bin", copy) == hashlib.sha256(source.read_bytes()).hexdigest()
    assert copy.read_bytes() == source.read_bytes()
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert store.list() == ["a/c d=é.txt"]


def test_a_missing_object_is_a_storage_error(store: ObjectStore) -> None:
    with pytest.raises(StorageError, match="nothing there"):
        store.get("not/here.json")


def test_the_probe_tells_and_leaves_nothing(store: ObjectStore, request: pytest.FixtureRequest) -> None:
    ignores = "rclone" in request.node.name
    assert store.probe_conditional_put() is not ignores
    assert store.list() == []


def test_what_a_store_can_do_is_tried_and_told_once_per_process(
    store: ObjectStore, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pipeline.storage.objects")
    knows = "rclone" not in request.node.name
    settings = getattr(store._backend, "_settings", None)
    assert not store.known_conditional
    for again in (store, ObjectStore(store.url, settings)):
        assert again.capabilities() == Capabilities(create=knows, replace=knows, fresh_listing=True)
        assert again.known_conditional is knows
    assert [record.levelname for record in caplog.records if store.url in record.getMessage()] == ["INFO"]
    if (folder := store.path("x")) is not None:
        assert list(folder.parent.iterdir()) == []


def test_a_probe_of_a_dead_process_disturbs_nobody(store: ObjectStore) -> None:
    store.put_atomic("probes/0123/object", b"first")
    assert store.capabilities().fresh_listing
    assert store.list() == ["probes/0123/object"]


def test_a_listing_that_lags_is_said(moto_s3: Any, caplog: pytest.LogCaptureFixture) -> None:
    store = ObjectStore(moto_s3.new_bucket(), moto_s3.settings())
    store._backend.entries = lambda prefix: iter(())  # type: ignore[method-assign]
    assert not store.capabilities().fresh_listing
    assert "lag behind" in caplog.text


def test_what_dead_writers_left_is_listed_with_its_age(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    store.put_atomic("labels/drop=a/v.parquet", b"whole")
    left = [tmp_path / f"labels/drop=a/.v.parquet.{digit * 32}.tmp" for digit in "ab"]
    for path in left:
        path.write_bytes(b"half")
    os.utime(left[0], (1, 1))
    others = [tmp_path / ".hidden.tmp", tmp_path / "labels/drop=a/.v.parquet.tmp", tmp_path / "notes.tmp"]
    for path in others:
        path.write_text("mine")
        os.utime(path, (1, 1))
    assert {(one.key, one.size_bytes, one.upload) for one in store.staged()} == {
        (path.relative_to(tmp_path).as_posix(), 4, None) for path in left
    }
    old = {one.key for one in store.staged() if one.modified == 1}
    assert old == {left[0].relative_to(tmp_path).as_posix()}


def test_deleting_the_last_object_of_a_folder_removes_the_folder(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "out")
    for key in ("a/b/c/x", "a/y"):
        store.put_atomic(key, b"1")
    store.delete("a/b/c/x")
    assert sorted(path.name for path in (tmp_path / "out" / "a").iterdir()) == ["y"]
    store.delete("a/y")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", ["local", "moto"])
def test_of_many_writers_one_wins(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "local":
        store = ObjectStore(tmp_path)
    else:
        server = request.getfixturevalue("moto_s3")
        store = ObjectStore(server.new_bucket(), server.settings())
    for race in range(10):
        gate = threading.Barrier(8)

        def write(number: int, race: int = race, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return store.put_if_absent(f"race/{race}", str(number).encode())

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(write, range(8)))
        assert sum(won) == 1
        assert store.get(f"race/{race}") == str(won.index(True)).encode()
    assert len(store.list()) == 10


def test_replace_needs_the_version_that_was_seen(store: ObjectStore) -> None:
    assert store.version("x") is None
    assert store.replace("x", b"1", None)
    seen = store.version("x")
    assert not store.replace("x", b"2", None)
    assert store.replace("x", b"3 longer", seen)
    assert not store.replace("x", b"4", seen)
    assert store.get("x") == b"3 longer"


def test_a_server_with_if_match_refuses_a_rival_between_look_and_write(moto_s3: Any) -> None:
    store = ObjectStore(moto_s3.new_bucket(), moto_s3.settings())
    store.put_atomic("x", b"1")
    seen = store.version("x")
    store.put_atomic("x", b"rival")
    store._backend.version = lambda key: seen  # type: ignore[method-assign]
    assert not store.replace("x", b"2", seen)
    assert store.get("x") == b"rival"


def test_large_files_go_up_in_parts(rclone_s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.s3.SINGLE_PUT_BYTES", 2**20)
    monkeypatch.setattr("pipeline.storage.s3_parts.PART_BYTES", 5 * 2**20)
    store = ObjectStore(rclone_s3.new_bucket(), rclone_s3.settings())
    source = tmp_path / "large.bin"
    source.write_bytes(os.urandom(11 * 2**20 + 17))
    store.put_atomic("large", source)
    assert store.get("large") == source.read_bytes()
    assert store.replace("large", source, store.version("large"))


@pytest.mark.parametrize("write", ["put_atomic", "put_if_absent", "replace"])
@pytest.mark.parametrize("broken", ["fsync", "publish"])
def test_a_local_write_that_fails_leaves_the_old_object_and_nothing_else(
    write: str, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(tmp_path)
    store.put_atomic("a/x", b"old")
    key = "a/y" if write == "put_if_absent" else "a/x"
    arguments = (store.version("a/x"),) if write == "replace" else ()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fsync",) if broken == "fsync" else ("link", "replace"):
        monkeypatch.setattr(local.os, name, full)
    with pytest.raises(DiskSpaceError, match="full disk"):
        getattr(store, write)(key, b"new", *arguments)
    assert files_below(tmp_path) == ["a/x"]
    assert (tmp_path / "a/x").read_bytes() == b"old"


def test_put_if_absent_works_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(local.os, "link", no_links)
    store = ObjectStore(tmp_path)
    assert store.put_if_absent("x", b"1")
    assert not store.put_if_absent("x", b"2")
    assert files_below(tmp_path) == ["x"]
    assert store.get("x") == b"1"


def test_hidden_files_of_a_dead_writer_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/.v.parquet.123.tmp").write_bytes(b"half")
    (tmp_path / "labels/v.parquet").write_bytes(b"whole")
    assert ObjectStore(tmp_path).list() == ["labels/v.parquet"]


def test_opening_a_store_makes_nothing(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}/not/yet")
    assert store.list() == []
    assert not (tmp_path / "not").exists()
    assert store.uri("a/b") == f"{tmp_path}/not/yet/a/b"


def test_an_output_that_is_a_file_or_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="choose a folder that you may read and write"):
        ObjectStore(tmp_path / "file").probe_conditional_put()
    with pytest.raises(StorageError, match=r"expected to write /proc/.*; choose a folder"):
        ObjectStore("/proc/nothing").put_atomic("x", b"1")


def test_wrong_keys_a_missing_bucket_and_a_dead_server(moto_s3: Any, rclone_s3: Any) -> None:
    wrong = rclone_s3.settings(secret_access_key="wrong")
    with pytest.raises(StorageError, match="check the keys"):
        ObjectStore(rclone_s3.new_bucket(), wrong).put_atomic("x", b"1")
    with pytest.raises(StorageError, match="bucket nowhere-here exists"):
        ObjectStore("s3://nowhere-here", moto_s3.settings()).put_atomic("x", b"1")
    dead = moto_s3.settings(endpoint_url="http://127.0.0.1:9", retry_seconds=0.2)
    with pytest.raises(UnavailableError, match="check AWS_ENDPOINT_URL"):
        ObjectStore("s3://bucket", dead).put_atomic("x", b"1")


def test_no_credentials_is_said(moto_s3: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    bare = StorageSettings(endpoint_url=moto_s3.endpoint_url, region="us-east-1")
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID"):
        ObjectStore("s3://bucket", bare).put_atomic("x", b"1")


def test_the_usual_variables_are_enough(moto_s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = moto_s3.new_bucket()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", moto_s3.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", moto_s3.secret_access_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_s3.endpoint_url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store = ObjectStore(bucket)
    store.put_atomic("x", b"1")
    assert store.get("x") == b"1"


@pytest.mark.parametrize("url", ["nosuch://bucket/x", "s3://", "s3a://bucket/x", "simplecache::memory://x"])
def test_other_stores_are_refused(url: str) -> None:
    with pytest.raises(StorageError, match="s3://bucket/prefix"):
        ObjectStore(url)


@pytest.mark.parametrize("key", ["", "../x", "a//b", "/etc/x", "a/./b", "a\\b", "a\nb", "a\0b", "a/..", "."])
def test_keys_stay_below_the_root(key: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="relative key"):
        ObjectStore(tmp_path).put_atomic(key, b"1")


_PROBE = """
import sys
from pipeline.storage.objects import ObjectStore
for _ in range(60):
    ObjectStore(sys.argv[1]).probe_conditional_put()
"""


def test_two_processes_may_try_one_folder_at_the_same_time(tmp_path: Path) -> None:
    """Each probe removes its object and the folder that is empty then, under the feet of the other."""
    words = [sys.executable, "-c", _PROBE, str(tmp_path / "out")]
    running = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(2)]
    told = [one.communicate()[1].decode() for one in running]
    assert [one.returncode for one in running] == [0, 0], told


def test_a_server_that_answers_501_to_conditions_is_used_without_them(
    moto_s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.storage.s3 import S3Backend

    class NotImplementedAnswer(Exception):
        response: ClassVar[dict[str, Any]] = {
            "Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}
        }  # fmt: skip

    once = S3Backend.once

    def picky(self: S3Backend, method: str, *words: Any, **arguments: Any) -> Any:
        if "IfMatch" in arguments or "IfNoneMatch" in arguments:
            raise NotImplementedAnswer
        return once(self, method, *words, **arguments)

    monkeypatch.setattr(S3Backend, "once", picky)
    store = ObjectStore(moto_s3.new_bucket(), moto_s3.settings())
    assert store.probe_conditional_put() is False
    assert store.put_if_absent("a", b"1")
    assert not store.put_if_absent("a", b"2")
    version = store.version("a")
    assert store.replace("a", b"3", version)
    assert not store.replace("a", b"4", version)
    assert store.get("a") == b"3"


def unreadable(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A folder that may not be listed, also where tests run as root."""
    scandir = os.scandir

    def refusing(path: Any = ".") -> Any:
        if Path(os.fsdecode(path)) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


@pytest.mark.parametrize("ask", ["list", "entries", "staged"])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    ask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(tmp_path)
    store.put_atomic("commits/a/1.json", b"1")
    store.put_atomic("commits/b/1.json", b"1")
    store.put_atomic("lost+found/x", b"the disk's own")
    unreadable(monkeypatch, tmp_path / "lost+found")
    assert store.list() == ["commits/a/1.json", "commits/b/1.json"]
    unreadable(monkeypatch, tmp_path / "commits/b")
    with pytest.raises(StorageError, match=r"to list .*Permission denied"):
        list(getattr(store, ask)())


@pytest.mark.parametrize("noise", [b"PAR1" + b"\xff" * 40 + b"\x20\0\0\0PAR1", b"no parquet at all"])
def test_a_damaged_object_is_no_outage(store: ObjectStore, noise: bytes) -> None:
    """pyarrow says `OSError` without a number of a footer that makes no sense."""
    import pyarrow.parquet as pq

    store.put_atomic("labels/v.parquet", noise)
    with pytest.raises(StorageError) as caught, store.open("labels/v.parquet") as file:
        pq.read_schema(file)
    assert not isinstance(caught.value, UnavailableError)
    assert store.uri("labels/v.parquet") in str(caught.value)


def test_a_store_that_goes_away_while_one_reads_is_an_outage(moto_s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.storage.s3 import S3Backend

    store = ObjectStore(moto_s3.new_bucket(), moto_s3.settings(retry_seconds=0.1))
    store.put_atomic("large", os.urandom(3 * 2**20))

    def gone(*_: object, **__: object) -> bytes:
        raise TimeoutError

    with store.open("large") as file:
        assert len(file.read(10)) == 10
        monkeypatch.setattr(S3Backend, "_read", gone)
        file.seek(2 * 2**20)
        with pytest.raises(UnavailableError, match=r"within 0\.1 s"):
            file.read()


def test_stores_of_one_server_and_keys_share_a_client(moto_s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (ObjectStore(moto_s3.new_bucket(), moto_s3.settings())._backend for _ in range(2))
    other = ObjectStore(moto_s3.new_bucket(), moto_s3.settings(secret_access_key="other"))._backend
    assert one.fs is two.fs  # type: ignore[attr-defined]
    assert one.fs is not other.fs  # type: ignore[attr-defined]
    monkeypatch.setenv("AWS_PROFILE", "another")
    again = ObjectStore("s3://bucket", moto_s3.settings())._backend
    assert one.fs is not again.fs  # type: ignore[attr-defined]
