"""Writing and reading past the system's page cache, for bytes that are used once.

In the cache they would take the place of what is read, and cost the copy and the pages: 306 MB take
0.06 to 0.7 s of processor time, by how far the system has to go for pages, and 0.03 s past it.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from threading import local

_BLOCK_BYTES = 4096
"""Places and lengths of direct transfers are multiples of a disk's block; larger ones refuse."""
_ROOM_BYTES = 1 << 20


class _Rooms(local):
    """Memory that begins a page, for each thread."""

    def __init__(self) -> None:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.room = memoryview(mmap.mmap(-1, _ROOM_BYTES, private))


_ROOMS = _Rooms()


def open_uncached(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file for the functions here; where the file system has no such way, as any other."""
    try:
        return os.open(path, flags | os.O_DIRECT, mode)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, mode)


def write_uncached(descriptor: int, parts: Iterable[bytes | memoryview]) -> None:
    """Write parts one after the other; flushing is the caller's.

    Args:
        descriptor: of `open_uncached`, at a multiple of a block. Once the rest of a block was
            written to it, all that follows goes through the cache.
        parts: any lengths, anywhere in memory.

    """
    room, filled = _ROOMS.room, 0
    for part in parts:
        data = memoryview(part)
        while data:
            taken = data[: len(room) - filled]
            room[filled : filled + len(taken)] = taken
            filled, data = filled + len(taken), data[len(taken) :]
            if filled == len(room):
                _write(descriptor, room)
                filled = 0
    whole = filled - filled % _BLOCK_BYTES
    _write(descriptor, room[:whole])
    if whole < filled:
        _use_cache(descriptor)
        _write(descriptor, room[whole:filled])


def read_uncached(path: Path) -> bytes:
    """Return a file's bytes."""
    whole = BytesIO(bytes(path.stat().st_size))  # which `getvalue` does not copy
    for chunk in _views(path):
        whole.write(chunk)
    whole.truncate()  # of a file that was cut meanwhile
    return whole.getvalue()


def chunks_uncached(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in chunks of 1 MiB, but the last."""
    return map(bytes, _views(path))


def _views(path: Path) -> Iterator[memoryview]:
    """Yield a file's bytes in the thread's room, until that is used again."""
    descriptor = open_uncached(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while count := _read(descriptor, room := _ROOMS.room):
            yield room[:count]
    finally:
        os.close(descriptor)


def _write(descriptor: int, data: memoryview) -> None:
    """Write all of `data`; through the cache where the disk refuses its place or its length."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _use_cache(descriptor):
                raise


def _read(descriptor: int, room: memoryview) -> int:
    """Read into `room`; through the cache where the disk refuses its place or its length."""
    while True:
        try:
            return os.readv(descriptor, [room])
        except OSError as error:
            if error.errno != errno.EINVAL or not _use_cache(descriptor):
                raise


def _use_cache(descriptor: int) -> bool:
    """Go through the cache from now on; False where that was so before."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)
