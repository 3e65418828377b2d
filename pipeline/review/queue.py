"""The queue: what waits for people, whose turn it is, and what they said, in one database that many processes share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from pipeline.review import feed, stats
from pipeline.review.answers import Answer
from pipeline.review.export import export_answers
from pipeline.review.feed import Change
from pipeline.review.items import Item
from pipeline.review.keep import Answered, keep, take_back
from pipeline.review.leases import Leased, Leases
from pipeline.review.queue_tables import item_of, open_database
from pipeline.review.stats import Promise, Seconds, Stats
from pipeline.review.sync import Sync, Synced
from pipeline.review.webhook import Webhook
from pipeline.settings import ReviewSettings
from pipeline.storage.objects import ObjectStore

T = TypeVar("T")

__all__ = ["Answered", "Change", "Leased", "Promise", "Queue", "Seconds", "Stats", "Synced", "default_place"]


def default_place() -> str:
    """Where the queue lies unless told otherwise: $MASKSIEVE_REVIEW, else a file of this user."""
    return os.environ.get("MASKSIEVE_REVIEW") or "~/.local/state/masksieve/review.sqlite"


class Queue:
    """The review queue of one output. Threads share one; every process may open its own on the same database.

    Args:
        database: a SQLite file on a disk of this machine, or `postgresql://[user[:password]@]host[:port]/database`.
        store_identity: `ObjectStore.identity` of the output; queues of several outputs share a database.
        settings: leases, budgets, audits.
        now: Unix time in s. Machines that share a queue should agree on it to well within `lease_seconds`; if they do
            not, two people may look at one item, but only one of them can answer it.
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
        self.settings = settings or ReviewSettings()
        self._database, self._identity, self._now = open_database(database), store_identity, now
        self._leases = Leases(store_identity, self.settings)
        self._webhook = Webhook(self.settings.webhook_url) if self.settings.webhook_url else None

    def sync(self, store: ObjectStore, drop: str | None = None) -> Synced:
        """Bring the queue to what the review lists say now: new items in, those that are no more out."""
        done = Sync(self._database, self._identity, store, self.settings.same_look_bits).run(drop)
        if self._webhook is not None and done.added:
            cursor = self._read(lambda connection: feed.newest(connection, self._identity))
            for name, count in done.added_by_drop.items():
                self._webhook.tell({"event": "items.added", "count": count, "drop": name, "cursor": cursor})
        return done

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
        now = self._now()
        if item_id is not None:
            return [self._database.run(lambda connection: self._leases.take(connection, reviewer, item_id, now))]
        return self._database.run(lambda connection: self._leases.next(connection, reviewer, count, drop, label, now))

    def item(self, item_id: str) -> Item:
        """An item, also one that is answered or withdrawn. Raises NotFound."""
        return item_of(self._read(lambda connection: self._leases.row(connection, item_id)).body)

    def renew(self, item_id: str, lease_id: str) -> float:
        """Hold an item for another `lease_seconds`. Returns: until when. Raises: NotFound, LeaseLost."""
        expires_at = self._now() + self.settings.lease_seconds
        self._change(item_id, lease_id, {"expires_at": expires_at})
        return expires_at

    def release(self, item_id: str, lease_id: str) -> None:
        """Give an item back unanswered; it keeps its place. Raises: NotFound, LeaseLost."""
        self._change(item_id, lease_id, None)

    def skip(self, item_id: str, lease_id: str, reason: str | None = None) -> None:
        """Give an item back to the end of the queue; this reviewer is spared it for the day, while there is another.

        Raises: as `release`.
        """
        now = self._now()
        self._database.run(lambda connection: self._leases.skip(connection, item_id, lease_id, reason, now))

    def answer(self, lease_id: str, answer: Answer) -> Answered:
        """Keep an answer, for good once this returns. The same answer again changes nothing.

        Raises: NotFound (no such item), LeaseLost (expired or somebody else's: claim the item again and resend),
            Conflict (answered, withdrawn, taken back, or another answer of that id), Malformed (not of this item, or
            a mask of another size).
        """
        now, undo_seconds = self._now(), self.settings.undo_seconds
        return self._database.run(
            lambda connection: keep(connection, self._leases, lease_id, answer, now, undo_seconds)
        )

    def undo(self, answer_id: str, reviewer: str) -> Leased:
        """Take an answer back; its item is leased to the reviewer again. Asked twice, it gives the same lease.

        Raises: NotFound (no such answer of this reviewer), Conflict (it was written to the output already).
        """
        now = self._now()
        return self._database.run(lambda connection: take_back(connection, self._leases, answer_id, reviewer, now))

    def export(self, store: ObjectStore, *, force: bool = False) -> int:
        """Write the answers to the output whose time to be taken back is over (`force`: all). Returns: how many."""
        kept_before = float("inf") if force else self._now() - self.settings.undo_seconds
        return export_answers(self._database, self._identity, store, kept_before)

    def changes(self, cursor: int = 0, limit: int = 100) -> tuple[list[Change], int]:
        """What changed after `cursor`, oldest first, at most `limit` (1 to 1000), and the cursor to ask with next."""
        return self._read(lambda connection: feed.read(connection, self._identity, cursor, limit))

    def waiting(self) -> int:
        """How many items nobody answered, leased ones among them; a cheap part of `stats`."""
        return self._read(lambda connection: stats.waiting(connection, self._identity))

    def stats(self, reviewer: str | None = None) -> Stats:
        """Where the queue stands."""
        now, per_day = self._now(), self.settings.items_per_day
        return self._read(lambda connection: stats.read(connection, self._identity, per_day, now, reviewer))

    def close(self) -> None:
        """Let go of connections, and wait a little for webhooks that are on their way."""
        if self._webhook is not None:
            self._webhook.close()
        self._database.close()

    def _read(self, work: Callable[[sa.Connection], T]) -> T:
        return self._database.run(work, writes=False)

    def _change(self, item_id: str, lease_id: str, values: dict[str, Any] | None) -> None:
        """Change the lease of an item; None ends it."""
        now = self._now()
        self._database.run(lambda connection: self._leases.change(connection, item_id, lease_id, values, now))
