"""The feed: what came into a queue, left it and was answered, in an order that a cursor reads without gaps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from pipeline.review.items import Item
from pipeline.review.queue_tables import changes, item_of, items, one_at_a_time

Event = Literal["added", "withdrawn", "answered"]
MOST = 1000


@dataclass(frozen=True)
class Change:
    """One change. `added` also says that an answer was taken back.

    Args:
        cursor: of this change; they rise, and numbers may be left out.
        item: of `added`, unless its video was forgotten since.
    """

    cursor: int
    event: Event
    item_id: str
    item: Item | None = None


def note(connection: sa.Connection, store: str, events: Iterable[tuple[Event, str]]) -> None:
    """Add changes to the feed, last in a transaction.

    Writers take turns until they have committed: numbers are given out in the order in which readers see them, so
    nobody reads past a change that is not there yet.
    """
    rows = [{"store": store, "event": event, "item_id": item_id} for event, item_id in events]
    if rows:
        one_at_a_time(connection, store, "feed")
        connection.execute(changes.insert(), rows)


def read(connection: sa.Connection, store: str, cursor: int, limit: int) -> tuple[list[Change], int]:
    """At most `limit` (1 to 1000) changes after a cursor, oldest first, and the cursor to ask with next."""
    join = changes.outerjoin(items, (items.c.store == changes.c.store) & (items.c.item_id == changes.c.item_id))
    query = (
        sa.select(changes.c.cursor, changes.c.event, changes.c.item_id, items.c.body)
        .select_from(join)
        .where(changes.c.store == store, changes.c.cursor > cursor)
        .order_by(changes.c.cursor)
        .limit(min(max(limit, 1), MOST))
    )
    found = []
    for number, event, item_id, body in connection.execute(query):
        item = item_of(body) if event == "added" and body is not None else None
        found.append(Change(number, event, item_id, item))
    return found, found[-1].cursor if found else cursor


def newest(connection: sa.Connection, store: str) -> int:
    """The cursor of the last change; 0 before the first."""
    query = sa.select(sa.func.max(changes.c.cursor)).where(changes.c.store == store)
    return int(connection.execute(query).scalar() or 0)
