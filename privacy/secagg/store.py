"""A member's durable memory of rounds: one SQLite file in the node's home."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from privacy.ledger.files import naming
from privacy.secagg.memory import PlanKey, StoreConflict
from privacy.secagg.parameters import LARGEST_EPOCHS

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS plans (
    federation TEXT NOT NULL, run TEXT NOT NULL, epoch INTEGER NOT NULL,
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, digest BLOB NOT NULL UNIQUE,
    PRIMARY KEY (federation, run, round, attempt)
) STRICT;
CREATE TABLE IF NOT EXISTS rosters (
    federation TEXT NOT NULL, nonce BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (federation, nonce)
) STRICT;
CREATE TABLE IF NOT EXISTS signed_sets (
    plan BLOB PRIMARY KEY, set_digest BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS unmask_replies (
    plan BLOB PRIMARY KEY, reply BLOB NOT NULL
) STRICT;
"""


class SqliteRoundStore:
    """`RoundStore` on SQLite: write-ahead log, and a flush to disk before every commit returns.

    `synchronous=FULL` is what makes a signature or a reply survive a loss of power: with NORMAL,
    acknowledged rows were lost, and a member would sign a second set.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file, readable by its owner only (it holds shares).

        Args:
            path: the file; its folder exists.

        Raises:
            DiskError: it cannot be written; so may every other method.

        """
        self._path = path
        self._lock = threading.Lock()
        with naming(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA busy_timeout = 5000")
            self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def claim_roster(self, federation: str, nonce_commitment: bytes, roster_digest: bytes) -> None:
        """See `RoundStore.claim_roster`."""
        nonce = (federation, nonce_commitment)
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO rosters VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (*nonce, roster_digest),
            )
            (claimed,) = cursor.execute(
                "SELECT digest FROM rosters WHERE federation = ? AND nonce = ?", nonce
            ).fetchone()
            if claimed != roster_digest:
                raise StoreConflict(
                    "Expected the roster that this member revealed its nonce for, got another one "
                    "of the same epoch: who saw the nonce could choose it. Open a new epoch."
                )
            (counted,) = cursor.execute(
                "SELECT COUNT(*) FROM rosters WHERE federation = ?", (federation,)
            ).fetchone()
            if counted > LARGEST_EPOCHS:
                raise StoreConflict(
                    f"Expected at most {LARGEST_EPOCHS} epochs in the life of a federation, got "
                    "another one: more would let graphs be tried out. Found a new federation."
                )

    def claim_plan(self, key: PlanKey, digest: bytes) -> None:
        """See `RoundStore.claim_plan`."""
        with self._transaction() as cursor:
            last = self._last_seen(cursor, key.federation, key.run)
            if last is not None and (key.round, key.attempt) <= last:
                raise StoreConflict(
                    f"Expected a (round, attempt) after {last} in run {key.run!r}, got "
                    f"({key.round}, {key.attempt}). Wait for the next attempt."
                )
            cursor.execute("INSERT INTO plans VALUES (?, ?, ?, ?, ?, ?)", (*key, digest))

    def is_claimed(self, plan_digest: bytes) -> bool:
        """See `RoundStore.is_claimed`."""
        return self._read("SELECT digest FROM plans WHERE digest = ?", plan_digest) is not None

    def withdraw_claim(self, plan_digest: bytes) -> None:
        """See `RoundStore.withdraw_claim`; a plan whose survivor set was signed stays claimed."""
        with self._transaction() as cursor:
            cursor.execute(
                "DELETE FROM plans WHERE digest = ? AND NOT EXISTS "
                "(SELECT 1 FROM signed_sets WHERE plan = ?)",
                (plan_digest, plan_digest),
            )

    def last_seen(self, federation: str, run: str) -> tuple[int, int] | None:
        """See `RoundStore.last_seen`."""
        with self._transaction() as cursor:
            return self._last_seen(cursor, federation, run)

    def signed_set(self, plan_digest: bytes) -> bytes | None:
        """See `RoundStore.signed_set`."""
        return self._read("SELECT set_digest FROM signed_sets WHERE plan = ?", plan_digest)

    def record_signed_set(self, plan_digest: bytes, set_digest: bytes) -> bytes:
        """See `RoundStore.record_signed_set`."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO signed_sets VALUES (?, ?) ON CONFLICT DO NOTHING",
                (plan_digest, set_digest),
            )
        recorded = self.signed_set(plan_digest)
        assert recorded is not None, "the row was committed"
        return recorded

    def unmask_reply(self, plan_digest: bytes) -> bytes | None:
        """See `RoundStore.unmask_reply`."""
        return self._read("SELECT reply FROM unmask_replies WHERE plan = ?", plan_digest)

    def record_unmask_reply(self, plan_digest: bytes, reply: bytes) -> bytes:
        """See `RoundStore.record_unmask_reply`."""
        with self._transaction() as cursor:
            cursor.execute(
                "INSERT INTO unmask_replies VALUES (?, ?) ON CONFLICT DO NOTHING",
                (plan_digest, reply),
            )
        recorded = self.unmask_reply(plan_digest)
        assert recorded is not None, "the row was committed"
        return recorded

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        """Hold the write lock from the first read to the commit."""
        with self._lock, naming(self._path):
            cursor = self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have ended it already
                    cursor.execute("ROLLBACK")
                raise

    def _read(self, query: str, plan_digest: bytes) -> bytes | None:
        with self._lock, naming(self._path):
            row = self._connection.execute(query, (plan_digest,)).fetchone()
        return None if row is None else bytes(row[0])

    @staticmethod
    def _last_seen(cursor: sqlite3.Cursor, federation: str, run: str) -> tuple[int, int] | None:
        row = cursor.execute(
            "SELECT round, attempt FROM plans WHERE federation = ? AND run = ? "
            "ORDER BY round DESC, attempt DESC LIMIT 1",
            (federation, run),
        ).fetchone()
        return None if row is None else (int(row[0]), int(row[1]))
