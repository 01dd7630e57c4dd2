"""The coordinator's durable memory of a run: attempts and their phases, models and moments.

Attempts live in one SQLite file (`synchronous=FULL`); the state of the optimiser is a file per
round, written whole. A restarted coordinator reads where it was and goes on.
"""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from coordinator.attempts import ROUNDS_FILE, Attempt, all_attempts, attempt_of
from coordinator.driver_lock import CLOSED_FILE, take_lock
from coordinator.epoch_record import EpochRecord
from models.optimiser import OptimiserState
from privacy.ledger.files import make_directory, naming, replace_durably

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS attempts (
    round INTEGER NOT NULL, attempt INTEGER NOT NULL, phase TEXT NOT NULL,
    plan BLOB NOT NULL, signature BLOB NOT NULL, survivors TEXT NOT NULL, code TEXT NOT NULL,
    spoilt TEXT NOT NULL,
    PRIMARY KEY (round, attempt)
) STRICT;
"""
_EPOCH_FILE = "epoch.json"
_LOG = logging.getLogger("arion.coordinator")


class RunStore:
    """Memory of one run; every method is durable before it returns.

    Args:
        home: the run's home.
        is_driven: whether this process drives the run; only one may. Others read.

    Raises:
        RunError: another process drives it.

    """

    def __init__(self, home: Path, *, is_driven: bool = False) -> None:
        self._closed, self._epoch = home / CLOSED_FILE, home / _EPOCH_FILE
        self._states = home / "states"
        make_directory(self._states)
        self._lock = take_lock(home) if is_driven else None
        self._file = home / ROUNDS_FILE
        with naming(self._file):
            self._connection = sqlite3.connect(self._file, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file, and let another process drive the run."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def last_attempt(self) -> Attempt | None:
        """Return the newest attempt of the newest round."""
        row = self._connection.execute(
            "SELECT * FROM attempts ORDER BY round DESC, attempt DESC LIMIT 1"
        ).fetchone()
        return None if row is None else attempt_of(row)

    def attempts(self) -> list[Attempt]:
        """Return all attempts, in order: each may have used one release of the schedule."""
        return all_attempts(self._connection)

    def save(self, attempt: Attempt) -> None:
        """Write an attempt, new or moved on."""
        with self._transaction():
            self._connection.execute(
                "INSERT OR REPLACE INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    attempt.round,
                    attempt.attempt,
                    str(attempt.phase),
                    attempt.plan.payload,
                    attempt.plan.signature,
                    ",".join(attempt.survivors),
                    attempt.code,
                    ",".join(attempt.spoilt),
                ),
            )

    def save_epoch(self, record: EpochRecord) -> None:
        """Write what the members of the run's newest epoch signed."""
        replace_durably(self._epoch, record.to_bytes())

    def load_epoch(self) -> EpochRecord | None:
        """Read what the members of the run's newest epoch signed; None where nothing useful lies.

        A record that is damaged costs an attempt at most: its members are asked for a new epoch.
        """
        try:
            return EpochRecord.from_bytes(self._epoch.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            _LOG.warning("%s: %s", self._epoch, error)
            return None

    def note_closed(self) -> None:
        """Write that the run is over, its model handed out if it has one, and the nodes told."""
        if not self._closed.exists():
            replace_durably(self._closed, b"")

    def save_state(self, state: OptimiserState) -> None:
        """Write parameters and moments after a round.

        No older ones are written over, though that took half the time: a backup gives them a
        second name.
        """
        replace_durably(self._path(state.step), *state.parts(), is_cached=False)

    def drop_states(self, step: int) -> None:
        """Delete the states older than the one that a round's state was made of."""
        for path in self._states.glob("*.safetensors"):
            if path.stem.isdecimal() and int(path.stem) < step - 1:
                path.unlink()

    def load_state(self, step: int) -> OptimiserState | None:
        """Read parameters and moments after a round, or None."""
        path = self._path(step)
        return OptimiserState.from_bytes(path.read_bytes()) if path.exists() else None

    def _path(self, step: int) -> Path:
        return self._states / f"{step:06d}.safetensors"

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with naming(self._file):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have ended it already
                    self._connection.execute("ROLLBACK")
                raise
