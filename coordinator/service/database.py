"""Tables of the service, on SQLite by default or on PostgreSQL by URL.

What was acknowledged must survive a loss of power: SQLite runs with `synchronous=FULL`, because
NORMAL in WAL mode loses acknowledged rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
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
)

DATABASE_FILE = "service.sqlite"
METADATA = MetaData()

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
    Column("payload_bytes", Integer, nullable=False),
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
    Column("payload_bytes", Integer, nullable=False),
)


def open_database(home: Path, url: str | None = None) -> Engine:
    """Open the database of a coordinator's home.

    Args:
        home: where the SQLite file lies.
        url: another database, such as postgresql+psycopg://user@host/name.

    """
    if url is not None:
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(f"sqlite:///{home / DATABASE_FILE}")
    event.listen(engine, "connect", _durable)
    return engine


def create_tables(engine: Engine) -> None:
    """Create the tables that are missing."""
    METADATA.create_all(engine)


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Begin, and commit at the end; a write lock from the first statement on SQLite."""
    with engine.connect() as connection, connection.begin():
        yield connection


def _durable(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
