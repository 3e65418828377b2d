"""The feed of changes: a cursor misses nothing, whoever writes at the same time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.review import feed
from pipeline.review.queue import Queue
from pipeline.review.queue_tables import open_database
from pipeline.storage.objects import ObjectStore

from .queueing import answer_to, fill


def test_pages_of_the_feed_tell_everything_once_and_items_of_what_was_added(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "out")
    fill(store, stretches=3)
    queue = Queue(tmp_path / "q.sqlite", store.identity)
    queue.sync(store)
    [mine] = queue.claim("ann")
    queue.answer(mine.lease_id, answer_to(mine.item, "a" * 8, "ann"))
    queue.undo("a" * 8, "ann")
    fill(store, stretches=1, generation=2, rle=b"2")
    queue.sync(store)
    seen, cursor = [], 0
    while True:
        page, after = queue.changes(cursor, 2)
        seen += page
        if not page:
            break
        assert after == page[-1].cursor > cursor
        cursor = after
    assert after == cursor
    assert [one.event for one in seen] == ["added"] * 3 + ["answered", "added"] + ["withdrawn"] * 3 + ["added"]
    assert [one.item is not None for one in seen] == [one.event == "added" for one in seen]
    assert seen[-1].item is not None
    assert seen[-1].item.generation == 2


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_change_is_not_seen_before_one_with_a_smaller_number(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A transaction has its number and is slow to commit: who comes after it waits for it."""
    place: Any = tmp_path / "q.sqlite" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    slow, fast, store = open_database(place), open_database(place), str(tmp_path)

    def overtake() -> None:
        fast.run(lambda connection: feed.note(connection, store, [("added", "second")]))

    thread = threading.Thread(target=overtake)
    with slow.begun() as connection:
        feed.note(connection, store, [("added", "first")])
        thread.start()
        time.sleep(0.4)
        seen, cursor = fast.run(lambda connection: feed.read(connection, store, 0, 10), writes=False)
        assert (seen, cursor) == ([], 0)
    thread.join(10)
    found, _ = slow.run(lambda connection: feed.read(connection, store, cursor, 10), writes=False)
    assert [one.item_id for one in found] == ["first", "second"]
    slow.close()
    fast.close()
