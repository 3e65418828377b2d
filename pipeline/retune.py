"""Decides anew about every committed video of an output by another policy: from stored facts, without a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

from pipeline.derive import Derived, derive
from pipeline.errors import MasksieveError
from pipeline.ledger import Ledger, commit_of
from pipeline.scratch import scratch_folder
from pipeline.settings import Settings
from pipeline.storage.objects import ObjectStore

log = logging.getLogger(__name__)

THREADS = 8


def committed_videos(store: ObjectStore) -> list[str]:
    """The video_ids of all that is committed, from one listing."""
    named = (commit_of(key) for key in store.list("commits/"))
    return sorted({one[0] for one in named if one is not None})


def derive_all(
    store: ObjectStore, video_ids: Iterable[str], settings: Settings, *, drop: str | None = None, threads: int = THREADS
) -> Iterator[tuple[str, Derived | MasksieveError]]:
    """Derive labels and review list of many videos; the same call goes on where it broke off.

    Args:
        video_ids: in any order.
        settings: the policy, and how labels are written.
        drop: leave out the videos that were first seen in another drop.
        threads: so many at a time.
    Yields: as they are done: what was done, or why not. One that fails does not stop the others.
    Raises: StorageError if there is no scratch folder to be had.
    """
    ledger = Ledger(store)
    with scratch_folder(settings) as scratch:
        yield from _derive_all(store, ledger, video_ids, settings, drop, threads, Path(scratch))


def _derive_all(
    store: ObjectStore,
    ledger: Ledger,
    video_ids: Iterable[str],
    settings: Settings,
    drop: str | None,
    threads: int,
    scratch: Path,
) -> Iterator[tuple[str, Derived | MasksieveError]]:
    def one(video_id: str) -> tuple[str, Derived | MasksieveError | None]:
        try:
            if drop is not None:
                commit = ledger.newest(video_id)
                if commit is None or commit.first_seen != drop:
                    return video_id, None
            return video_id, derive(
                store, ledger, video_id, settings.policy,
                row_group_rows=settings.output.row_group_rows, scratch_dir=scratch,
            )  # fmt: skip
        except MasksieveError as error:
            log.warning("no new labels of %s: %s", video_id, error)
            return video_id, error

    waiting = iter(video_ids)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="masksieve-derive")
    running: set[Future[tuple[str, Derived | MasksieveError | None]]] = set()
    try:
        while True:
            running |= {pool.submit(one, video_id) for video_id in islice(waiting, 2 * threads - len(running))}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                video_id, derived = future.result()
                if derived is not None:
                    yield video_id, derived
    finally:
        pool.shutdown(cancel_futures=True)  # those that have begun come to their end: each is written whole
