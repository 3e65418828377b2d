"""A SQL unique key in the place of conditional writes: SQLite on one machine, PostgreSQL where several commit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import StorageError, UnavailableError
from pipeline.storage.retry import LASTING, BrokenConnection, Patience, reason
from pipeline.storage.secrets import remember

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy

log = logging.getLogger(__name__)

POSTGRES = ("postgresql", "postgres")
BUSY_SECONDS = 30
CONNECT_SECONDS = 10
LASTING_WORDS = ("authentication failed", "does not exist", "no pg_hba.conf", "no password supplied")
PASSING_STATES = ("08", "40", "53", "55P03", "57")
"""Classes of SQLSTATE: connection, rollback by the server, too little of something, locked, shutting down."""

T = TypeVar("T")


class SqlLedger:
    """Rows (store, video_id, generation, body) of which the database keeps the first.

    Args:
        place: a SQLite file, or `postgresql://[user[:password]@]host[:port]/database`.
        patience: makes the budget of an operation.
    Raises: StorageError for another kind of URL, or a driver that is missing.
    """

    def __init__(self, place: str | Path, patience: Callable[[], Patience]) -> None:
        self._patience = patience
        self.path: Path | None = None
        self._url: Any = None
        self._made = False
        scheme, found, _ = str(place).partition("://")
        if not found:
            self.path = Path(place).expanduser()
            self.where = str(self.path)
            return
        if scheme.partition("+")[0] not in POSTGRES:
            step = "set MASKSIEVE_LEDGER to one of these"
            raise StorageError("a file or postgresql://host/database for the ledger", f"{scheme}://...", step)
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(str(place)).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError):
            step = "set MASKSIEVE_LEDGER to postgresql://user:password@host/database"
            raise StorageError("an address of a PostgreSQL database", f"{scheme}://...", step) from None
        query = {name: value for name, value in url.query.items() if name == "password"}
        remember([url.password, *(str(value) for value in query.values())])
        self._url = url
        self.where = url.difference_update_query(query).render_as_string().replace("+psycopg", "")

    @property
    def there(self) -> bool:
        """Whether there is something to read; a SQLite file is made by the first commit."""
        return self.path is None or self.path.is_file()

    def insert(self, store: str, video_id: str, generation: int, body: bytes) -> bool:
        """Add a row unless there is one. True if this call did.

        A try that broke may have got in all the same: then the row there is this one.
        """
        import sqlalchemy

        words = f"INSERT INTO {self._table.name} VALUES (:store, :video_id, :generation, :body) ON CONFLICT DO NOTHING"
        row = {"store": store, "video_id": video_id, "generation": generation, "body": body}

        def add(connection: sqlalchemy.Connection) -> bool:
            return connection.execute(sqlalchemy.text(words), row).rowcount == 1

        patience = self._patience()
        added = self._run(add, patience)
        if not added and patience.breaks:
            return any(there == body for _, there in self.rows(store, video_id, generation))
        return added

    def rows(self, store: str, video_id: str, generation: int | None = None) -> list[tuple[int, bytes]]:
        """(generation, body) of a video, ascending."""
        table = self._table
        query = table.select().where(table.c.store == store, table.c.video_id == video_id)
        if generation is not None:
            query = query.where(table.c.generation == generation)
        found = self._run(lambda connection: connection.execute(query).fetchall())
        return sorted((int(row.generation), bytes(row.body)) for row in found)

    def generations(self, store: str) -> dict[str, set[int]]:
        """All generations on record, by video."""
        import sqlalchemy

        table = self._table
        query = sqlalchemy.select(table.c.video_id, table.c.generation).where(table.c.store == store)
        found: dict[str, set[int]] = {}
        for video_id, generation in self._run(lambda connection: connection.execute(query).fetchall()):
            found.setdefault(str(video_id), set()).add(int(generation))
        return found

    def delete(self, store: str, video_id: str, generation: int | None = None) -> None:
        """Remove a row, or all of a video."""
        table = self._table
        query = table.delete().where(table.c.store == store, table.c.video_id == video_id)
        if generation is not None:
            query = query.where(table.c.generation == generation)
        self._run(lambda connection: connection.execute(query))

    def _run(self, work: Callable[[sqlalchemy.Connection], T], patience: Patience | None = None) -> T:
        """Do something in one transaction, again after passing errors."""
        patience = patience or self._patience()

        def once() -> T:
            with self._typed(), self._begun() as connection:
                return work(connection)

        try:
            return patience.insist(once)
        except BrokenConnection as error:
            expected = f"an answer of the commit ledger at {self.where} within {patience.retry_seconds:g} s"
            raise UnavailableError(expected, str(error), "see whether the database runs and can be reached") from None

    @contextmanager
    def _typed(self) -> Iterator[None]:
        """Errors of the database as BrokenConnection if they pass, else as StorageError; none repeats the password."""
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            text = reason(cause)
            if self.path is None and _passing(cause, text):
                raise BrokenConnection(text) from None
            if "database is locked" in text:
                raise BrokenConnection(text) from None
            step = "set MASKSIEVE_LEDGER to a file that can be written" if self.path else "check MASKSIEVE_LEDGER"
            raise StorageError(f"a commit ledger at {self.where}", text, step) from None

    @contextmanager
    def _begun(self) -> Iterator[sqlalchemy.Connection]:
        if self.path is None and not self._made:
            self._make_table()
        with self._engine.begin() as connection:
            if self.path is not None:  # somebody may have removed the file
                self._table.create(connection, checkfirst=True)
            yield connection

    def _make_table(self) -> None:
        """Two that come first at the same time get in each other's way, and the table is there all the same."""
        from sqlalchemy.exc import IntegrityError, ProgrammingError

        try:
            with self._engine.begin() as connection:
                self._table.create(connection, checkfirst=True)
        except (IntegrityError, ProgrammingError) as error:
            if getattr(error.orig, "sqlstate", None) not in ("23505", "42P07"):
                raise
        self._made = True

    @cached_property
    def _table(self) -> sqlalchemy.Table:
        import sqlalchemy as sa

        name = "masksieve_commits" if self.path is None else "commits"  # a database is shared, a file is ours
        return sa.Table(
            name,
            sa.MetaData(),
            sa.Column("store", sa.Text, primary_key=True),
            sa.Column("video_id", sa.Text, primary_key=True),
            sa.Column("generation", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("body", sa.LargeBinary, nullable=False),
        )

    @cached_property
    def _engine(self) -> sqlalchemy.Engine:
        """Connects anew for each operation: they are few, and processes fork."""
        import sqlalchemy as sa

        options: dict[str, Any] = {"poolclass": sa.NullPool, "hide_parameters": True}
        if self.path is None:
            stall = int(self._patience().stall_seconds())
            arguments = {
                "connect_timeout": min(CONNECT_SECONDS, max(2, stall)),
                "tcp_user_timeout": stall * 1000,
                "options": f"-c statement_timeout={stall * 1000} -c lock_timeout={stall * 1000}",
            }
            try:
                return sa.create_engine(self._url, connect_args=arguments, **options)
            except ImportError as error:
                step = "pip install 'masksieve[postgres]'"
                raise StorageError("psycopg, the driver of PostgreSQL", reason(error), step) from None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        url = sa.URL.create("sqlite", database=str(self.path))
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, **options)

        @sa.event.listens_for(engine, "connect")
        def manual(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # the driver would begin too late
            connection.execute("PRAGMA secure_delete = ON")  # what was forgotten is in no byte of the file

        @sa.event.listens_for(engine, "begin")
        def immediate(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # a lock that is waited for, not one that fails half-way

        return engine


def _passing(error: BaseException, text: str) -> bool:
    """Whether PostgreSQL could not be reached, or will do better later."""
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return str(state).startswith(PASSING_STATES)
    if isinstance(error, LASTING) or type(error).__name__ not in ("OperationalError", "ConnectionTimeout"):
        return False
    return not any(word in text for word in LASTING_WORDS)
