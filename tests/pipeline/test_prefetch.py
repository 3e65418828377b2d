"""The next video comes while one is labelled; nothing of it is left, however the run ends."""

from __future__ import annotations

import shutil
import threading
from collections import namedtuple
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import pipeline.label
import pipeline.models
from pipeline.cli.label import label_all
from pipeline.drops import Wanted
from pipeline.errors import PromptError, StorageError
from pipeline.prefetch import AHEAD_RESERVE_BYTES, Prefetch
from pipeline.scratch import OWNER
from pipeline.settings import Settings, load_settings
from pipeline.storage import retry

A, B, C = (f"s3://bucket/drop/{name}/clip.mp4" for name in "abc")  # equal names in different folders
Usage = namedtuple("Usage", "total used free")


class Store:
    """An S3 server of this test: every object is its own key, sent in two halves with a gate between."""

    def __init__(self) -> None:
        self.begun = {key: threading.Event() for key in (A, B, C)}
        self.gate = {key: threading.Event() for key in (A, B, C)}
        self.missing: set[str] = set()
        self.broken: set[str] = set()
        self.events: list[str] = []
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._start()

            def do_GET(self) -> None:
                key = self._key()
                store.events.append(f"begin {key}")
                store.begun[key].set()
                body = store.body(key)
                self._start()
                if key in store.broken or key in store.missing:
                    self.close_connection = True
                    return
                with suppress(OSError):
                    self.wfile.write(body[:100])
                    self.wfile.flush()
                    store.gate[key].wait(30)
                    self.wfile.write(body[100:])
                store.events.append(f"end {key}")

            def _key(self) -> str:
                return "s3:/" + self.path.partition("?")[0]

            def _start(self) -> None:
                found = self._key() not in store.missing
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", str(len(store.body(self._key())) if found else 0))
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.port = self._server.server_port

    def body(self, key: str) -> bytes:
        return (key * 50).encode()

    def open_all(self) -> None:
        for gate in self.gate.values():
            gate.set()

    def close(self) -> None:
        self.open_all()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(retry, "FIRST_PAUSE_SECONDS", 0.002)
    server = Store()
    yield server
    server.close()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


@pytest.fixture
def settings(store: Store, scratch: Path) -> Settings:
    changes = {
        "storage.endpoint_url": f"http://127.0.0.1:{store.port}", "storage.region": "us-east-1",
        "storage.access_key_id": "a", "storage.secret_access_key": "b", "output.scratch_dir": str(scratch),
        "storage.retry_seconds": 0.5,
    }  # fmt: skip
    return load_settings(None, changes)


def _files(folder: Path) -> list[Path]:
    """All files but the locks of scratch folders."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != OWNER] if folder.exists() else []


def test_the_next_video_comes_while_this_one_is_worked_on(store: Store, settings: Settings, scratch: Path) -> None:
    with Prefetch([A, B, C], settings) as ahead:
        store.gate[A].set()
        with ahead.video(A) as first:
            assert store.begun[B].wait(10)  # the first video's work is going on: this block
            store.events.append("work on A ends")
            assert first.path.read_bytes() == store.body(A)
        store.gate[B].set()
        with ahead.video(B) as second:
            assert second.path.read_bytes() == store.body(B)
            assert second.uri == B
            assert store.begun[C].wait(10)
            assert not first.path.exists()
        assert store.events.index(f"begin {B}") < store.events.index("work on A ends") < store.events.index(f"end {B}")
        assert store.events.count(f"begin {B}") == 1
        store.gate[C].set()
        with ahead.video(C) as third:
            assert third.path.read_bytes() == store.body(C)
    assert list(scratch.iterdir()) == []


def test_never_more_than_one_video_ahead(store: Store, settings: Settings) -> None:
    store.open_all()
    with Prefetch([A, B, C], settings) as ahead, ahead.video(A):
        assert store.begun[B].wait(10)
        assert not store.begun[C].wait(0.5)


def test_an_error_ahead_is_the_videos_own_and_comes_at_its_turn(
    store: Store, settings: Settings, scratch: Path
) -> None:
    store.open_all()
    store.broken = {B}
    with Prefetch([A, B, C], settings) as ahead:
        with ahead.video(A):
            assert store.begun[B].wait(10)
        with pytest.raises(StorageError, match=r"b/clip\.mp4"), ahead.video(B):
            pytest.fail("there is no such video")
        with ahead.video(C) as third:
            assert third.path.read_bytes() == store.body(C)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_a_run_that_ends_in_the_middle_calls_the_download_off(
    store: Store, settings: Settings, scratch: Path, error: type[BaseException]
) -> None:
    store.gate[A].set()

    def work() -> None:
        with Prefetch([A, B], settings) as ahead, ahead.video(A):
            assert store.begun[B].wait(10)  # its gate stays shut
            raise error

    with pytest.raises(error):
        work()
    assert list(scratch.iterdir()) == []
    assert not [one for one in threading.enumerate() if one.name == "masksieve-prefetch"]


def test_a_video_that_is_refused_before_its_turn_is_dropped(store: Store, settings: Settings, scratch: Path) -> None:
    store.open_all()
    with Prefetch([A, B, C], settings) as ahead:
        with ahead.video(A):
            assert store.begun[B].wait(10)
        with ahead.video(C) as third:  # B had no good prompts, nobody entered it
            assert third.path.read_bytes() == store.body(C)
            assert [path.read_bytes() for path in _files(scratch)] == [store.body(C)]


def test_a_second_try_of_a_video_keeps_the_next_one(store: Store, settings: Settings) -> None:
    store.open_all()
    with Prefetch([A, B], settings) as ahead:
        for _ in range(2):
            with ahead.video(A) as first:
                assert first.path.read_bytes() == store.body(A)
                assert store.begun[B].wait(10)
        with ahead.video(B) as second:
            assert second.path.read_bytes() == store.body(B)
    assert store.events.count(f"begin {B}") == 1


def test_without_room_for_two_the_next_one_waits_for_its_turn(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.open_all()
    free = AHEAD_RESERVE_BYTES  # enough for one, not for one ahead
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10 * free, 9 * free, free))
    with Prefetch([A, B], settings) as ahead:
        with ahead.video(A):
            assert not store.begun[B].wait(0.5)
        with ahead.video(B) as second:
            assert second.path.read_bytes() == store.body(B)


def test_local_videos_are_left_alone(tmp_path: Path, scratch: Path, settings: Settings) -> None:
    videos = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for video in videos:
        video.write_bytes(video.name.encode())
    with Prefetch([str(video) for video in videos], settings) as ahead:
        for video in videos:
            with ahead.video(str(video)) as source:
                assert source.path == video
    assert not scratch.exists()
    assert all(video.exists() for video in videos)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, store: Store) -> list[str]:
    """Stand in for the work on a video that was brought: b meets what `seen` says."""
    seen: list[str] = []

    def label(video: str, prompts: Any, out: str, settings: Settings, *, source: Any, **more: Any) -> Any:
        if prompts in (None, "bad"):
            raise PromptError("a foreground point", "none", "add one")
        with source as local:
            assert local.path.read_bytes() == store.body(video)
            seen.append(video)
            if prompts == "stop":
                assert store.begun[C].wait(10)
                raise KeyboardInterrupt
            from pipeline.cli.label import failed_report

            return failed_report(video, "")

    monkeypatch.setattr(pipeline.label, "label_video", label)
    monkeypatch.setattr(pipeline.models, "load_model", lambda name, **more: name)
    return seen


def test_the_command_prefetches_and_leaves_nothing(
    job: list[str], store: Store, settings: Settings, scratch: Path
) -> None:
    store.open_all()
    store.missing = {B}
    wanted = [
        Wanted(A, "good"),
        Wanted("gone", None, StorageError("a", "b", "c")),
        Wanted(B, "good"),
        Wanted(C, "good"),
    ]
    reports, interrupted = label_all(wanted, "out", settings)
    assert not interrupted
    assert [report.video for report in reports] == [A, "gone", B, C]
    assert "nothing there" in (reports[2].error or "")
    assert job == [A, C]
    assert list(scratch.iterdir()) == []


def test_an_interrupted_command_leaves_nothing(job: list[str], store: Store, settings: Settings, scratch: Path) -> None:
    store.gate[A].set()
    store.gate[B].set()
    reports, interrupted = label_all([Wanted(A, "good"), Wanted(B, "stop"), Wanted(C, "good")], "out", settings)
    assert interrupted
    assert len(reports) == 1
    assert job == [A, B]
    assert list(scratch.iterdir()) == []


def test_videos_that_cannot_be_tried_are_not_downloaded(
    job: list[str], store: Store, settings: Settings, scratch: Path
) -> None:
    store.open_all()
    label_all([Wanted(A, "good"), Wanted(B, None), Wanted(C, "bad")], "out", settings)
    assert not store.begun[B].is_set()
    assert list(scratch.iterdir()) == []
