"""Tells a webhook of new items, in the background: a hook that is slow or gone holds nothing up and breaks nothing."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

import httpx

from pipeline.storage.retry import reason

log = logging.getLogger(__name__)

TRIES = 5
FIRST_PAUSE_SECONDS = 0.5
REQUEST_SECONDS = 10.0
MOST_WAITING = 1000
PASSING = (408, 425, 429)


class Webhook:
    """Sends JSON by POST. What it cannot deliver is dropped with a warning: the feed has it all the same.

    Args:
        url: of the hook; not named in messages, since it may be a secret.
        pause_seconds: before the second try, twice as long before each further one.
    """

    def __init__(self, url: str, pause_seconds: float = FIRST_PAUSE_SECONDS) -> None:
        self._url, self._pause_seconds = url, pause_seconds
        self._waiting: queue.Queue[Mapping[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="masksieve-webhook", daemon=True)
        self._thread.start()

    def tell(self, event: Mapping[str, Any]) -> None:
        """Send an event some time soon; returns at once."""
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            log.warning("a webhook falls behind: an event is dropped")

    def close(self, wait_seconds: float = 5.0) -> None:
        """Deliver what waits, for at most so long."""
        end = time.monotonic() + wait_seconds
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        with httpx.Client(timeout=REQUEST_SECONDS) as client:
            while (event := self._waiting.get()) is not None:
                self._deliver(client, event)

    def _deliver(self, client: httpx.Client, event: Mapping[str, Any]) -> None:
        trouble = ""
        for number in range(TRIES):
            if number:
                time.sleep(self._pause_seconds * 2 ** (number - 1))
            try:
                status = client.post(self._url, json=dict(event)).status_code
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                trouble = type(error).__name__  # its text may name the address
                if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
                    break
                continue
            if status < 400:
                return
            trouble = f"status {status}"
            if status < 500 and status not in PASSING:
                break
        log.warning("a webhook was not told of %s: %s", event.get("event"), reason(ValueError(trouble)))
