"""A database for a few small tables: a SQLite file on one machine, PostgreSQL where several share it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import StorageError, UnavailableError
from pipeline.storage.retry import LASTING, BrokenConnection, Patience, reason
from pipeline.storage.secrets import remember

if TYPE_CHECKING:
    from collections.abc import Callable

    import sqlalchemy

POSTGRES = ("postgresql", "postgres")
BUSY_SECONDS = 30
CONNECT_SECONDS = 10
CACHE_KIB = 65_536
"""Of a SQLite file: the indexes of a large queue fit in."""
LASTING_WORDS = ("authentication failed", "does not exist", "no pg_hba.conf", "no password supplied")
PASSING_STATES = ("08", "40", "53", "55P03", "57")
"""Classes of SQLSTATE: connection, rollback by the server, too little of something, locked, shutting down."""

T = TypeVar("T")


@dataclass(frozen=True)
class Use:
    """What a database is for.

    Args:
        what: as messages call it: "commit ledger".
        variable: of the environment, or option, that says where it is.
        pooled: connections are kept for the next operation, and the SQLite file is written ahead (WAL), so that readers
            and a writer do not wait for each other. Else each operation connects anew: for few, in processes that fork.
    """

    what: str
    variable: str
    pooled: bool = False


class Database:
    """Runs transactions, again after passing errors, with every error typed.

    Args:
        place: a SQLite file, or `postgresql://[user[:password]@]host[:port]/database`.
        use: what for.
        patience: makes the budget of an operation.

    Attributes:
        path: the SQLite file; None for PostgreSQL. where: either, as messages name it, without the password.
        metadata: the tables, to be set before the first operation, which makes those that are missing.
    Raises: StorageError for another kind of URL, or a driver that is missing.
    """

    metadata: sqlalchemy.MetaData

    def __init__(self, place: str | Path, use: Use, patience: Callable[[], Patience]) -> None:
        self.use, self.patience = use, patience
        self.path: Path | None = None
        self._url: Any = None
        self._made = False
        self._turn = threading.Lock()
        scheme, found, _ = str(place).partition("://")
        if not found:
            self.path = Path(place).expanduser()
            self.where = str(self.path)
            return
        if scheme.partition("+")[0] not in POSTGRES:
            step = f"set {use.variable} to one of these"
            raise StorageError(f"a file or postgresql://host/database for the {use.what}", f"{scheme}://...", step)
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(str(place)).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError):
            step = f"set {use.variable} to postgresql://user:password@host/database"
            raise StorageError("an address of a PostgreSQL database", f"{scheme}://...", step) from None
        query = {name: value for name, value in url.query.items() if name == "password"}
        remember([url.password, *(str(value) for value in query.values())])
        self._url = url
        self.where = url.difference_update_query(query).render_as_string().replace("+psycopg", "")

    def run(
        self, work: Callable[[sqlalchemy.Connection], T], patience: Patience | None = None, *, writes: bool = True
    ) -> T:
        """Do something in one transaction, again after passing errors.

        A try whose answer was lost may have got in all the same, so `work` has to bear being done twice.

        Args:    writes: false lets it read beside a writer.
        Raises:  UnavailableError once patience ends; StorageError; what `work` raises, with nothing changed.
        """
        patience = patience or self.patience()

        def once() -> T:
            with self._typed(), self.begun(writes=writes) as connection:
                return work(connection)

        try:
            return patience.insist(once)
        except BrokenConnection as error:
            expected = f"an answer of the {self.use.what} at {self.where} within {patience.retry_seconds:g} s"
            raise UnavailableError(expected, str(error), "see whether the database runs and can be reached") from None

    @contextmanager
    def begun(self, *, writes: bool = True) -> Iterator[sqlalchemy.Connection]:
        """A transaction that ends with the block."""
        if not self._made and (self.path is None or self.use.pooled):
            self._make_tables()
        engine = self.engine if writes else self._reading
        # Threads of this process wait in line; SQLite would have them sleep, some of them long.
        with self._turn if writes and self.path is not None else nullcontext(), engine.begin() as connection:
            if self.path is not None and not self.use.pooled:  # somebody may have removed the file
                self.metadata.create_all(connection, checkfirst=True)
            yield connection

    def close(self) -> None:
        """Let go of the connections that are kept."""
        if "engine" in self.__dict__:
            self.engine.dispose()

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
            variable = self.use.variable
            step = f"set {variable} to a file that can be written" if self.path else f"check {variable}"
            raise StorageError(f"a {self.use.what} at {self.where}", text, step) from None

    def _make_tables(self) -> None:
        """Two that come first at the same time get in each other's way, and the tables are there all the same."""
        import sqlalchemy as sa
        from sqlalchemy.exc import IntegrityError, ProgrammingError

        with self._reading.begin() as connection:  # so that a reader need not wait for a writer
            there = set(sa.inspect(connection).get_table_names())
        try:
            if missing := [table for table in self.metadata.tables.values() if table.name not in there]:
                with self.engine.begin() as connection:
                    self.metadata.create_all(connection, missing, checkfirst=True)
        except (IntegrityError, ProgrammingError) as error:
            if getattr(error.orig, "sqlstate", None) not in ("23505", "42P07"):
                raise
        self._made = True

    @cached_property
    def _reading(self) -> sqlalchemy.Engine:
        return self.engine.execution_options(reading=True)

    @cached_property
    def engine(self) -> sqlalchemy.Engine:
        """Where connections come from."""
        import sqlalchemy as sa

        options: dict[str, Any] = {"hide_parameters": True}
        options |= {"pool_pre_ping": self.path is None} if self.use.pooled else {"poolclass": sa.NullPool}
        if self.path is None:
            stall = int(self.patience().stall_seconds())
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
            if self.use.pooled:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # what is committed outlives a power cut
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")

        @sa.event.listens_for(engine, "begin")
        def immediate(connection: sa.Connection) -> None:
            reads = connection.get_execution_options().get("reading")
            connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")  # a lock that is waited for

        return engine


def _passing(error: BaseException, text: str) -> bool:
    """Whether PostgreSQL could not be reached, or will do better later."""
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return str(state).startswith(PASSING_STATES)
    if isinstance(error, LASTING) or type(error).__name__ not in ("OperationalError", "ConnectionTimeout"):
        return False
    return not any(word in text for word in LASTING_WORDS)
