"""Locks of processes: held by a file that is open, and gone with the process."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TRIES, _TRY_AGAIN_S = 5, 0.1


def take(path: Path) -> int | None:
    """Take a lock until its descriptor is closed.

    Returns:
        The descriptor, or None where another process holds it.

    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(_TRIES):  # who asks `is_taken` holds it for a moment
        if _is_locked(descriptor, fcntl.LOCK_EX):
            return descriptor
        time.sleep(_TRY_AGAIN_S)
    os.close(descriptor)
    return None


@contextmanager
def held(descriptor: int) -> Iterator[None]:
    """Give a lock back at the end of the block."""
    try:
        yield
    finally:
        os.close(descriptor)


def is_taken(path: Path) -> bool:
    """Tell whether a process holds a lock at this moment."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not _is_locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int, kind: int) -> bool:
    """Take a lock, and tell whether that worked."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
