"""A SQL unique key in the place of conditional writes: SQLite on one machine, PostgreSQL where several commit."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.database import Database, Use
from pipeline.storage.retry import Patience

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy

USE = Use("commit ledger", "MASKSIEVE_LEDGER")


class SqlLedger:
    """Rows (store, video_id, generation, body) of which the database keeps the first.

    Args:
        place: a SQLite file, or `postgresql://[user[:password]@]host[:port]/database`.
        patience: makes the budget of an operation.
    Raises: StorageError for another kind of URL, or a driver that is missing.
    """

    def __init__(self, place: str | Path, patience: Callable[[], Patience]) -> None:
        self.database = Database(place, USE, patience)
        self.where = self.database.where

    @property
    def there(self) -> bool:
        """Whether there is something to read; a SQLite file is made by the first commit."""
        return self.database.path is None or self.database.path.is_file()

    def insert(self, store: str, video_id: str, generation: int, body: bytes) -> bool:
        """Add a row unless there is one. True if this call did.

        A try that broke may have got in all the same: then the row there is this one.
        """
        import sqlalchemy

        words = f"INSERT INTO {self._table.name} VALUES (:store, :video_id, :generation, :body) ON CONFLICT DO NOTHING"
        row = {"store": store, "video_id": video_id, "generation": generation, "body": body}

        def add(connection: sqlalchemy.Connection) -> bool:
            return connection.execute(sqlalchemy.text(words), row).rowcount == 1

        patience = self.database.patience()
        added = self.database.run(add, patience)
        if not added and patience.breaks:
            return any(there == body for _, there in self.rows(store, video_id, generation))
        return added

    def rows(self, store: str, video_id: str, generation: int | None = None) -> list[tuple[int, bytes]]:
        """(generation, body) of a video, ascending."""
        table = self._table
        query = table.select().where(table.c.store == store, table.c.video_id == video_id)
        if generation is not None:
            query = query.where(table.c.generation == generation)
        found = self.database.run(lambda connection: connection.execute(query).fetchall())
        return sorted((int(row.generation), bytes(row.body)) for row in found)

    def generations(self, store: str) -> dict[str, set[int]]:
        """All generations on record, by video."""
        import sqlalchemy

        table = self._table
        query = sqlalchemy.select(table.c.video_id, table.c.generation).where(table.c.store == store)
        found: dict[str, set[int]] = {}
        for video_id, generation in self.database.run(lambda connection: connection.execute(query).fetchall()):
            found.setdefault(str(video_id), set()).add(int(generation))
        return found

    def delete(self, store: str, video_id: str, generation: int | None = None) -> None:
        """Remove a row, or all of a video."""
        table = self._table
        query = table.delete().where(table.c.store == store, table.c.video_id == video_id)
        if generation is not None:
            query = query.where(table.c.generation == generation)
        self.database.run(lambda connection: connection.execute(query))

    @cached_property
    def _table(self) -> sqlalchemy.Table:
        import sqlalchemy as sa

        # a database is shared, a file is ours
        name = "masksieve_commits" if self.database.path is None else "commits"
        self.database.metadata = sa.MetaData()
        return sa.Table(
            name,
            self.database.metadata,
            sa.Column("store", sa.Text, primary_key=True),
            sa.Column("video_id", sa.Text, primary_key=True),
            sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("body", sa.LargeBinary, nullable=False),
        )
