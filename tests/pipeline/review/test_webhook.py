"""The webhook of new items: told once, in the background, with retries, and never in the way."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.review.queue import Queue
from pipeline.review.webhook import Webhook
from pipeline.settings import ReviewSettings
from pipeline.storage.objects import ObjectStore

from .queueing import fill


class Hook(HTTPServer):
    """Answers with the statuses it was given, then with 200, and keeps what was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses: list[int] = []
        self.got: list[dict[str, object]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/secret-path"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Hook)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == 200:
            self.server.got.append(json.loads(body))
        self.send_response(status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_new_items_are_told_by_drop_with_a_cursor_of_the_feed(hook: Hook, tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "out")
    fill(store, videos=1, stretches=2, drop="day")
    queue = Queue(tmp_path / "q.sqlite", store.identity, ReviewSettings(webhook_url=hook.url))
    queue.sync(store)
    queue.sync(store)
    queue.close()
    assert hook.got == [{"event": "items.added", "count": 2, "drop": "day", "cursor": 2}]


def test_passing_errors_are_tried_again_and_lasting_ones_are_not(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    hook.statuses = [503, 429]
    webhook = Webhook(hook.url, pause_seconds=0.01)
    webhook.tell({"event": "first"})
    webhook.close()
    assert hook.got == [{"event": "first"}]
    hook.statuses = [404, 200]
    webhook = Webhook(hook.url, pause_seconds=0.01)
    webhook.tell({"event": "second"})
    webhook.tell({"event": "third"})
    webhook.close()
    assert hook.got == [{"event": "first"}, {"event": "third"}]
    assert "not told of second: status 404" in caplog.text
    assert "secret-path" not in caplog.text


def test_a_hook_that_hangs_or_is_gone_holds_no_sync_up(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "out")
    fill(store, stretches=1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        queue = Queue(tmp_path / "q.sqlite", store.identity, ReviewSettings(webhook_url=url))
        begun = time.monotonic()
        assert queue.sync(store).added == 1
        assert time.monotonic() - begun < 2
    for url in ("http://127.0.0.1:9/", "no address", "ftp://x/"):
        webhook = Webhook(url, pause_seconds=0.0)
        webhook.tell({"event": "x"})
        webhook.close()
