"""The queue against a model of it: claims, expiries, double submits, undos, new lists and restarts in any order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from benchmarks.review_queue import Flagged, write_list
from pipeline.review.answers import read_answers
from pipeline.review.items import read_items
from pipeline.review.queue import Leased, Queue
from pipeline.review.refusals import BudgetSpent, Conflict, LeaseLost, Refusal
from pipeline.settings import ReviewSettings
from pipeline.storage.objects import ObjectStore

from .queueing import Clock, answer_to, video

LEASE_SECONDS, UNDO_SECONDS, PER_DAY, OBJECTS = 10.0, 4.0, 9, 5
SETTINGS = ReviewSettings(
    lease_seconds=LEASE_SECONDS, undo_seconds=UNDO_SECONDS, items_per_day=PER_DAY, audit_share=0.4
)
REVIEWERS = st.sampled_from(["ann", "bob", "cid"])


class Reviewing(RuleBasedStateMachine):
    """What is known here: who holds what until when, which answers count, which are in the output, which lists there
    are."""

    leases: Bundle[tuple[Leased, str]] = Bundle("leases")
    said: Bundle[tuple[str, Any, str, Leased]] = Bundle("said")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="masksieve-test-queue-"))
        self.store, self.clock = ObjectStore(self.root / "out"), Clock(1_800_000_000.0)
        self.held: dict[str, tuple[str, str, float]] = {}  # item: lease, reviewer, until
        self.counts: dict[str, tuple[str, float]] = {}  # item: answer that counts, kept at
        self.days: dict[str, int] = {}
        self.sealed: set[str] = set()
        self.skipped: dict[tuple[str, str], int] = {}  # day by item and reviewer
        self.there: set[str] = set()
        self.cursor, self.number, self.fed = 0, 0, dict[str, str]()
        self.restart()
        self.lists(mask=1, generation=1, objects={0, 1, 2, 3, 4})

    def teardown(self) -> None:
        self.queue.export(self.store, force=True)
        written = {one.item_id: one.answer_id for one in read_answers(self.store)}
        assert len(list(read_answers(self.store))) == len(written)
        assert written == {item_id: answer_id for item_id, (answer_id, _) in self.counts.items()}, (
            "none lost, none twice"
        )
        self.queue.close()
        shutil.rmtree(self.root)

    def live(self, item_id: str) -> tuple[str, str, float] | None:
        found = self.held.get(item_id)
        return found if found is not None and found[2] > self.clock.now else None

    def hold(self, leased: Leased, reviewer: str) -> None:
        assert leased.expires_at == self.clock.now + LEASE_SECONDS
        self.held[leased.item.item_id] = (leased.lease_id, reviewer, leased.expires_at)

    @rule()
    def restart(self) -> None:
        """The process dies, with nothing closed, and another one comes."""
        self.queue = Queue(self.root / "q.sqlite", self.store.identity, SETTINGS, self.clock)

    @rule(seconds=st.sampled_from([1.0, 3.0, 5.0, 11.0, 86_400.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(mask=st.integers(1, 2), generation=st.integers(1, 3), objects=st.sets(st.integers(0, OBJECTS - 1)))
    def lists(self, mask: int, generation: int, objects: set[int]) -> None:
        flagged = [
            Flagged(one, 0, 1 if one > 2 else 3, 0.3 + one / 10, audit=one > 2, rle=b"%d" % mask)
            for one in sorted(objects)
        ]
        write_list(self.store, video(0), flagged, generation=generation)
        self.queue.sync(self.store)
        self.there = {one.item_id for found in read_items(self.store) for one in found.items}
        self.held = {item_id: held for item_id, held in self.held.items() if item_id in self.there}

    @rule(target=leases, reviewer=REVIEWERS, count=st.integers(1, 3))
    def claim(self, reviewer: str, count: int) -> Any:
        free = {one for one in self.there if one not in self.counts and self.live(one) is None}
        try:
            got = self.queue.claim(reviewer, count)
        except BudgetSpent:
            assert self.budget() == 0
            return multiple()
        today = int(self.clock.now // 86_400)
        fresh = {one for one in free if self.skipped.get((one, reviewer)) != today} or free
        assert len(got) == min(count, len(fresh), self.budget())
        assert {one.item.item_id for one in got} <= fresh, "skipped today, and there is something else"
        assert {one.item.item_id for one in got} <= free, "nobody gets what another has, or what is settled"
        for one in got:
            self.hold(one, reviewer)
        return multiple(*((one, reviewer) for one in got))

    def budget(self) -> int:
        today = int(self.clock.now // 86_400)
        spent = sum(self.days[answer_id] == today for answer_id, _ in self.counts.values())
        return max(0, PER_DAY - spent - sum(self.live(one) is not None for one in self.held))

    @rule(target=leases, lease=leases, reviewer=REVIEWERS)
    def claim_again(self, lease: tuple[Leased, str], reviewer: str) -> Any:
        item_id = lease[0].item.item_id
        live, budget = self.live(item_id), self.budget()
        try:
            [got] = self.queue.claim(reviewer, item_id=item_id)
        except Conflict:
            assert item_id in self.counts or item_id not in self.there
        except LeaseLost:
            assert live is not None
            assert live[1] != reviewer
        except BudgetSpent:
            assert (budget, live) == (0, None)
        else:
            assert item_id in self.there - self.counts.keys()
            assert live is None or live[1] == reviewer
            self.hold(got, reviewer)
            return got, reviewer
        return multiple()

    def holds(self, leased: Leased) -> bool:
        live = self.live(leased.item.item_id)
        return live is not None and live[0] == leased.lease_id

    @rule(lease=leases)
    def renew(self, lease: tuple[Leased, str]) -> None:
        leased, reviewer = lease
        holds = self.holds(leased)
        try:
            until = self.queue.renew(leased.item.item_id, leased.lease_id)
        except LeaseLost:
            assert not holds
        else:
            assert holds
            self.held[leased.item.item_id] = (leased.lease_id, reviewer, until)

    @rule(lease=consumes(leases), skip=st.booleans())
    def give_back(self, lease: tuple[Leased, str], skip: bool) -> None:
        leased, holds = lease[0], self.holds(lease[0])
        try:
            (self.queue.skip if skip else self.queue.release)(leased.item.item_id, leased.lease_id)
        except LeaseLost:
            assert not holds
        else:
            assert holds
            if skip:
                self.skipped[leased.item.item_id, lease[1]] = int(self.clock.now // 86_400)
            del self.held[leased.item.item_id]

    @rule(target=said, lease=leases, verdict=st.sampled_from(["accept", "reject", "absent"]))
    def answer(self, lease: tuple[Leased, str], verdict: str) -> Any:
        leased, reviewer = lease
        self.number += 1
        answer = answer_to(leased.item, f"{self.number:08x}", reviewer, verdict=verdict)
        return self.send(answer, leased, reviewer)

    @rule(target=said, earlier=said, changed=st.booleans())
    def send_again(self, earlier: tuple[str, Any, str, Leased], changed: bool) -> Any:
        """A double submit, late or not; or another answer under the same id."""
        _, answer, reviewer, leased = earlier
        if changed:
            answer = answer.model_copy(update={"seconds": 77.0})
        return self.send(answer, leased, reviewer)

    def send(self, answer: Any, leased: Leased, reviewer: str) -> Any:
        item_id, holds = leased.item.item_id, self.holds(leased)
        counts = self.counts.get(item_id)
        again = counts is not None and counts[0] == answer.answer_id
        try:
            done = self.queue.answer(leased.lease_id, answer)
        except Refusal:
            assert not holds or answer.answer_id in self.days
            return multiple()
        assert done.again == again
        if not again:
            assert holds
            assert counts is None
            self.counts[item_id] = (answer.answer_id, self.clock.now)
            self.days[answer.answer_id] = int(self.clock.now // 86_400)
            del self.held[item_id]
        return answer.answer_id, answer, reviewer, leased

    @rule(target=leases, earlier=said)
    def undo(self, earlier: tuple[str, Any, str, Leased]) -> Any:
        answer_id, _, reviewer, leased = earlier
        item_id = leased.item.item_id
        counts = self.counts.get(item_id, ("", 0.0))[0] == answer_id
        try:
            got = self.queue.undo(answer_id, reviewer)
        except Conflict:
            assert answer_id in self.sealed or not counts
            return multiple()
        assert answer_id not in self.sealed
        if counts:
            del self.counts[item_id]
            self.there.add(item_id)  # until the next sync
        self.held[item_id] = (got.lease_id, reviewer, got.expires_at)
        return got, reviewer

    @rule(force=st.booleans())
    def export(self, force: bool) -> None:
        self.queue.export(self.store, force=force)
        due = {one for one, at in self.counts.values() if force or at + UNDO_SECONDS <= self.clock.now}
        self.sealed |= due
        written = {one.answer_id for one in read_answers(self.store)}
        assert written == self.sealed

    @invariant()
    def the_feed_tells_what_waits(self) -> None:
        found, self.cursor = self.queue.changes(self.cursor, 1000)
        for one in found:
            self.fed[one.item_id] = one.event
        waiting = {item_id for item_id, event in self.fed.items() if event == "added"}
        assert waiting == self.there - self.counts.keys()
        assert self.queue.stats().waiting == len(waiting)


TestReviewing = Reviewing.TestCase
TestReviewing.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
