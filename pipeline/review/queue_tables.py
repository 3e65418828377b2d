"""The tables of review queues: items, whose turn they are, answers, skips, and the feed of changes; all by output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from pipeline.database import Database, Use
from pipeline.review.items import Item
from pipeline.storage.retry import Patience

USE = Use("review queue", "MASKSIEVE_REVIEW", pooled=True)
PATIENCE_SECONDS = 20.0
"""People wait for an answer, and ask again."""

MOST_LABEL = 100
"""Characters of a label: PostgreSQL has an index of them, whose rows are small."""

State = Literal["waiting", "leased", "answered", "withdrawn"]
OPEN = ("waiting", "leased")

metadata = sa.MetaData()

items = sa.Table(
    "masksieve_review_items",
    metadata,
    sa.Column("store", sa.Text, primary_key=True),
    sa.Column("item_id", sa.Text, primary_key=True),
    sa.Column("video_id", sa.Text, nullable=False),
    sa.Column("object_id", sa.Integer, nullable=False),
    sa.Column("drop", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),  # "" for none
    sa.Column("reasons", sa.Text, nullable=False),  # kinds, one a line
    sa.Column("audit", sa.Boolean, nullable=False),
    sa.Column("gain", sa.Float, nullable=False),
    sa.Column("look", sa.Text),  # 16 hex digits; "" where there is no picture; null: not looked at yet
    sa.Column("alike", sa.Text),  # the item that the others that look like it are named after
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("skips", sa.Integer, nullable=False, server_default="0"),
    sa.Column("rank", sa.Float, nullable=False),  # the smaller, the sooner
    sa.Column("lease_id", sa.Text),
    sa.Column("reviewer", sa.Text),
    sa.Column("expires_at", sa.Float),  # Unix time in s
    sa.Column("body", sa.Text, nullable=False),  # the item as JSON
    # All that choosing the next item reads, in its order, also for one drop or label; and all that is counted.
    sa.Index(
        "masksieve_review_next",
        "store",
        "state",
        "audit",
        "skips",
        "rank",
        "item_id",
        "drop",
        "label",
        "reasons",
    ),
    sa.Index("masksieve_review_leases", "store", "state", "expires_at"),
    sa.Index("masksieve_review_of_video", "store", "video_id", "item_id"),
    sa.Index("masksieve_review_of_label", "store", "label", "item_id"),
)

answers = sa.Table(
    "masksieve_review_answers",
    metadata,
    sa.Column("store", sa.Text, primary_key=True),
    sa.Column("answer_id", sa.Text, primary_key=True),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("video_id", sa.Text, nullable=False),
    sa.Column("reviewer", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float),
    sa.Column("audit", sa.Boolean, nullable=False),
    sa.Column("bad", sa.Boolean, nullable=False),
    sa.Column("day", sa.Integer, nullable=False),  # of UTC, since 1970
    sa.Column("kept_at", sa.Float, nullable=False),  # Unix time in s
    sa.Column("state", sa.Text, nullable=False),  # kept; undone; sealed (being written out); exported
    sa.Column("body", sa.Text, nullable=False),  # the answer as JSON
    sa.Index("masksieve_review_days", "store", "day", "reviewer", "state"),
    sa.Index("masksieve_review_due", "store", "state", "kept_at"),
    sa.Index(
        "masksieve_review_once",
        "store",
        "item_id",
        unique=True,
        sqlite_where=sa.text("state <> 'undone'"),
        postgresql_where=sa.text("state <> 'undone'"),
    ),
)

skips = sa.Table(
    "masksieve_review_skips",
    metadata,
    sa.Column("store", sa.Text, primary_key=True),
    sa.Column("item_id", sa.Text, primary_key=True),
    sa.Column("reviewer", sa.Text, primary_key=True),
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text),
)

lists = sa.Table(
    "masksieve_review_lists",
    metadata,
    sa.Column("store", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),  # of a review list
    sa.Column("video_id", sa.Text, nullable=False),
    sa.Column("tag", sa.Text, nullable=False),  # of the version that was read
)

changes = sa.Table(
    "masksieve_review_changes",
    metadata,
    sa.Column("cursor", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("store", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Index("masksieve_review_feed", "store", "cursor"),
    sqlite_autoincrement=True,  # a number is never given twice
)


def open_database(place: str | Path) -> Database:
    """The database of review queues. Raises StorageError for an address that is none."""
    database = Database(place, USE, lambda: Patience(PATIENCE_SECONDS, PATIENCE_SECONDS))
    database.metadata = metadata
    return database


def one_at_a_time(connection: sa.Connection, store: str, what: str) -> None:
    """Let no other transaction of this kind run until this one ends. Take it last: whoever has it waits for nobody.

    SQLite's writers are one at a time anyway.
    """
    if connection.dialect.name == "postgresql":
        digest = hashlib.sha256(f"{what}:{store}".encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))


def insert_new(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Add a row unless a key of it is taken. True if this call did."""
    names = ", ".join(f'"{name}"' for name in row)
    values = ", ".join(f":{name}" for name in row)
    words = f"INSERT INTO {table.name} ({names}) VALUES ({values}) ON CONFLICT DO NOTHING"
    return connection.execute(sa.text(words), dict(row)).rowcount == 1


def item_json(item: Item) -> str:
    """An item as it is kept."""
    return json.dumps(vars(item), ensure_ascii=False, separators=(",", ":"))


def item_of(body: str) -> Item:
    """An item as it was kept."""
    found: dict[str, Any] = json.loads(body)
    box = found["box_xyxy"]
    return Item(**{**found, "reasons": tuple(found["reasons"]), "box_xyxy": None if box is None else tuple(box)})


def label_name(label: str | None) -> str:
    """What a label goes by here: "" for none, a long one cut, and without what PostgreSQL cannot hold."""
    plain = (label or "").replace("\x00", "\ufffd")
    if len(plain) <= MOST_LABEL:
        return plain
    return f"{plain[: MOST_LABEL - 10]}… {hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def is_item(store: str, item_id: str) -> sa.ColumnElement[bool]:
    """The condition that names an item."""
    return (items.c.store == store) & (items.c.item_id == item_id)


def counted(rows: Mapping[str, int]) -> dict[str, int]:
    """Counts by name, in the order of the names."""
    return {name: rows[name] for name in sorted(rows)}


def remove_video(connection: sa.Connection, store: str, video_id: str) -> None:
    """Leave nothing that tells of a video: neither its items nor what was said of them."""
    of_video = sa.select(items.c.item_id).where(items.c.store == store, items.c.video_id == video_id)
    connection.execute(skips.delete().where(skips.c.store == store, skips.c.item_id.in_(of_video)))
    for table in (items, answers, lists):
        connection.execute(table.delete().where(table.c.store == store, table.c.video_id == video_id))
