"""Who drives a run, one process at most, and whether anything is left to be done for it."""

from pathlib import Path

from coordinator import locks
from coordinator.errors import RunError

CLOSED_FILE = "CLOSED"
_LOCK_FILE = "driver.lock"


def is_closed(home: Path) -> bool:
    """Tell whether nothing is left to be done for the run."""
    return (home / CLOSED_FILE).exists()


def is_driven(home: Path) -> bool:
    """Tell whether a process drives the run at this moment."""
    return locks.is_taken(home / _LOCK_FILE)


def take_lock(home: Path) -> int:
    """Take the right to drive the run; it ends when the descriptor is closed, or the process dies.

    Raises:
        RunError: another process has it.

    """
    descriptor = locks.take(home / _LOCK_FILE)
    if descriptor is None:
        raise RunError(
            f"Expected that nobody drives the run in {home}, got another process that does. "
            "Watch it, or stop that process first."
        )
    return descriptor
