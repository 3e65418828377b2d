"""Leases: an item is one reviewer's alone for a while, and comes back when that is over."""

from __future__ import annotations

import random
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pipeline.review.items import Item
from pipeline.review.queue_tables import insert_new, is_item, item_of, items, label_name, one_at_a_time, skips
from pipeline.review.refusals import BudgetSpent, Conflict, LeaseLost, NotFound
from pipeline.review.stats import budget_left, day_of
from pipeline.settings import ReviewSettings

FREE = {"lease_id": None, "reviewer": None, "expires_at": None}
AGAIN = "claim the item again, then send it again"


@dataclass(frozen=True)
class Leased:
    """An item that is one reviewer's alone until `expires_at` (Unix time in s)."""

    item: Item
    lease_id: str
    expires_at: float


class Leases:
    """The leases of one output's items. Every method is part of the transaction of its connection.

    Args:
        store: identity of the output.
        settings: how long a lease lasts, the budget, the share of audits.
    """

    def __init__(self, store: str, settings: ReviewSettings) -> None:
        self.store = store
        self._settings = settings
        self._mine = items.c.store == store
        self._draw = random.SystemRandom()

    def row(self, connection: sa.Connection, item_id: str, *, locked: bool = False) -> sa.Row[Any]:
        """An item's row, which nobody else changes until the transaction ends if `locked`. Raises NotFound."""
        query = items.select().where(is_item(self.store, item_id))
        found = connection.execute(query.with_for_update() if locked else query).one_or_none()
        if found is None:
            raise NotFound("an item of this queue", repr(item_id[:40]), "claim the next item")
        return found

    def next(
        self, connection: sa.Connection, reviewer: str, count: int, drop: str | None, label: str | None, now: float
    ) -> list[Leased]:
        """Lease the next items. Raises BudgetSpent if something waits that nobody may be given today."""
        self._expire(connection, now)
        count = self._allowed(connection, count, now)
        waiting: tuple[sa.ColumnElement[bool], ...] = (self._mine, items.c.state == "waiting")
        waiting += () if drop is None else (items.c.drop == drop,)
        waiting += () if label is None else (items.c.label == label_name(label),)
        spared = sa.exists().where(
            skips.c.store == self.store, skips.c.item_id == items.c.item_id, skips.c.reviewer == reviewer,
            skips.c.day == day_of(now),
        )  # fmt: skip
        for where in ((*waiting, ~spared), waiting):
            for skip_locked in (
                True,
                False,
            ):  # those that another transaction holds just now, only if there is no other
                if chosen := self._choose(connection, where, count, skip_locked=skip_locked):
                    return [self.lease(connection, row, reviewer, now) for row in chosen]
        return []

    def take(self, connection: sa.Connection, reviewer: str, item_id: str, now: float) -> Leased:
        """Lease this item. Raises: NotFound, Conflict, LeaseLost (somebody else has it), BudgetSpent."""
        row = self.row(connection, item_id, locked=True)
        refuse_settled(row)
        if row.state == "waiting" or row.expires_at <= now:
            self._allowed(connection, 1, now)
        elif row.reviewer != reviewer:
            raise LeaseLost("an item that nobody has", f"{item_id} is with another reviewer", "claim the next item")
        return self.lease(connection, row, reviewer, now)

    def lease(self, connection: sa.Connection, row: sa.Row[Any], reviewer: str, now: float) -> Leased:
        """Make an item a reviewer's, whoever had it; its row is locked."""
        lease_id, expires_at = secrets.token_hex(8), now + self._settings.lease_seconds
        values = {"state": "leased", "lease_id": lease_id, "reviewer": reviewer, "expires_at": expires_at}
        connection.execute(items.update().where(is_item(self.store, row.item_id)).values(values))
        return Leased(item_of(row.body), lease_id, expires_at)

    def held(self, connection: sa.Connection, item_id: str, lease_id: str, now: float) -> sa.Row[Any]:
        """The row of an item that is held by this lease, locked. Raises: NotFound, LeaseLost."""
        row = self.row(connection, item_id, locked=True)
        refuse_lost(row, lease_id, now)
        return row

    def change(
        self, connection: sa.Connection, item_id: str, lease_id: str, values: dict[str, Any] | None, now: float
    ) -> None:
        """Change what holds an item; None gives it back. Raises: NotFound, LeaseLost."""
        self.held(connection, item_id, lease_id, now)
        given_back = {"state": "waiting", **FREE}
        connection.execute(items.update().where(is_item(self.store, item_id)).values(values or given_back))

    def skip(self, connection: sa.Connection, item_id: str, lease_id: str, reason: str | None, now: float) -> None:
        """Give an item back to the end. Raises: NotFound, LeaseLost."""
        row = self.held(connection, item_id, lease_id, now)
        values = {"state": "waiting", "skips": row.skips + 1, **FREE}
        connection.execute(items.update().where(is_item(self.store, item_id)).values(values))
        who = {"store": self.store, "item_id": item_id, "reviewer": row.reviewer}
        if not insert_new(connection, skips, {**who, "day": day_of(now), "reason": reason}):
            same = [skips.c[name] == value for name, value in who.items()]
            connection.execute(skips.update().where(*same).values(day=day_of(now), reason=reason))

    def _choose(
        self, connection: sa.Connection, where: tuple[sa.ColumnElement[bool], ...], count: int, *, skip_locked: bool
    ) -> list[sa.Row[Any]]:
        """Rows to lease, locked. Which of them are audits is drawn anew each time: nobody can tell or choose."""
        wanted = [self._draw.random() < self._settings.audit_share for _ in range(count)]
        found: dict[bool, list[sa.Row[Any]]] = {}
        for audit in (True, False):
            query = items.select().where(*where, items.c.audit == audit)
            query = query.order_by(items.c.skips, items.c.rank, items.c.item_id).limit(count)
            found[audit] = list(connection.execute(query.with_for_update(skip_locked=skip_locked)))
        chosen = []
        for audit in wanted:
            kind = found[audit] or found[not audit]
            if kind:
                chosen.append(kind.pop(0))
        return chosen

    def _expire(self, connection: sa.Connection, now: float) -> None:
        """Leases that are over end."""
        over = sa.select(items.c.item_id).where(self._mine, items.c.state == "leased", items.c.expires_at <= now)
        item_ids = list(connection.execute(over.with_for_update(skip_locked=True)).scalars())
        if item_ids:
            chosen = self._mine & items.c.item_id.in_(item_ids)
            connection.execute(items.update().where(chosen).values(state="waiting", **FREE))

    def _allowed(self, connection: sa.Connection, count: int, now: float) -> int:
        """So many of `count` items may be handed out today. Raises BudgetSpent for none."""
        per_day = self._settings.items_per_day
        if per_day is None:
            return count
        one_at_a_time(connection, self.store, "budget")
        left = budget_left(connection, self.store, per_day, now) or 0
        if not left:
            got = f"{per_day} answered or in somebody's hands"
            raise BudgetSpent(f"at most {per_day} items a day", got, "go on tomorrow, or raise review.items_per_day")
        return min(count, left)


def refuse_settled(row: sa.Row[Any]) -> None:
    """Raise Conflict for an item that is answered or withdrawn."""
    if row.state == "answered":
        raise Conflict("an item without an answer", f"{row.item_id} is answered", "claim the next item")
    if row.state == "withdrawn":
        raise Conflict(
            "an item that waits", f"{row.item_id} was withdrawn: its video is decided anew", "claim the next item"
        )


def refuse_lost(row: sa.Row[Any], lease_id: str, now: float) -> None:
    """Raise LeaseLost unless this lease holds the item now."""
    if row.state != "leased" or row.lease_id != lease_id:
        raise LeaseLost(f"the lease that holds {row.item_id}", "one that does not", AGAIN)
    if row.expires_at <= now:
        raise LeaseLost(f"a lease of {row.item_id} that lasts", f"it ended {now - row.expires_at:.0f} s ago", AGAIN)
