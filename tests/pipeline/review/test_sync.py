"""Sync: the queue follows the review lists, reads only what changed, and knows near-duplicates by their pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks.review_queue import Flagged, write_list
from pipeline.errors import UnavailableError
from pipeline.ledger import forgotten_key
from pipeline.review import sync
from pipeline.review.answers import write_answer
from pipeline.review.queue import Queue
from pipeline.review.refusals import Conflict, NotFound
from pipeline.settings import ReviewSettings
from pipeline.storage.objects import ObjectStore

from .queueing import answer_to, fill, video

SETTINGS = ReviewSettings(audit_share=0.0)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "out")


@pytest.fixture
def queue(store: ObjectStore, tmp_path: Path) -> Queue:
    return Queue(tmp_path / "q.sqlite", store.identity, SETTINGS)


def test_items_go_when_their_stretch_does_and_come_back_with_it(queue: Queue, store: ObjectStore) -> None:
    fill(store, videos=2, stretches=3)
    queue.sync(store)
    mine, answered = queue.claim("ann", 2)
    queue.answer(answered.lease_id, answer_to(answered.item, "a" * 8, "ann"))
    fill(store, videos=2, stretches=3, rle=b"2")
    done = queue.sync(store)
    assert (done.added, done.withdrawn, done.items) == (6, 5, 6), "what is answered is not withdrawn"
    with pytest.raises(Conflict, match="withdrawn"):
        queue.answer(mine.lease_id, answer_to(mine.item, "b" * 8, "ann"))
    fill(store, videos=2, stretches=3)
    done = queue.sync(store)
    assert (done.added, done.withdrawn, done.items) == (5, 6, 5)


def test_what_shows_the_same_in_a_new_generation_stays_whose_it_is(queue: Queue, store: ObjectStore) -> None:
    """Somebody's answer was applied to another object of the video."""
    fill(store, stretches=3)
    queue.sync(store)
    mine, answered, skipped = queue.claim("ann", 3)
    queue.skip(skipped.item.item_id, skipped.lease_id)
    said = answer_to(answered.item, "a" * 8, "ann")
    queue.answer(answered.lease_id, said)
    fill(store, stretches=3, generation=2)
    done = queue.sync(store)
    assert (done.added, done.withdrawn, done.items) == (0, 0, 2)
    assert queue.item(mine.item.item_id).generation == 2
    assert queue.answer(answered.lease_id, said.model_copy(update={"generation": 2})).again
    assert not queue.answer(mine.lease_id, answer_to(mine.item, "b" * 8, "ann")).again
    assert [one.item.item_id for one in queue.claim("ann", 9)] == [skipped.item.item_id]


def test_lists_that_did_not_change_are_not_read_again(
    queue: Queue, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, videos=3)
    queue.sync(store)
    read: list[str] = []
    real = ObjectStore.open
    monkeypatch.setattr(ObjectStore, "open", lambda self, key: (read.append(key), real(self, key))[1])
    queue.sync(store)
    assert read == []
    write_list(store, video(1), [Flagged(7, 0, 1, 0.5)])
    assert queue.sync(store).added == 1
    assert [key[-72:-8] for key in read] == [video(1)]


def test_a_drop_alone_is_brought_up_to_date(queue: Queue, store: ObjectStore) -> None:
    write_list(store, video(0), [Flagged(1, 0, 1, 0.5)], drop="day")
    key = write_list(store, video(1), [Flagged(1, 0, 1, 0.5)], drop="night/2")
    assert queue.sync(store, "night/2").added_by_drop == {"night/2": 1}
    assert queue.sync(store).added_by_drop == {"day": 1}
    store.delete(key)
    assert queue.sync(store, "day").withdrawn == 0
    assert queue.sync(store, "night/2").withdrawn == 1


def test_of_a_forgotten_video_nothing_stays_in_the_database(queue: Queue, store: ObjectStore, tmp_path: Path) -> None:
    fill(store, videos=2, stretches=2)
    queue.sync(store)
    for number in range(2):
        for one in queue.claim("ann", 2):
            queue.answer(one.lease_id, answer_to(one.item, f"{one.item.item_id[:16]}", "ann"))
            queue.undo(one.item.item_id[:16], "ann") if number else None
    for key in store.list("review/"):
        if video(0) in key:
            store.delete(key)
    store.put_atomic(forgotten_key(video(0)), json.dumps({}).encode())
    queue.sync(store)
    queue.export(store, force=True)
    queue.close()
    assert all(video(0).encode() not in file.read_bytes() for file in tmp_path.glob("q.sqlite*"))
    assert not [key for key in store.list("answers/") if video(0) in key]


def test_an_answer_to_a_video_forgotten_meanwhile_is_not_written(queue: Queue, store: ObjectStore) -> None:
    fill(store, stretches=1)
    queue.sync(store)
    [one] = queue.claim("ann")
    queue.answer(one.lease_id, answer_to(one.item, "a" * 8, "ann"))
    store.put_atomic(forgotten_key(video(0)), b"{}")
    assert queue.export(store, force=True) == 0
    assert store.list("answers/") == []
    with pytest.raises(NotFound):
        queue.item(one.item.item_id)


def test_what_the_output_has_an_answer_to_is_not_asked_again(queue: Queue, store: ObjectStore, tmp_path: Path) -> None:
    """A queue whose database was lost, or a second one."""
    fill(store, stretches=3)
    queue.sync(store)
    [one] = queue.claim("ann")
    write_answer(store, answer_to(one.item, "a" * 8, "ann"))
    fresh = Queue(tmp_path / "fresh.sqlite", store.identity, SETTINGS)
    assert fresh.sync(store).added == 2
    assert one.item.item_id not in [item.item.item_id for item in fresh.claim("bob", 9)]


def test_of_two_syncs_at_once_the_slower_one_brings_nothing_old_back(
    queue: Queue, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, stretches=2)
    queue.sync(store)
    fill(store, stretches=2, generation=2, rle=b"2")
    real = sync.read_items

    def slow(*given: Any) -> Any:
        found = list(real(*given))
        monkeypatch.setattr(sync, "read_items", real)
        fill(store, stretches=2, generation=3, rle=b"3")
        Queue(tmp_path / "q.sqlite", store.identity, SETTINGS).sync(store)
        yield from found

    monkeypatch.setattr(sync, "read_items", slow)
    queue.sync(store)
    assert {one.item.generation for one in queue.claim("ann", 9)} == {3}


def test_near_duplicates_and_more_of_one_object_come_later(queue: Queue, store: ObjectStore) -> None:
    """Four items of equal gain: two look alike though of two videos, one is of the same object as the first."""
    pictures = {name: _picture(name) for name in ("left", "left again", "right")}
    for name, picture in pictures.items():
        store.put_atomic(f"review_images/{name}.jpg", picture)

    def flagged(object_id: int, first: int, name: str, uncertainty: float) -> Flagged:
        return Flagged(
            object_id, first, 2, uncertainty, frame_uri=f"/moved/out/review_images/{name}.jpg", box_xyxy=(0, 0, 64, 64)
        )

    write_list(store, video(0), [flagged(1, 0, "left", 0.9), flagged(1, 9, "right", 0.8)], height=64, width=64)
    write_list(store, video(1), [flagged(5, 0, "left again", 0.85), flagged(6, 0, "none", 0.7)], height=64, width=64)
    queue.sync(store)
    order = [(one.item.video_id == video(1), one.item.object_id, one.item.first_frame) for one in queue.claim("a", 9)]
    assert order == [(False, 1, 0), (True, 6, 0), (True, 5, 0), (False, 1, 9)]


def test_pictures_that_cannot_be_had_now_are_looked_at_later(
    queue: Queue, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_list(store, video(0), [Flagged(1, 0, 2, 0.9, frame_uri=store.uri("review_images/a.jpg"))])
    store.put_atomic("review_images/a.jpg", _picture("left"))
    looked: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "get", _away)
        assert queue.sync(store).added == 1
    assert "at the next sync" in caplog.text
    real = sync.look
    monkeypatch.setattr(sync, "look", lambda *given: looked.append(found := real(*given)) or found)
    queue.sync(store)
    queue.sync(store)
    assert len(looked) == 1


def _away(self: ObjectStore, key: str) -> bytes:
    raise UnavailableError("an answer", "none", "wait")


def _picture(name: str) -> bytes:
    """A bright disc on one side of noise that differs from picture to picture."""
    rng = np.random.default_rng(len(name))
    image = Image.fromarray(rng.integers(60, 70, (64, 64, 3), np.uint8))
    draw = ImageDraw.Draw(image)
    for row in range(8):  # slopes, so that no bit hangs on the noise
        for place in range(9):
            up = place if name.startswith("left") else -place
            level = 120 + 12 * (up if row % 2 else -up)
            draw.rectangle((place * 64 / 9, row * 8, (place + 1) * 64 / 9, row * 8 + 8), (level, level, level))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
