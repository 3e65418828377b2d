"""The queue: what waits for people, whose turn it is, and what they said, in one database that many processes share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.review.answers import Answer
from pipeline.review.feed import Change
from pipeline.review.items import Item
from pipeline.settings import ReviewSettings
from pipeline.storage.objects import ObjectStore


@dataclass(frozen=True)
class Leased:
    """An item that is one reviewer's alone until `expires_at` (Unix time in s)."""

    item: Item
    lease_id: str
    expires_at: float


@dataclass(frozen=True)
class Answered:
    """An answer that is kept, whatever happens now.

    Args:
        again: it had been given before, with the same content; nothing changed.
        undo_until: Unix time in s until which `undo` is sure to work.
        answered_today: by this reviewer, this answer included.
    """

    answer_id: str
    again: bool
    undo_until: float
    answered_today: int


@dataclass(frozen=True)
class Synced:
    """What a sync changed, and how many items wait or are leased now."""

    added: int
    withdrawn: int
    items: int


@dataclass(frozen=True)
class Seconds:
    """How long answers took."""

    median: float
    mean: float
    count: int


@dataclass(frozen=True)
class Promise:
    """What audits say of the accepted masks so far.

    Args:
        judged: audited masks that a person answered on; bad: those of them that are wrong.
        error_rate: bad / judged; low, high: its Clopper-Pearson interval (90%), as if the masks were independent. All
            None while nothing is judged.
        words: the same as a sentence.
    """

    judged: int
    bad: int
    error_rate: float | None
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True)
class Stats:
    """Where a queue stands. Days are of UTC.

    Args:
        waiting: items that nobody answered, leased ones among them; waiting_by_*: the same by drop, label ("" for none)
            and kind of reason (an item may have several).
        answered, answered_today: answers that were not taken back; mine_today: those of the reviewer who asks.
        seconds: of all answers that tell it, seconds_by_verdict: of each verdict.
        budget_left: items that may still be answered today; None: no limit.
    """

    waiting: int
    waiting_by_drop: dict[str, int]
    waiting_by_label: dict[str, int]
    waiting_by_reason: dict[str, int]
    answered: int
    answered_today: int
    mine_today: int
    answered_by_verdict: dict[str, int]
    answered_by_reviewer: dict[str, int]
    seconds: Seconds | None
    seconds_by_verdict: dict[str, Seconds]
    budget_left: int | None
    promise: Promise
    leased: int = 0
    unexported: int = field(default=0)


def default_place() -> str:
    """Where the queue lies unless told otherwise: $MASKSIEVE_REVIEW, else a file of this user."""
    return os.environ.get("MASKSIEVE_REVIEW") or "~/.local/state/masksieve/review.sqlite"


class Queue:
    """The review queue of one output. Threads share one; every process may open its own on the same database.

    Args:
        database: a SQLite file, or `postgresql://[user[:password]@]host[:port]/database`.
        store_identity: `ObjectStore.identity` of the output; queues of several outputs share a database.
        settings: leases, budgets, audits.
        now: Unix time in s.
    Raises (every method): UnavailableError while the database does not answer, StorageError if it cannot be used;
        refusals of `pipeline.review.refusals`.
    """

    def __init__(
        self,
        database: str | Path,
        store_identity: str,
        settings: ReviewSettings | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        raise NotImplementedError

    def sync(self, store: ObjectStore, drop: str | None = None) -> Synced:
        """Bring the queue to what the review lists say now: new items in, those that are no more out."""
        raise NotImplementedError

    def claim(
        self,
        reviewer: str,
        count: int = 1,
        *,
        item_id: str | None = None,
        drop: str | None = None,
        label: str | None = None,
    ) -> list[Leased]:
        """Lease the next items, or that one, to a reviewer; a reviewer may claim an item of theirs again.

        Returns: at most `count`; none when nothing waits.
        Raises:  BudgetSpent; for `item_id`: NotFound, LeaseLost (somebody else has it), Conflict (answered, withdrawn).
        """
        raise NotImplementedError

    def item(self, item_id: str) -> Item:
        """An item, also one that is answered or withdrawn. Raises NotFound."""
        raise NotImplementedError

    def renew(self, item_id: str, lease_id: str) -> float:
        """Hold an item for another `lease_seconds`. Returns: until when. Raises: NotFound, LeaseLost."""
        raise NotImplementedError

    def release(self, item_id: str, lease_id: str) -> None:
        """Give an item back unanswered; it keeps its place. Raises: NotFound, LeaseLost."""
        raise NotImplementedError

    def skip(self, item_id: str, lease_id: str, reason: str | None = None) -> None:
        """Give an item back to the end of the queue; this reviewer is spared it for the day. Raises: as `release`."""
        raise NotImplementedError

    def answer(self, lease_id: str, answer: Answer) -> Answered:
        """Keep an answer, for good once this returns. The same answer again changes nothing.

        Raises: NotFound (no such item), LeaseLost (expired or somebody else's: claim the item again and resend),
            Conflict (answered, withdrawn, taken back, or another answer of that id), Malformed (not of this item, or
            a mask of another size).
        """
        raise NotImplementedError

    def undo(self, answer_id: str, reviewer: str) -> Leased:
        """Take an answer back; its item is leased to the reviewer again. Asked twice, it gives the same lease.

        Raises: NotFound (no such answer of this reviewer), Conflict (it was written to the output already).
        """
        raise NotImplementedError

    def export(self, store: ObjectStore, *, force: bool = False) -> int:
        """Write the answers to the output whose time to be taken back is over (`force`: all). Returns: how many."""
        raise NotImplementedError

    def changes(self, cursor: int = 0, limit: int = 100) -> tuple[list[Change], int]:
        """What changed after `cursor`, oldest first, and the cursor to ask with next."""
        raise NotImplementedError

    def stats(self, reviewer: str | None = None) -> Stats:
        """Where the queue stands."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of connections, and wait a little for webhooks that are on their way."""
        raise NotImplementedError
