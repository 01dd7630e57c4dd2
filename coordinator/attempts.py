"""Attempts of a run as they are kept: their phases, plans and ends."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from privacy.identity import Signed
from privacy.ledger.files import naming

ROUNDS_FILE = "rounds.sqlite"


class Phase(StrEnum):
    """Where an attempt stands."""

    UPLOADING = "uploading"
    SURVIVORS = "survivors"
    APPLIED = "applied"
    RECORDED = "recorded"
    ABORTED = "aborted"


@dataclass(frozen=True)
class Attempt:
    """One attempt of one round.

    Attributes:
        plan: the signed plan.
        survivors: members whose uploads were in when the set was fixed; empty before.
        code: why it was aborted, or "".
        spoilt: members of groups whose sum some member of the group spoilt.

    """

    round: int
    attempt: int
    phase: Phase
    plan: Signed
    survivors: tuple[str, ...] = ()
    code: str = ""
    spoilt: tuple[str, ...] = ()


def all_attempts(connection: sqlite3.Connection) -> list[Attempt]:
    """Return all attempts, in order: each may have used one release of the schedule."""
    rows = connection.execute("SELECT * FROM attempts ORDER BY round, attempt")
    return [attempt_of(row) for row in rows.fetchall()]


def read_attempts(home: Path) -> list[Attempt]:
    """Read the attempts of the run in a home, also while another process drives it.

    Args:
        home: the run's; one that has not begun has none, nor one whose driver died as it began.

    Raises:
        DiskError: the disk or the file is damaged.

    """
    path = home / ROUNDS_FILE
    if not path.exists():
        return []
    read_only = f"{path.resolve().as_uri()}?mode=ro"
    with naming(path), closing(sqlite3.connect(read_only, uri=True)) as connection:
        begun = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'attempts'")
        return all_attempts(connection) if begun.fetchone() else []


def attempt_of(row: tuple[Any, ...]) -> Attempt:
    """Read a row."""
    number, attempt, phase, plan, signature, survivors, code, spoilt = row
    signed = Signed(plan, signature)
    return Attempt(number, attempt, Phase(phase), signed, _names(survivors), code, _names(spoilt))


def _names(joined: str) -> tuple[str, ...]:
    return tuple(filter(None, joined.split(",")))
