"""Memory that the system need not give, and clear, again for every vector."""

import ctypes

KEPT_BYTES = 1 << 30
"""Larger blocks are given back when they are freed, and so is more than this at the heap's end."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h
_ARENAS = 2
"""Heaps that threads share: of more, each would keep what it once needed."""

_LARGEST_INT = (1 << 31) - 1


def keep_freed_memory(kept_bytes: int = KEPT_BYTES) -> bool:
    """Have this process keep freed memory for its next vectors; False where its libc cannot.

    By default glibc gives each block above 32 MiB back at once. A round frees and asks for vectors
    of a model's size again and again, and the system clears each page anew: a fifth of all
    computing time of a round of 100 MB (benchmarks/README.md, "round").

    Args:
        kept_bytes: as `KEPT_BYTES`.

    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = min(kept_bytes, _LARGEST_INT)
    settings = ((_MMAP_THRESHOLD, kept), (_TRIM_THRESHOLD, kept), (_ARENA_MAX, _ARENAS))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings)
