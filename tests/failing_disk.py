"""A disk on which one operation is the last: the process dies there, or is told that it failed.

Counted are the calls by which files change: writes, flushes, renames, removals, new folders, and
the changes of a node's SQLite store. A write counts twice: before it, and after half of it. What
was written before the end is kept, flushed or not: a loss of power is not simulated here (that a
line is flushed before it is acknowledged is tested in tests/ledger/test_log.py).
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from privacy.secagg.store import SqliteRoundStore
from tests.dying import Killed

OWNERS: tuple[tuple[Any, str], ...] = (
    (os, "write"),
    (os, "fsync"),
    (os, "ftruncate"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (Path, "write_bytes"),
    (shutil, "copyfile"),
    (shutil, "rmtree"),
    (SqliteRoundStore, "claim_plan"),
    (SqliteRoundStore, "withdraw_claim"),
)


def die() -> None:
    raise Killed("disk")


def fill_up() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def failing(at: int, fail: Callable[[], None] = die) -> Iterator[list[str]]:
    """Within the block, disk operation number `at` (from 0) fails; yields the operations so far.

    Writes fail half-way in their second count.
    """
    seen: list[str] = []

    def step(name: str) -> None:
        seen.append(name)
        if len(seen) - 1 == at:
            fail()

    def wrapped(owner: Any, name: str) -> Callable[..., Any]:
        original = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            step(name)
            if name == "write":
                return write_in_halves(original, step, *args)
            return original(*args, **options)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in OWNERS:
            patch.setattr(owner, name, wrapped(owner, name))
        yield seen


def write_in_halves(write: Callable[..., int], step: Callable[[str], None], *args: Any) -> int:
    """Take half of the bytes, as a disk may, and fail there if it is to."""
    descriptor, data = args
    if len(data) < 2:
        return write(descriptor, data)
    taken = write(descriptor, data[: len(data) // 2])
    step("half a write")
    return taken
