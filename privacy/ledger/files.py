"""A file of lines that survives a crash: what was acknowledged is there, once, in order."""

import errno
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from privacy.ledger.entries import LedgerError
from privacy.ledger.uncached import open_uncached, write_uncached

_OF_THE_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM}


class DiskError(OSError):
    """A disk that is full, read-only or failing, or a place where nothing can be written."""

    def __init__(self, path: Path, error: Exception) -> None:
        got = getattr(error, "strerror", None) or error
        remedy = "Free or mend the disk"
        if getattr(error, "errno", None) in _OF_THE_PATH:
            remedy = "Check the folder, and who may write there"
        super().__init__(
            f"Expected to write {path}, got: {got}. {remedy}, then start again: what was "
            "acknowledged before is there."
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the system says of a disk into a `DiskError` that names the file."""
    try:
        yield
    except DiskError:
        raise
    except (OSError, sqlite3.OperationalError) as error:
        raise DiskError(path, error) from error


@dataclass(frozen=True)
class Lines:
    """The complete lines of a file, and the length of a torn last one (0 if there is none)."""

    complete: tuple[bytes, ...]
    torn_bytes: int


def read_lines(path: Path, start: int = 0) -> Lines:
    """Read the lines of `path` from a byte on without changing it; a missing file has none.

    The last line is torn when its newline is missing, or when it holds NUL: a block that the
    system had made room for but not written. Both were never acknowledged. Any other damage is
    left in the lines, for the caller to refuse: it may have been acknowledged.
    """
    data = b""
    if path.exists():
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
    *complete, tail = data.split(b"\n")
    if not tail and complete and b"\0" in complete[-1]:
        tail = complete.pop() + b"\n"
    return Lines(tuple(complete), len(tail))


class DurableLines:
    """A file that one process appends lines to; each is on the disk before `append` returns.

    Opening creates the file, locks it against a second writer and cuts a torn last line away.
    `note` says what was cut, or is empty.

    Raises:
        LedgerError: another process holds the file.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with naming(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._lock()
            self._size = 0
            with naming(path):
                self.lines, self.note = self._recover()
                sync_directory(path.parent)
        except BaseException:
            os.close(self._file)
            raise
        self._usable = True

    def release(self) -> None:
        """Let other processes write, until `retake`."""
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._usable = False

    def retake(self) -> tuple[bytes, ...]:
        """Lock the file again and return the lines that were added meanwhile.

        Raises:
            LedgerError: another process holds it.

        """
        self._lock()
        with naming(self._path):
            lines, self.note = self._recover()
        self._usable = True
        return lines

    def append(self, line: bytes) -> None:
        """Write one line and wait until the disk has it.

        Raises:
            LedgerError: an earlier write failed, so that the file's end is not known.
            DiskError: the disk is full or failing; reopen before writing again.

        """
        assert b"\n" not in line, "canonical JSON holds no newline"
        if not self._usable:
            raise LedgerError(
                f"Expected a writable {self._path.name}, got one whose last write failed. "
                "Mend the disk, then close and reopen the ledger."
            )
        self._usable = False
        with naming(self._path):
            write_all(self._file, line + b"\n")
            os.fsync(self._file)
        self._size += len(line) + 1
        self._usable = True

    def close(self) -> None:
        """Give the lock back; nothing is left to write."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._usable = -1, False

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LedgerError(
                f"Expected no other writer of {self._path.name}, got one that holds its lock. "
                "Stop the other process of this institution first."
            ) from error

    def _recover(self) -> tuple[tuple[bytes, ...], str]:
        """Read what comes after the lines that are known, and cut a torn last line away."""
        found = read_lines(self._path, self._size)
        self._size += sum(len(line) + 1 for line in found.complete)
        if not found.torn_bytes:
            return found.complete, ""
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)
        return found.complete, (
            f"{self._path.name}: a torn last line of {found.torn_bytes} bytes was cut away; "
            "the write was cut short and never acknowledged"
        )


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until no other process, and no other thread, is within a block for this file.

    Args:
        path: created if absent; its folder exists. It stays empty.

    """
    with naming(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`: the system may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def make_directory(directory: Path) -> None:
    """Create a directory and its missing parents, each durable in its own parent."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        with naming(path):
            path.mkdir(mode=0o700, exist_ok=True)
            sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: a synced file can otherwise be lost with its name."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, *parts: bytes | memoryview, is_cached: bool = True) -> None:
    """Replace a file as a whole: readers and crashes see the old bytes or the new.

    Args:
        path: the file; its folder exists.
        parts: what it holds, one after the other; none is copied as a whole.
        is_cached: whether it is soon read; False for what is large, and seldom read.

    Raises:
        DiskError: the old bytes are there, or the new.

    """
    part = path.with_name(path.name + ".part")
    with naming(path):
        write_durably(part, *parts, is_cached=is_cached)
        part.replace(path)
        sync_directory(path.parent)


def write_durably(path: Path, *parts: bytes | memoryview, is_cached: bool = True) -> None:
    """Write a file's bytes to the disk; its name is durable once the folder is synced.

    Args:
        path, parts, is_cached: as `replace_durably`.

    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600) if is_cached else open_uncached(path, flags)
    try:
        if is_cached:
            for data in parts:
                write_all(descriptor, data)
        else:
            write_uncached(descriptor, parts)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
