"""The server of a review queue: syncs it, writes answers out in the background, and leaves none behind at its end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from pipeline.errors import MasksieveError, SettingsError
from pipeline.models import load_model
from pipeline.review.access import Access, the_token
from pipeline.review.api import Desk, create_app
from pipeline.review.editor import Editor
from pipeline.review.media import Media
from pipeline.review.queue import Queue, default_place
from pipeline.settings import Settings
from pipeline.storage.objects import ObjectStore

log = logging.getLogger(__name__)

EXPORT_SECONDS = 2.0
GRACE_SECONDS = 5


@dataclass(frozen=True)
class Listening:
    """Where a server is reached.

    Args:
        url: of the page.
        token: what reviewers log in with; repr leaves it out.
        made: whether the token was made for this run, so that nobody knows it yet.
    """

    url: str
    made: bool
    token: str = field(repr=False)

    @property
    def login_url(self) -> str:
        """The page with the token in the part of the address that no server is sent."""
        return f"{self.url}#token={self.token}"


def serve(
    store: ObjectStore,
    settings: Settings,
    *,
    database: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8420,
    names: Collection[str] = (),
    token_file: Path | None = None,
    sync_seconds: float = 60.0,
    ready: Callable[[Listening], None] = lambda listening: None,
) -> int:
    """Serve until SIGTERM or SIGINT; then every answer is written to the output.

    Args:
        database: of the queue; None for `queue.default_place`.
        host, port: where to listen; port 0 takes a free one.
        names: by which a proxy in front is asked for, and passes on.
        token_file: what reviewers log in with; None for $MASKSIEVE_REVIEW_TOKEN, else one is made (on loopback alone).
        sync_seconds: between two looks at the review lists.
        ready: called once requests are answered.
    Returns: answers that could not be written out at the end; they are kept in the queue.
    Raises:  SettingsError for a token that will not do, or an address that cannot be listened on; StorageError.
    """
    token, made = the_token(host, token_file, os.environ.get("MASKSIEVE_REVIEW_TOKEN"))
    queue = Queue(database or default_place(), store.identity, settings.review)
    with contextlib.ExitStack() as stack:
        stack.callback(queue.close)
        listening = stack.enter_context(_listen(host, port))
        loader = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="masksieve-model"))
        model: Future[Editor] = loader.submit(_editor, settings)
        media = Media(store, settings, model.result)
        stack.callback(media.close)
        queue.sync(store)
        app = create_app(Desk(queue, media, Access(token, host, names=names), settings.review))
        ended = threading.Event()
        stack.callback(ended.set)
        for work, seconds in ((queue.sync, sync_seconds), (queue.export, EXPORT_SECONDS)):
            _repeat(work, store, seconds, ended)
        shown_host = f"[{host}]" if ":" in host else host
        told = Listening(f"http://{shown_host}:{listening.getsockname()[1]}/", made, token)
        _run(app, listening, lambda: ready(told))
        ended.set()
        return _write_out(queue, store)


def _editor(settings: Settings) -> Editor:
    import torch

    if settings.model.device != "cuda":
        torch.set_num_threads(1)  # clicks come one at a time, and decoding videos wants the other cores
    chosen = settings.model
    return Editor(load_model(chosen.name, device=chosen.device, cache_dir=chosen.cache_dir))


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise SettingsError(f"to listen on {host}:{port}", str(error), "choose another --host or --port") from error
    with listening:
        yield listening


class _Server(uvicorn.Server):
    """Ends in order at SIGTERM and SIGINT, without raising them again: what follows has to run."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            self.should_exit = True

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def _run(app: Any, listening: socket.socket, ready: Callable[[], None]) -> None:
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="off",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )  # fmt: skip
    _Server(config, ready).run(sockets=[listening])


def _repeat(work: Callable[[ObjectStore], object], store: ObjectStore, seconds: float, ended: threading.Event) -> None:
    """Do something every so many seconds in a thread; what fails is told and tried again."""

    def loop() -> None:
        while not ended.wait(seconds):
            try:
                work(store)
            except MasksieveError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("not foreseen; it is tried again")

    threading.Thread(target=loop, name="masksieve-review", daemon=True).start()


def _write_out(queue: Queue, store: ObjectStore) -> int:
    try:
        queue.export(store, force=True)
    except MasksieveError as error:
        log.warning("answers are kept in the queue until the next server, or `masksieve review sync`: %s", error)
    return queue.stats().unexported
