"""Who drives a run, one process at most, and whether anything is left to be done for it."""

import fcntl
import os
import time
from pathlib import Path

from coordinator.errors import RunError

CLOSED_FILE = "CLOSED"
_LOCK_FILE = "driver.lock"
_TRIES, _TRY_AGAIN_S = 5, 0.1


def is_closed(home: Path) -> bool:
    """Tell whether nothing is left to be done for the run."""
    return (home / CLOSED_FILE).exists()


def is_driven(home: Path) -> bool:
    """Tell whether a process drives the run at this moment."""
    path = home / _LOCK_FILE
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return not _is_locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def take_lock(home: Path) -> int:
    """Take the right to drive the run; it ends when the descriptor is closed, or the process dies.

    Raises:
        RunError: another process has it.

    """
    path = home / _LOCK_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(_TRIES):  # who asks `is_driven` holds it for a moment
        if _is_locked(descriptor, fcntl.LOCK_EX):
            return descriptor
        time.sleep(_TRY_AGAIN_S)
    os.close(descriptor)
    raise RunError(
        f"Expected that nobody drives the run in {path.parent}, got another process that does. "
        "Watch it, or stop that process first."
    )


def _is_locked(descriptor: int, kind: int) -> bool:
    """Take a lock, and tell whether that worked."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
