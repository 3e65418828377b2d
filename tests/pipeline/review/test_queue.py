"""The queue: whose turn an item is, answers kept exactly once, budgets, audits, and races of many reviewers."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.review_queue import Flagged, write_list
from pipeline.errors import StorageError
from pipeline.review.answers import read_answers
from pipeline.review.queue import Queue
from pipeline.review.refusals import BudgetSpent, Conflict, LeaseLost, Malformed, NotFound
from pipeline.settings import ReviewSettings
from pipeline.storage.objects import ObjectStore

from .queueing import Clock, answer_to, fill, given, video

Open = Callable[..., Queue]
SETTINGS = ReviewSettings(audit_share=0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "out")


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, store: ObjectStore, clock: Clock) -> Open:
    """`opened(items_per_day=3)`: a queue of the output on one database, as another process would open it."""
    sqlite = request.param == "sqlite"
    place = tmp_path / "review.sqlite" if sqlite else request.getfixturevalue("postgres_url")

    def make(**changes: Any) -> Queue:
        queue = Queue(place, store.identity, SETTINGS.model_copy(update=changes), clock)
        request.addfinalizer(queue.close)
        return queue

    return make


def test_the_most_to_gain_comes_first_and_nobody_gets_what_another_has(opened: Open, store: ObjectStore) -> None:
    fill(store, videos=2, stretches=3)
    queue, other = opened(), opened()
    assert queue.sync(store).added == 6
    assert other.sync(store).added == 0
    first, second = queue.claim("ann", 2), other.claim("bob", 3)
    gains = [one.item.gain for one in (*first, *second)]
    assert gains == sorted(gains, reverse=True)
    assert len({one.item.item_id for one in (*first, *second)}) == 5
    with pytest.raises(LeaseLost, match="another reviewer"):
        queue.claim("ann", item_id=second[0].item.item_id)
    assert [len(queue.claim("ann", 9)), queue.claim("ann")] == [1, []]


def test_a_lease_that_ran_out_goes_to_somebody_else_and_can_be_had_again(
    opened: Open, store: ObjectStore, clock: Clock
) -> None:
    fill(store, stretches=1)
    queue = opened(lease_seconds=10.0)
    queue.sync(store)
    [mine] = queue.claim("ann")
    assert mine.expires_at == clock.now + 10
    clock.now += 9
    assert queue.renew(mine.item.item_id, mine.lease_id) == clock.now + 10
    clock.now += 9
    assert queue.claim("bob") == []
    clock.now += 1
    answer = answer_to(mine.item, "a" * 8, "ann")
    with pytest.raises(LeaseLost, match=r"ended 0 s ago.*claim the item again"):
        queue.answer(mine.lease_id, answer)
    with pytest.raises(LeaseLost):
        queue.renew(mine.item.item_id, mine.lease_id)
    [again] = queue.claim("ann", item_id=mine.item.item_id)
    assert not queue.answer(again.lease_id, answer).again

    with pytest.raises(Conflict, match="answered"):
        queue.claim("bob", item_id=mine.item.item_id)


def test_what_is_given_back_keeps_its_place_and_what_is_skipped_comes_last(
    opened: Open, store: ObjectStore, clock: Clock
) -> None:
    fill(store, stretches=3)
    queue = opened()
    queue.sync(store)
    [top] = queue.claim("ann")
    queue.release(top.item.item_id, top.lease_id)
    [again] = queue.claim("ann")
    assert (again.item, again.lease_id == top.lease_id) == (top.item, False)
    queue.skip(top.item.item_id, again.lease_id, "too dark")
    with pytest.raises(LeaseLost):
        queue.skip(top.item.item_id, again.lease_id, "too dark")
    order = [one.item.object_id for one in queue.claim("bob", 3)]
    assert order == [1, 2, 0]
    clock.now += 1000  # all are free again
    left = queue.claim("ann", 3)
    assert [one.item.object_id for one in left] == [1, 2], "spared while there is anything else"
    assert [one.item.object_id for one in queue.claim("ann", 3)] == [0]
    clock.now += 86_400
    assert len(queue.claim("ann", 3)) == 3


def test_an_answer_counts_once_and_only_from_who_holds_the_item(opened: Open, store: ObjectStore) -> None:
    fill(store, stretches=3)
    queue = opened()
    queue.sync(store)
    mine, next_, other = *queue.claim("ann", 2), *queue.claim("bob")
    answer = answer_to(mine.item, "a" * 8, "ann")
    with pytest.raises(LeaseLost):
        queue.answer(other.lease_id, answer)
    first = queue.answer(mine.lease_id, answer)
    later = answer.model_copy(update={"answered_at": answer.answered_at.replace(year=2030)})
    again = opened().answer(mine.lease_id, later)
    assert (first.again, again.again, again.answered_today) == (False, True, 1)
    for wrong in (answer.model_copy(update={"verdict": "reject"}), answer_to(next_.item, "a" * 8, "ann")):
        with pytest.raises(Conflict, match="another"):
            queue.answer(next_.lease_id, wrong)
    with pytest.raises(Conflict, match="is answered"):
        queue.answer(mine.lease_id, answer_to(mine.item, "b" * 8, "ann"))
    with pytest.raises(NotFound):
        queue.answer(mine.lease_id, answer.model_copy(update={"item_id": "nothing"}))
    assert [one.event for one in queue.changes(0)[0]] == ["added"] * 3 + ["answered"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"verdict": "fix", "mask": given(8, 13)}, "8 x 12 pixels, got 8 x 13"),
        ({"verdict": "fix", "mask": given().model_copy(update={"counts": "1"})}, "add up to"),
        ({"generation": 2}, "generation of at most 1"),
        ({"audit": True}, "audit False"),
        ({"review_probability": 0.5}, "review_probability 1.0"),
        ({"reviewer": "mallory"}, "who holds the lease"),
        ({"first_frame": 0, "last_frame": 900}, "last_frame 3"),
    ],
)
def test_an_answer_that_cannot_be_one_to_its_item_is_refused(
    changes: dict[str, Any], told: str, store: ObjectStore, tmp_path: Path
) -> None:
    fill(store, stretches=1)
    queue = Queue(tmp_path / "q.sqlite", store.identity, SETTINGS)
    queue.sync(store)
    [mine] = queue.claim("ann")
    with pytest.raises(Malformed, match=told):
        queue.answer(mine.lease_id, answer_to(mine.item, "a" * 8, "ann", **changes))
    assert not queue.answer(mine.lease_id, answer_to(mine.item, "a" * 8, "ann", verdict="fix", mask=given())).again


def test_an_answer_is_taken_back_until_it_is_written_out(opened: Open, store: ObjectStore, clock: Clock) -> None:
    fill(store, stretches=2)
    queue = opened(undo_seconds=5.0)
    queue.sync(store)
    [mine, other] = queue.claim("ann", 2)
    assert queue.answer(mine.lease_id, answer_to(mine.item, "a" * 8, "ann")).undo_until == clock.now + 5
    with pytest.raises(NotFound, match="of this reviewer"):
        queue.undo("a" * 8, "bob")
    back = queue.undo("a" * 8, "ann")
    assert (back.item, queue.undo("a" * 8, "ann")) == (mine.item, back)
    with pytest.raises(Conflict, match="taken back"):
        queue.answer(back.lease_id, answer_to(mine.item, "a" * 8, "ann"))
    queue.answer(back.lease_id, answer_to(mine.item, "b" * 8, "ann", verdict="reject"))
    assert queue.export(store) == 0
    clock.now += 5
    queue.answer(other.lease_id, answer_to(other.item, "c" * 8, "ann"))
    assert (queue.export(store), queue.export(store)) == (1, 0)
    with pytest.raises(Conflict, match="in the output"):
        queue.undo("b" * 8, "ann")
    assert queue.export(store, force=True) == 1
    assert [(one.answer_id, one.verdict) for one in read_answers(store)] == [("b" * 8, "reject"), ("c" * 8, "accept")]


def test_nobody_is_given_more_than_the_budget_of_the_day(opened: Open, store: ObjectStore, clock: Clock) -> None:
    fill(store, stretches=6)
    queue = opened(items_per_day=3)
    queue.sync(store)
    first = queue.claim("ann", 2)
    assert queue.stats().budget_left == 1
    assert len(queue.claim("bob", 5)) == 1
    with pytest.raises(BudgetSpent, match=r"review\.items_per_day"):
        queue.claim("bob")
    queue.release(first[1].item.item_id, first[1].lease_id)
    queue.answer(first[0].lease_id, answer_to(first[0].item, "a" * 8, "ann"))
    assert len(queue.claim("cid", 5)) == 1
    queue.undo("a" * 8, "ann")
    with pytest.raises(BudgetSpent):
        queue.claim("cid")
    clock.now += 86_400
    assert len(queue.claim("cid", 5)) == 3


def test_the_budget_holds_when_many_ask_at_once(opened: Open, store: ObjectStore) -> None:
    fill(store, stretches=40)
    queue = opened(items_per_day=7)
    queue.sync(store)
    gate = threading.Barrier(8)

    def ask(number: int) -> int:
        gate.wait()
        try:
            return sum(len(queue.claim(f"r{number}", 2)) for _ in range(3))
        except BudgetSpent:
            return 0

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert queue.stats().leased == 7


def test_audits_are_mixed_in_by_their_share_and_in_a_drawn_order(opened: Open, store: ObjectStore) -> None:
    """The most uncertain of them first would make the promise look worse than it is."""
    audits = [Flagged(one, 5, 1, one / 300, audit=True) for one in range(200)]
    write_list(store, video(0), [Flagged(1000 + one, 0, 2, 0.9) for one in range(400)] + audits)
    queue = opened(audit_share=0.25)
    queue.sync(store)
    kinds: list[str] = []
    uncertain: list[float] = []
    for _ in range(40):
        for one in queue.claim("ann", 10):
            kinds.append(one.item.kind)
            if one.item.kind == "audit":
                uncertain.append(one.item.uncertainty or 0.0)
    assert abs(kinds.count("audit") - 100) < 5 * math.sqrt(400 * 0.25 * 0.75)
    assert uncertain not in (sorted(uncertain), sorted(uncertain, reverse=True))
    half = len(uncertain) // 2
    assert abs(sum(uncertain[:half]) / half - sum(uncertain[half:]) / (len(uncertain) - half)) < 0.25
    kinds += [one.item.kind for _ in range(30) for one in queue.claim("ann", 10)]
    assert Counter(kinds) == {"review": 400, "audit": 200}, "when one kind is used up the other goes on"


def test_a_drop_or_a_label_alone_can_be_asked_for(opened: Open, store: ObjectStore) -> None:
    write_list(store, video(0), [Flagged(1, 0, 2, 0.9, label="cup"), Flagged(2, 0, 2, 0.5, label=None)])
    write_list(store, video(1), [Flagged(1, 0, 2, 0.7, label="cup")], drop="night")
    queue = opened()
    queue.sync(store)
    assert [one.item.video_id for one in queue.claim("ann", 9, drop="night")] == [video(1)]
    assert [one.item.label for one in queue.claim("ann", 9, label="cup")] == ["cup"]
    assert [one.item.label for one in queue.claim("ann", 9)] == [None]


@pytest.mark.parametrize("label", ["a\x00b", "".join(chr(0x4E00 + 7919 * n % 20_000) for n in range(4000)), "a\nb'"])
def test_whatever_a_label_is_the_queue_goes_on(opened: Open, store: ObjectStore, label: str) -> None:
    write_list(store, video(0), [Flagged(1, 0, 2, 0.9, label=label)])
    write_list(store, video(1), [Flagged(1, 0, 2, 0.7, label="cup")])
    queue = opened()
    assert queue.sync(store).added == 2
    (name,) = queue.stats().waiting_by_label.keys() - {"cup"}
    assert [one.item.label for one in queue.claim("ann", 9, label=name)] == [label]


def test_many_reviewers_in_several_processes_worth_of_queues_share_without_loss(
    opened: Open, store: ObjectStore
) -> None:
    """Every item is given to one, answered once, and a reader of the feed sees each answer, in order."""
    fill(store, videos=6, stretches=10, audits=4)
    queues = [opened(audit_share=0.3) for _ in range(3)]
    queues[0].sync(store)
    total = queues[0].stats().waiting
    gate, done = threading.Barrier(9), threading.Event()
    seen: list[tuple[int, str]] = []

    def work(number: int) -> list[str]:
        queue, answered = queues[number % 3], list[str]()
        gate.wait()
        while got := queue.claim(f"r{number}", 2):
            for one in got:
                answer = answer_to(one.item, f"{len(answered):04x}{number:04x}", f"r{number}")
                assert not queue.answer(one.lease_id, answer).again
                assert queue.answer(one.lease_id, answer).again
                answered.append(one.item.item_id)
        return answered

    def follow() -> None:
        cursor = 0
        gate.wait()
        while True:
            last = done.is_set()
            found, cursor = queues[0].changes(cursor, 7)
            seen.extend((one.cursor, one.item_id) for one in found if one.event == "answered")
            if last and not found:
                return

    with ThreadPoolExecutor(9) as pool:
        follower = pool.submit(follow)
        try:
            lists = list(pool.map(work, range(8)))
        finally:
            done.set()  # or a failure would never be told
        follower.result()
    answered = [item_id for some in lists for item_id in some]
    assert (len(answered), len(set(answered))) == (total, total)
    assert sorted(item_id for _, item_id in seen) == sorted(answered)
    assert seen == sorted(seen)
    assert queues[1].export(store, force=True) == total
    assert sorted(one.item_id for one in read_answers(store)) == sorted(answered)


def test_two_outputs_share_a_database_and_see_nothing_of_each_other(store: ObjectStore, tmp_path: Path) -> None:
    fill(store, stretches=2)
    mine, other = Queue(tmp_path / "q.sqlite", store.identity), Queue(tmp_path / "q.sqlite", "elsewhere")
    mine.sync(store)
    assert (other.claim("ann"), other.changes(0), other.stats().waiting) == ([], ([], 0), 0)


def test_a_database_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"a review queue at .*MASKSIEVE_REVIEW"):
        Queue(tmp_path / "folder", "s").stats()
    (tmp_path / "text").write_text("no database at all, but a text of some length\n" * 40)
    with pytest.raises(StorageError, match="a review queue at"):
        Queue(tmp_path / "text", "s").claim("ann")
    with pytest.raises(StorageError, match="MASKSIEVE_REVIEW"):
        Queue("mysql://host/x", "s")
