"""Downloads: whole and verified, or an error that one can act on and nothing on disk."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import DiskSpaceError, StorageError, UnavailableError
from pipeline.settings import StorageSettings
from pipeline.storage import download, retry
from pipeline.storage.objects import ObjectStore

DATA = os.urandom(3 * 2**20 + 17)
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
Usage = namedtuple("Usage", "total used free")


@dataclass
class Bad:
    """How the server of `bad_server` misbehaves, and what it was asked for."""

    data: bytes = DATA
    tag: str = MD5
    headers: dict[str, str] = field(default_factory=dict)
    head_length: int | None = None
    cut_after: list[int] = field(default_factory=list)  # bytes of each answer in turn, then whole answers
    cut_always: int | None = None
    ranges: bool = True
    silent: bool = False
    refuse: list[int] = field(default_factory=list)  # statuses of the next GETs
    on_get: Callable[[Bad], None] = lambda bad: None
    asked: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bad: Bad

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(200, len(self.bad.data) if self.bad.head_length is None else self.bad.head_length, {})

    def do_GET(self) -> None:
        bad = self.bad
        bad.asked.append(self.headers.get("Range", ""))
        bad.on_get(bad)
        if bad.refuse:
            self._answer(bad.refuse.pop(0), 0, {})
            return
        if self.headers.get("If-Match", f'"{bad.tag}"') != f'"{bad.tag}"':
            self._answer(412, 0, {})
            return
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        start = start if bad.ranges else 0
        body = bad.data[start:]
        part = {"Content-Range": f"bytes {start}-{len(bad.data) - 1}/{len(bad.data)}"} if start else {}
        self._answer(206 if part else 200, len(body), part)
        if bad.silent:
            self.wfile.write(body[:1000])
            self.wfile.flush()
            time.sleep(20)
        cut = bad.cut_after.pop(0) if bad.cut_after else bad.cut_always
        with suppress(OSError):
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            time.sleep(0.02)  # what a client has not read by then is lost to it
            self.connection.close()
            self.close_connection = True

    def _answer(self, status: int, length: int, more: dict[str, str]) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(length), "ETag": f'"{self.bad.tag}"', **self.bad.headers, **more}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def bad() -> Bad:
    return Bad()


@pytest.fixture
def store(bad: Bad, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A bucket on a server of this test that does what `bad` says."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.002)
    handler = type("Handler", (_Handler,), {"bad": bad})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    settings = {
        "endpoint_url": f"http://127.0.0.1:{server.server_port}", "region": "us-east-1", "access_key_id": "a",
        "secret_access_key": "b",
    }  # fmt: skip
    yield ObjectStore("s3://bucket", StorageSettings.model_validate(settings))
    server.shutdown()
    server.server_close()


def impatient(store: ObjectStore) -> None:
    """Little patience, for what never gets better."""
    backend: Any = store._backend
    backend._settings = backend._settings.model_copy(update={"retry_seconds": 1.0, "stall_seconds": 0.5})


@pytest.mark.parametrize("server", ["rclone", "moto"])
def test_real_servers_give_a_checksum_and_the_file_comes_whole(
    server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    s3_server = request.getfixturevalue(f"{server}_s3")
    real = ObjectStore(s3_server.new_bucket() + "/deep er/prefix", s3_server.settings())
    for name, data in (("video é.mp4", DATA), ("empty.mp4", b"")):
        real.put_atomic(name, data)
        assert real.get_file(name, tmp_path / "copy") == hashlib.sha256(data).hexdigest()
        assert (tmp_path / "copy").read_bytes() == data
        facts = real._backend.facts(name)
        assert facts.size_bytes == len(data)
        assert facts.md5 == hashlib.md5(data, usedforsecurity=False).hexdigest()
    with pytest.raises(StorageError, match="nothing there"):
        real.get_file("missing.mp4", tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def _client(server: Any) -> Any:
    import boto3

    keys = {"aws_access_key_id": server.access_key_id, "aws_secret_access_key": server.secret_access_key}
    return boto3.client("s3", endpoint_url=server.endpoint_url, region_name="us-east-1", **keys)


@pytest.mark.parametrize("server", ["rclone", "moto"])
def test_an_upload_in_parts_comes_whole_too(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from boto3.s3.transfer import TransferConfig

    s3_server = request.getfixturevalue(f"{server}_s3")
    bucket, source = s3_server.new_bucket(), tmp_path / "large.bin"
    source.write_bytes(DATA * 2)
    parts = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
    _client(s3_server).upload_file(str(source), bucket.removeprefix("s3://"), "large", Config=parts)
    real = ObjectStore(bucket, s3_server.settings())
    if server == "moto":
        assert real._backend.facts("large").md5 is None
    assert real.get_file("large", tmp_path / "copy") == hashlib.sha256(DATA * 2).hexdigest()


def test_a_stored_sha256_is_known(moto_s3: Any, tmp_path: Path) -> None:
    bucket = moto_s3.new_bucket()
    _client(moto_s3).put_object(Bucket=bucket.removeprefix("s3://"), Key="x", Body=DATA, ChecksumAlgorithm="SHA256")
    real = ObjectStore(bucket, moto_s3.settings())
    assert real._backend.facts("x").sha256 == SHA256
    assert real.get_file("x", tmp_path / "x") == SHA256


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_where_it_broke(
    bad: Bad, store: ObjectStore, tmp_path: Path, ranges: bool
) -> None:
    bad.cut_after, bad.ranges = [1_500_000, 200_000, 0], ranges
    assert store.get_file("x", tmp_path / "x") == SHA256
    assert (tmp_path / "x").read_bytes() == DATA
    assert len(bad.asked) == 4
    assert bad.asked[0] == ""
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in bad.asked[1:]]
    assert starts == sorted(starts)
    assert 0 < starts[0] <= 1_500_000


def test_a_connection_that_always_breaks_ends_within_the_budget_with_nothing_left(
    bad: Bad, store: ObjectStore, tmp_path: Path
) -> None:
    impatient(store)
    bad.cut_always = 1
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=rf"{len(DATA)} bytes of s3://bucket/x, got \d+, \d+ breaks in a row"):
        store.get_file("x", tmp_path / "x")
    assert 1.0 <= time.monotonic() - began < 4
    assert len(bad.asked) > 3
    assert list(tmp_path.iterdir()) == []


def test_the_budget_is_for_the_time_without_progress(
    bad: Bad, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: None))
    patience: Any = store._backend.patience()
    bad.cut_always = 450_000  # of which a reader that is slow loses some: seven answers or more

    def long_pause(bad: Bad) -> None:
        clock[0] += patience.retry_seconds / 3

    bad.on_get = long_pause
    assert store.get_file("x", tmp_path / "x") == SHA256
    assert clock[0] > 2 * patience.retry_seconds


def test_a_server_that_is_busy_for_a_while_is_waited_for(bad: Bad, store: ObjectStore, tmp_path: Path) -> None:
    bad.cut_after, bad.on_get = [1000], lambda bad: bad.refuse.append(503) if len(bad.asked) == 2 else None
    assert store.get_file("x", tmp_path / "x") == SHA256


def test_a_server_that_falls_silent_is_given_up(bad: Bad, store: ObjectStore, tmp_path: Path) -> None:
    impatient(store)
    bad.silent = True
    with pytest.raises(UnavailableError, match=r"nothing for 0\.5 s"):
        store.get_file("x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("says", [len(DATA) - 1000, len(DATA) + 1000])
def test_a_store_that_lies_about_the_length_is_told(bad: Bad, store: ObjectStore, tmp_path: Path, says: int) -> None:
    impatient(store)
    bad.head_length = says
    with pytest.raises(StorageError, match=f"expected {says} bytes"):
        store.get_file("x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("which", ["md5", "sha256"])
def test_a_damaged_copy_is_refused_and_named(bad: Bad, store: ObjectStore, tmp_path: Path, which: str) -> None:
    if which == "md5":
        bad.tag = "0" * 32
    else:
        bad.tag = "in-parts-2"
        bad.headers = {"x-amz-checksum-sha256": base64.b64encode(b"\0" * 32).decode()}
    with pytest.raises(StorageError, match=r"(MD5|SHA-256) 0{32}.* damaged copy"):
        store.get_file("x", tmp_path / "x")
    assert len(bad.asked) == download.READINGS
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "headers", [{"x-amz-server-side-encryption": "aws:kms"}, {"x-amz-server-side-encryption-customer-algorithm": "A"}]
)
def test_an_etag_that_is_no_md5_is_not_taken_for_one(
    bad: Bad, store: ObjectStore, tmp_path: Path, headers: dict[str, str]
) -> None:
    bad.tag, bad.headers = "0" * 32, headers
    assert store.get_file("x", tmp_path / "x") == SHA256


def test_an_object_that_is_replaced_meanwhile_is_read_anew(bad: Bad, store: ObjectStore, tmp_path: Path) -> None:
    new = DATA[::-1]

    def replace(bad: Bad) -> None:
        if len(bad.asked) == 2:
            bad.data, bad.tag = new, hashlib.md5(new, usedforsecurity=False).hexdigest()

    bad.cut_after, bad.on_get = [100_000], replace
    assert store.get_file("x", tmp_path / "x") == hashlib.sha256(new).hexdigest()
    assert (tmp_path / "x").read_bytes() == new


@pytest.mark.parametrize("kind", ["s3", "local"])
def test_too_little_disk_is_said_with_figures_before_a_byte_is_read(
    bad: Bad, store: ObjectStore, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "local":
        store = ObjectStore(tmp_path / "store")
        store.put_atomic("x", DATA)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    (tmp_path / "to").mkdir()
    with pytest.raises(DiskSpaceError, match=r"3\.1 MB of scratch disk for .*x, and 67 MB in reserve, got 1\.0 MB"):
        store.get_file("x", tmp_path / "to" / "x")
    assert bad.asked == []
    assert list((tmp_path / "to").iterdir()) == []


def test_another_thread_can_call_a_download_off(bad: Bad, store: ObjectStore, tmp_path: Path) -> None:
    stop, seen = threading.Event(), threading.Event()
    bad.silent, bad.on_get = True, lambda bad: seen.set()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            store.get_file("x", tmp_path / "x", stop=stop)
        except BaseException as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert seen.wait(10)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(errors[0], StorageError)
    assert list(tmp_path.iterdir()) == []
