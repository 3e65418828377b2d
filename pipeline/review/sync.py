"""Brings a queue to what the review lists say: items in and out, then what they look like, then their order."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pipeline.database import Database
from pipeline.errors import StorageError, UnavailableError
from pipeline.ledger import forgotten_key
from pipeline.review import feed
from pipeline.review.answers import answered_videos, read_answers
from pipeline.review.items import Item, ReviewList, list_tag, listed, read_items, video_of
from pipeline.review.looks import Leaders, look
from pipeline.review.priority import Candidate, priorities
from pipeline.review.queue_tables import (
    OPEN,
    State,
    counted,
    insert_new,
    item_json,
    item_of,
    items,
    label_name,
    lists,
    remove_video,
)  # fmt: skip
from pipeline.review.stats import waiting
from pipeline.side_by_side import side_by_side
from pipeline.storage.manifest import partition
from pipeline.storage.objects import ObjectStore
from pipeline.waiting import reason_kind

log = logging.getLogger(__name__)

READERS = 8
BATCH = 500
"""So many rows are written in one go, and nobody waits longer."""


@dataclass(frozen=True)
class Synced:
    """What a sync changed, and how many items wait or are leased now.

    Args:
        added_by_drop: how many new ones each drop has.
    """

    added: int
    withdrawn: int
    items: int
    added_by_drop: dict[str, int]


class Sync:
    """One sync of the items of one output.

    Args:
        database, store_identity: of the queue.
        store: the output.
        same_look_bits: pictures that differ in at most so many of 64 bits are near-duplicates.
    """

    def __init__(self, database: Database, store_identity: str, store: ObjectStore, same_look_bits: int) -> None:
        self._database, self._identity, self._store = database, store_identity, store
        self._bits = same_look_bits
        self._mine = items.c.store == store_identity
        self._added: Counter[str] = Counter()
        self._withdrawn = 0
        self._labels: set[str] = set()

    def run(self, drop: str | None = None) -> Synced:
        """Do it. Lists that did not change since are not read again."""
        known = self._database.run(self._known, writes=False)
        there = {key: list_tag(entry) for key, entry in listed(self._store, drop).items()}
        below = "review/" if drop is None else f"review/{partition(drop)}/"
        for key in sorted(key for key in known.keys() - there.keys() if key.startswith(below)):
            self._vanished(key)
        answered = answered_videos(self._store) if there.items() - known.items() else {}
        for found in read_items(self._store, drop, known):
            said = read_answers(self._store, found.video_id) if found.video_id in answered else ()
            self._apply(found, known.get(found.key), {one.item_id for one in said})
        self._look()
        for label in sorted(self._labels):
            self._rank(label)
        left = self._database.run(lambda connection: waiting(connection, self._identity), writes=False)
        return Synced(sum(self._added.values()), self._withdrawn, left, counted(self._added))

    def _known(self, connection: sa.Connection) -> dict[str, str]:
        rows = connection.execute(sa.select(lists.c.key, lists.c.tag).where(lists.c.store == self._identity))
        return dict(rows.tuples().all())

    def _apply(self, found: ReviewList, seen_tag: str | None, said: set[str]) -> None:
        """Make one video's items those of its list.

        Args:
            seen_tag: of the list when this sync began: if another sync was faster, what it found stays.
            said: ids of items that the output has an answer to, from this queue or another.
        """
        wanted = {one.item_id: one for one in found.items}

        def work(connection: sa.Connection) -> tuple[list[str], list[str]]:
            if not self._take(connection, found, seen_tag):
                return [], []
            mine = self._mine & (items.c.video_id == found.video_id)
            query = sa.select(items.c.item_id, items.c.state, items.c.body, items.c.look).where(mine)
            there = {row.item_id: row for row in connection.execute(query.order_by(items.c.item_id).with_for_update())}
            states = {item_id: row.state for item_id, row in there.items()}
            gone = [one for one, state in states.items() if state in OPEN and one not in wanted]
            back = [one for one, state in states.items() if state == "withdrawn" and one in wanted and one not in said]
            new = [one for one in wanted if one not in states and one not in said]
            self._set(connection, gone, "withdrawn")
            self._set(connection, back, "waiting")
            for one in wanted.keys() & there.keys():
                self._renew(connection, wanted[one], there[one])
            if new:
                connection.execute(items.insert(), [_row(self._identity, wanted[one]) for one in new])
            events: list[tuple[feed.Event, str]] = [("withdrawn", one) for one in gone]
            feed.note(connection, self._identity, [*events, *(("added", one) for one in (*back, *new))])
            return gone, [*back, *new]

        gone, added = self._database.run(work)
        self._withdrawn += len(gone)
        self._added.update(wanted[one].drop for one in added)
        self._labels.update(label_name(one.label) for one in found.items)

    def _take(self, connection: sa.Connection, found: ReviewList, seen_tag: str | None) -> bool:
        """Note which version of a list was read, unless another sync noted one since this one looked."""
        row = {"store": self._identity, "key": found.key, "video_id": found.video_id, "tag": found.tag}
        if seen_tag is None:
            return insert_new(connection, lists, row)
        same = (lists.c.store == self._identity) & (lists.c.key == found.key) & (lists.c.tag == seen_tag)
        return connection.execute(lists.update().where(same).values(tag=found.tag)).rowcount == 1

    def _renew(self, connection: sa.Connection, item: Item, before: sa.Row[Any]) -> None:
        """Let an item that shows the same know its generation, its scores and where its picture lies now."""
        row = _row(self._identity, item)
        if row["body"] != before.body:
            names = ["drop", "reasons", "gain", "body"] + (["look"] if before.look == "" else [])
            changed = items.update().where(self._mine, items.c.item_id == item.item_id)
            connection.execute(changed.values({name: row[name] for name in names}))

    def _set(self, connection: sa.Connection, item_ids: list[str], state: State) -> None:
        free = {"state": state, "lease_id": None, "reviewer": None, "expires_at": None}
        for start in range(0, len(item_ids), BATCH):
            chosen = self._mine & items.c.item_id.in_(item_ids[start : start + BATCH])
            connection.execute(items.update().where(chosen).values(free))

    def _vanished(self, key: str) -> None:
        """A list that is gone: its video was forgotten, and nothing may tell of it; or it is to be derived again."""
        video_id = video_of(key)
        forgotten = self._store.exists(forgotten_key(video_id))

        def work(connection: sa.Connection) -> int:
            open_ = self._mine & (items.c.video_id == video_id) & items.c.state.in_(OPEN)
            gone = list(connection.execute(sa.select(items.c.item_id).where(open_).with_for_update()).scalars())
            self._set(connection, gone, "withdrawn")
            connection.execute(lists.delete().where(lists.c.store == self._identity, lists.c.key == key))
            if forgotten:
                remove_video(connection, self._identity, video_id)
            feed.note(connection, self._identity, [("withdrawn", one) for one in gone])
            return len(gone)

        self._withdrawn += self._database.run(work)

    def _look(self) -> None:
        """Find out what items look like that nobody looked at yet, the most important first."""
        leaders = None
        query = sa.select(items.c.item_id, items.c.body).where(self._mine, items.c.look.is_(None))
        query = query.where(items.c.state.in_(OPEN)).order_by(items.c.rank, items.c.item_id).limit(BATCH)
        while True:
            rows = self._database.run(lambda connection: connection.execute(query).fetchall(), writes=False)
            if not rows:
                return
            leaders = leaders or self._leaders()
            try:
                found = sorted(side_by_side(self._seen, [item_of(body) for _, body in rows], READERS, "looks"))
            except UnavailableError as error:
                log.warning("near-duplicates are told apart at the next sync: %s", error)
                return
            values = []
            for name, label, seen in found:
                alike = leaders.join(label, seen, name) if seen else None
                values.append({"b_item": name, "look": seen, "alike": alike})
                self._labels.add(label)
            self._update(values)

    def _seen(self, item: Item) -> tuple[str, str, str]:
        """(item_id, label, look) of an item that has a picture."""
        seen = ""
        try:
            seen = look(self._store.get(picture_key(item)), item.box_xyxy, item.height, item.width)
        except UnavailableError:
            raise
        except StorageError:  # no such picture, any more
            pass
        return item.item_id, label_name(item.label), seen

    def _leaders(self) -> Leaders:
        leaders = Leaders(self._bits)
        query = sa.select(items.c.label, items.c.look, items.c.item_id)
        query = query.where(self._mine, items.c.alike == items.c.item_id).order_by(items.c.item_id)
        for label, seen, name in self._database.run(lambda connection: list(connection.execute(query)), writes=False):
            leaders.lead(label, seen, name)
        return leaders

    def _rank(self, label: str) -> None:
        """Put the items of a label in their order. Audits keep theirs, which is drawn."""
        columns = (items.c.item_id, items.c.video_id, items.c.object_id, items.c.alike, items.c.gain)
        query = sa.select(*columns, items.c.state, items.c.rank).where(self._mine, items.c.label == label)
        query = query.where(~items.c.audit, items.c.state != "withdrawn").order_by(items.c.item_id)
        rows = self._database.run(lambda connection: list(connection.execute(query)), writes=False)
        order = priorities([
            Candidate(row.gain, (row.video_id, row.object_id), row.alike, row.state == "answered", row.item_id)
            for row in rows
        ])  # fmt: skip
        pairs = zip(rows, (-order).tolist(), strict=True)
        self._update([{"b_item": row.item_id, "rank": rank} for row, rank in pairs if row.rank != rank])

    def _update(self, values: list[dict[str, Any]]) -> None:
        """Change columns of many items, a few at a time."""
        for start in range(0, len(values), BATCH):
            some = sorted(values[start : start + BATCH], key=lambda row: row["b_item"])
            names = [name for name in some[0] if name != "b_item"]
            change = items.update().where(self._mine, items.c.item_id == sa.bindparam("b_item"))
            change = change.values({name: sa.bindparam(name) for name in names})
            self._database.run(lambda connection: connection.execute(change, some))  # noqa: B023


def _row(store: str, item: Item) -> dict[str, Any]:
    """A new item. Audits come in an order that is drawn, so that what they say is fair before all are judged."""
    kinds = sorted({reason_kind(reason) for reason in item.reasons} - {"audit"})
    drawn = int(hashlib.sha256(item.item_id.encode()).hexdigest()[:12], 16) / 16.0**12
    audit = item.kind == "audit"
    return {
        "store": store, "item_id": item.item_id, "video_id": item.video_id, "object_id": item.object_id,
        "drop": item.drop, "label": label_name(item.label), "reasons": "\n".join(kinds), "audit": audit,
        "gain": item.gain,
        "look": "" if audit or picture_key(item) == "" or item.box_xyxy is None else None, "state": "waiting",
        "rank": drawn if audit else -item.gain, "body": item_json(item),
    }  # fmt: skip


def picture_key(item: Item) -> str:
    """Where the picture of an item lies in its output, wherever that was when it was made; "" for none."""
    return "" if item.frame_uri is None else "review_images/" + item.frame_uri.rpartition("review_images/")[2]
