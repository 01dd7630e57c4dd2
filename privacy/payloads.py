"""Digests that name the payloads of messages: vectors of a model's size, hashed at both ends.

They are BLAKE3 (docs/adr/0010-payloads-are-named-by-blake3.md). Whoever speaks version 2 of the
exchange names them by SHA-256. Both have 32 bytes, and nobody knows how to make a payload that
another's digest of either kind names: a reader takes either and need not be told which.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

DIGEST_BYTES: Final = 32


def payload_digest(data: bytes | memoryview) -> bytes:
    """Return a payload's name, 32 bytes.

    Source: O'Connor, Aumasson, Neves, Wilcox-O'Hearn 2020 (the BLAKE3 specification).
    """
    return blake3(data).digest()


def older_payload_digest(data: bytes | memoryview) -> bytes:
    """Return a payload's name in version 2 of the exchange, 32 bytes: SHA-256 (FIPS 180-4)."""
    return hashlib.sha256(data).digest()


def older_name(chunks: Iterable[bytes], digest: bytes) -> bytes | None:
    """Return a payload's name in version 2, of its chunks; None where `digest` names another."""
    newer, older = blake3(), hashlib.sha256()
    for chunk in chunks:
        newer.update(chunk)
        older.update(chunk)
    return older.digest() if digest in (newer.digest(), older.digest()) else None


def is_payload(data: bytes | memoryview, digest: bytes) -> bool:
    """Tell whether a digest, of either kind, names these bytes."""
    return digest == payload_digest(data) or digest == older_payload_digest(data)


def is_payload_file(path: Path, digest: bytes) -> bool:
    """Tell whether a digest, of either kind, names the bytes of a file."""
    return any(digest == _of_file(path, kind) for kind in (blake3, hashlib.sha256))


def _of_file(path: Path, kind: Callable[[], Any]) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).digest()
