"""Answers on their way to the output: a process that is killed at any moment loses none, and writes none twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnavailableError
from pipeline.review import export
from pipeline.review.answers import read_answers
from pipeline.review.queue import Queue
from pipeline.review.refusals import Conflict
from pipeline.settings import ReviewSettings
from pipeline.storage.objects import ObjectStore

from .queueing import answer_to, fill

SETTINGS = ReviewSettings(audit_share=0.5)

_REVIEWER = """
import sys, uuid
from datetime import UTC, datetime
from pipeline.review.answers import Answer
from pipeline.review.items import about
from pipeline.review.queue import Queue
from pipeline.storage.objects import ObjectStore

database, out, exports = sys.argv[1:]
store = ObjectStore(out)
queue = Queue(database, store.identity)
while got := queue.claim("ann", 2):
    for one in got:
        answer = Answer(**about(one.item), answer_id=uuid.uuid4().hex, reviewer="ann", answered_at=datetime.now(UTC),
                        frame_index=one.item.frame_index, verdict="accept")
        queue.answer(one.lease_id, answer)
        print(one.item.item_id, answer.answer_id, flush=True)
    if exports == "yes":
        queue.export(store, force=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_process_that_is_killed_loses_no_answer_that_it_confirmed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SIGKILL at moments of all kinds: between answer and export, in the middle of either."""
    store = ObjectStore(tmp_path / "out")
    place = str(tmp_path / "q.sqlite") if kind == "sqlite" else str(request.getfixturevalue("postgres_url"))
    fill(store, videos=10, stretches=20, audits=10)
    queue = Queue(place, store.identity, SETTINGS)
    total = queue.sync(store).added
    confirmed: dict[str, str] = {}
    for number, (lines, exports) in enumerate(((7, "no"), (30, "yes"), (31, "yes"))):
        words = [sys.executable, "-c", _REVIEWER, place, store.url, exports]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reviewer:
            assert reviewer.stdout is not None
            told = [reviewer.stdout.readline() for _ in range(lines)]
            time.sleep(0.003 * number)
            os.kill(reviewer.pid, signal.SIGKILL)
            told += reviewer.stdout.read().splitlines(keepends=True)
        pairs = [line.split() for line in told if line.endswith("\n")]
        assert len(pairs) >= lines
        assert not {item_id for item_id, _ in pairs} & confirmed.keys(), "an item was given again after it was answered"
        confirmed |= dict(pairs)
    after = Queue(place, store.identity, SETTINGS, now=lambda: time.time() + 1000)  # what it had leased is free again
    while got := after.claim("bob", 10):
        for one in got:
            after.answer(one.lease_id, answer_to(one.item, one.item.item_id[:16], "bob"))
            confirmed[one.item.item_id] = one.item.item_id[:16]
    assert len(confirmed) <= total
    after.export(store, force=True)
    written = [(one.item_id, one.answer_id) for one in read_answers(store)]
    assert len(written) == len({item_id for item_id, _ in written}) == total, "an answer to each item"
    assert confirmed.items() <= dict(written).items()
    queue.close()
    after.close()


def test_a_store_that_fails_gets_the_rest_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path / "out")
    fill(store, stretches=6)
    queue = Queue(tmp_path / "q.sqlite", store.identity, SETTINGS)
    queue.sync(store)
    for number, one in enumerate(queue.claim("ann", 6)):
        queue.answer(one.lease_id, answer_to(one.item, f"{number:08x}", "ann"))
    real, left = export.write_answer, [3]

    def failing(store: ObjectStore, answer: Any) -> bool:
        left[0] -= 1
        if left[0] < 0:
            raise UnavailableError("an answer of the store", "none", "wait")
        return real(store, answer)

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_answer", failing)
        with pytest.raises(UnavailableError):
            queue.export(store, force=True)
    with pytest.raises(Conflict, match="in the output"):  # perhaps it is
        queue.undo("00000005", "ann")
    assert queue.stats().unexported > 0
    queue.export(store)
    assert queue.stats().unexported == 0
    assert sorted(one.answer_id for one in read_answers(store)) == [f"{number:08x}" for number in range(6)]


def test_two_that_export_at_once_write_each_answer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path / "out")
    fill(store, stretches=2)
    queue = Queue(tmp_path / "q.sqlite", store.identity, SETTINGS)
    queue.sync(store)
    [one] = queue.claim("ann")
    queue.answer(one.lease_id, answer_to(one.item, "a" * 8, "ann"))
    real = export.write_answer

    def meanwhile(store: ObjectStore, answer: Any) -> bool:
        monkeypatch.setattr(export, "write_answer", real)
        Queue(tmp_path / "q.sqlite", store.identity, SETTINGS).export(store, force=True)
        return real(store, answer)

    monkeypatch.setattr(export, "write_answer", meanwhile)
    assert queue.export(store, force=True) == 1
    assert len(list(read_answers(store))) == 1
    assert queue.stats().unexported == 0
