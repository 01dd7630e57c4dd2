"""Tables of the service, on SQLite by default or on PostgreSQL by URL.

What was acknowledged must survive a loss of power: SQLite runs with `synchronous=FULL`, because
NORMAL in WAL mode loses acknowledged rows.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

DATABASE_FILE = "service.sqlite"
POSTGRESQL = "postgresql+psycopg"
METADATA = MetaData()
_ONLY_READS = "arion_only_reads"
_TURN = 0x6172696F6E  # an advisory lock of this database

INVITATIONS = Table(
    "invitations",
    METADATA,
    Column("digest", String(64), primary_key=True),
    Column("name", String(63), nullable=False),
    Column("role", String(16), nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
)

MEMBERS = Table(
    "members",
    METADATA,
    Column("address", Integer, primary_key=True, autoincrement=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("role", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("identity_key", LargeBinary, nullable=False),
    Column("csr", LargeBinary, nullable=False),
    Column("csr_digest", LargeBinary, nullable=False, unique=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("seen", Float),
    Column("certificates_from", Float),
)

APPROVALS = Table(
    "approvals",
    METADATA,
    Column("csr_digest", LargeBinary, primary_key=True),
    Column("operator", String(63), primary_key=True),
    Column("signature", LargeBinary, nullable=False),
    Column("given", Float, nullable=False),
)

MESSAGES = Table(
    "messages",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("run", String(200), nullable=False, index=True),
    Column("address", Integer, nullable=False, index=True),
    Column("action", String(64), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("payload_digest", LargeBinary, nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("posted", Float, nullable=False),
)

REPLIES = Table(
    "replies",
    METADATA,
    Column("message", String(32), primary_key=True),
    Column("kind", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("payload_digest", LargeBinary, nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
)


class DatabaseError(OSError):
    """A database that cannot be reached, or that cannot keep what it is given.

    The message holds what the database says, never a statement, its values or a password.

    Attributes:
        is_full: whether its disk is.

    """

    def __init__(self, error: DBAPIError | PoolTimeout) -> None:
        cause = getattr(error, "orig", None)
        said = " ".join(str(cause).split())[:300] if cause else "no connection in time"
        full = isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode == sqlite3.SQLITE_FULL
        full = full or getattr(cause, "sqlstate", None) == "53100"
        self.is_full = full
        super().__init__(
            f"Expected a database that answers and keeps what it is given, got: {said}. Start the "
            "database or mend its disk, then try again: what was acknowledged before is there. A "
            "damaged one is restored from a backup.",
        )


def check_database_url(url: str) -> str:
    """Return a URL that we can use.

    Raises:
        ValueError: another database or driver; the message never holds the URL, which may hold a
            password.

    """
    try:
        scheme = make_url(url).drivername
    except (ArgumentError, ValueError):  # of a port that is no number, and it quotes that
        scheme = "no URL"
    if scheme != POSTGRESQL:
        raise ValueError(
            f"Expected a database URL that begins with {POSTGRESQL}://, got {scheme}. Leave it out "
            "for SQLite in the home."
        )
    return url


def open_database(home: Path, url: str | None = None) -> Engine:
    """Open the database of a coordinator's home.

    Args:
        home: where the SQLite file lies.
        url: another database, such as postgresql+psycopg://user@host/name. Its password is best
            left to libpq: PGPASSFILE, or PGPASSWORD in the environment.

    Raises:
        ValueError: its driver is not installed.

    """
    if url is not None:
        try:
            return create_engine(url, pool_pre_ping=True, hide_parameters=True)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"Expected the driver {error.name}, got none. Install it: pip install "
                "'arion-federated[postgres]'."
            ) from error
    return open_sqlite(home / DATABASE_FILE)


def open_sqlite(path: Path) -> Engine:
    """Open one SQLite file, with what it acknowledges flushed."""
    engine = create_engine(f"sqlite:///{path}", hide_parameters=True)
    event.listen(engine, "connect", _durable)
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def transaction(engine: Engine, *, only_reads: bool = False) -> Iterator[Connection]:
    """Begin, and commit at the end.

    Args:
        engine: the database.
        only_reads: everything is read as of one instant, and no write lock is taken. Without it
            SQLite's lock is taken first, so that what was read is still so when it is acted on.

    Raises:
        DatabaseError: the database cannot be reached, or cannot keep it.

    """
    options: dict[str, Any] = {_ONLY_READS: only_reads}
    if only_reads and engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
    try:
        with engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection
    except IntegrityError:
        raise
    except (DBAPIError, PoolTimeout) as error:
        raise DatabaseError(error) from None  # its context would hold the statement's values


@contextmanager
def alone(engine: Engine) -> Iterator[Connection]:
    """A transaction beside which no other of this kind runs, in any process.

    SQLite's writers follow one another anyway.
    """
    with transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_TURN)))
        yield connection


def only_reads(connection: Connection) -> bool:
    """Tell whether a connection is in a transaction that was begun with `only_reads`."""
    return bool(connection.get_execution_options().get(_ONLY_READS, False))


def _durable(connection: Any, _: object) -> None:
    connection.isolation_level = None  # BEGIN is ours: the driver's would come after the reads
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN" if only_reads(connection) else "BEGIN IMMEDIATE")
