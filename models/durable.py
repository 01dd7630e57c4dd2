"""Files that survive a crash whole: written beside their place, synced, renamed."""

import hashlib
import os
from pathlib import Path


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


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
