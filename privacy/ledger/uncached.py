"""Writing past the system's page cache, for bytes that are seldom read again.

In the cache they would take the place of what is read, and cost the copy and the pages: 306 MB take
0.06 to 0.7 s of processor time, by how far the system has to go for pages, and 0.03 s past it.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_BLOCK_BYTES = 4096
"""Places and lengths of direct writes are multiples of a disk's block; larger ones refuse them."""
_ROOM_BYTES = 4 << 20


def open_uncached(path: Path, flags: int, mode: int) -> int:
    """Open a file for `write_uncached`; where the file system has no such writes, as any other."""
    try:
        return os.open(path, flags | os.O_DIRECT, mode)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, mode)


def write_uncached(descriptor: int, parts: Iterable[bytes | memoryview]) -> None:
    """Write parts one after the other from the file's beginning; flushing is the caller's.

    Args:
        descriptor: of `open_uncached`; what is written to it afterwards goes through the cache.
        parts: any lengths, anywhere in memory.

    """
    room, filled = memoryview(mmap.mmap(-1, _ROOM_BYTES)), 0  # at the beginning of a page
    for part in parts:
        data = memoryview(part)
        while data:
            taken = data[: _ROOM_BYTES - filled]
            room[filled : filled + len(taken)] = taken
            filled, data = filled + len(taken), data[len(taken) :]
            if filled == _ROOM_BYTES:
                _write(descriptor, room)
                filled = 0
    whole = filled - filled % _BLOCK_BYTES
    _write(descriptor, room[:whole])
    _use_cache(descriptor)
    _write(descriptor, room[whole:filled])


def _write(descriptor: int, data: memoryview) -> None:
    """Write all of `data`; through the cache where the disk refuses its place or its length."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _use_cache(descriptor):
                raise


def _use_cache(descriptor: int) -> bool:
    """Write through the cache from now on; False where that was so before."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)
