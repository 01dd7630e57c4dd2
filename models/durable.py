"""Files that survive a crash whole: written beside their place, synced, renamed."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BusyError(ValueError):
    """Another process is writing there."""


def sync(path: Path) -> None:
    """Wait until the disk has a file's bytes, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(part: Path, path: Path) -> None:
    """Give a finished file or folder its name, durably; a file of that name is replaced."""
    sync(part)
    part.replace(path)
    sync(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file as a whole: readers and crashes see the old bytes or the new."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    put(part, path)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder against other writers that do the same.

    Raises:
        BusyError: another process holds it.

    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(
            f"Expected no other writer of {folder}, got one. Wait for it to end."
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
