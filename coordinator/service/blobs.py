"""Payloads on the disk: files named by their SHA-256, and uploads that go on where they stopped.

An upload is written to a part file, flushed, checked and renamed; its offset is what is on the
disk, so that neither a lost connection nor a crash sends more than a chunk again.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from privacy.ledger.files import make_directory, naming, replace_durably, sync_directory, write_all

CHUNK_BYTES = 1 << 20
DIGEST_BYTES = 32
_BEING_WRITTEN_S = 3600.0


class BlobError(ValueError):
    """A payload that is not the one named, or a chunk out of place."""


class Blobs:
    """Payloads of one coordinator.

    Args:
        folder: created if it is missing.

    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._parts = folder, folder / "parts"
        make_directory(self._parts)

    def put(self, data: bytes) -> bytes:
        """Keep a payload durably, once; return its digest."""
        digest = hashlib.sha256(data).digest()
        if data and not self._path(digest).exists():
            replace_durably(self._path(digest), data)
        return digest

    def size(self, digest: bytes) -> int | None:
        """Bytes of a payload, or None where it is not kept."""
        path = self._path(digest)
        return path.stat().st_size if path.exists() else None

    def read(self, digest: bytes) -> bytes:
        """Return a payload.

        Raises:
            BlobError: it is not kept, or the disk altered it.

        """
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError:
            data = None
        if data is None or hashlib.sha256(data).digest() != digest:
            raise BlobError(
                f"Expected the payload {digest.hex()[:16]}, got none or another. Restore the "
                "home from a backup."
            )
        return data

    def chunks(self, digest: bytes, offset: int) -> Iterator[bytes]:
        """Yield a payload in chunks, from an offset."""
        with self._path(digest).open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def progress(self, upload: str) -> int:
        """Bytes of an upload that are on the disk."""
        path = self._part(upload)
        return path.stat().st_size if path.exists() else 0

    def receive(self, upload: str, offset: int, total: int) -> "Incoming":
        """Go on with an upload.

        Raises:
            BlobError: an offset beyond what is on the disk.

        """
        if not 0 <= offset <= min(self.progress(upload), total):
            raise BlobError(
                f"Expected chunks from byte {self.progress(upload)} of {total}, got some from "
                f"{offset}. Ask for the progress first."
            )
        return Incoming(self._part(upload), offset, total)

    def keep(self, upload: str, digest: bytes) -> None:
        """Give a whole upload its name.

        Raises:
            BlobError: other bytes than the digest names; the part file is deleted.

        """
        part = self._part(upload)
        if self._path(digest).exists() and not part.exists():
            return
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").digest()
        if found != digest:
            part.unlink()
            raise BlobError("Expected the bytes that the answer's head names, got others.")
        with naming(part):
            part.replace(self._path(digest))
            sync_directory(self._folder)

    def forget(self, upload: str) -> None:
        """Delete what came of an upload that nobody waits for."""
        self._part(upload).unlink(missing_ok=True)

    def delete(self, digest: bytes) -> None:
        """Delete a payload."""
        self._path(digest).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Bytes that the disk has left."""
        return shutil.disk_usage(self._folder).free

    def kept_bytes(self) -> int:
        """Bytes of all payloads and uploads."""
        total = 0
        for folder in (self._folder, self._parts):
            for path in folder.iterdir():
                with suppress(FileNotFoundError):  # cleared in between
                    total += path.stat().st_size if path.is_file() else 0
        return total

    def names(self) -> list[str]:
        """Names of all payloads and uploads, but those that a process may be writing now."""
        folders = (self._folder, self._parts)
        return [path.name for folder in folders for path in folder.iterdir() if _is_settled(path)]

    def discard(self, name: str) -> None:
        """Delete what `names` named."""
        for folder in (self._folder, self._parts):
            (folder / name).unlink(missing_ok=True)

    def _path(self, digest: bytes) -> Path:
        assert len(digest) == DIGEST_BYTES, "payloads are named by SHA-256"
        return self._folder / digest.hex()

    def _part(self, upload: str) -> Path:
        assert upload.isalnum(), "uploads are named by the mailbox"
        return self._parts / upload


def _is_settled(path: Path) -> bool:
    try:
        is_new = path.stat().st_mtime > time.time() - _BEING_WRITTEN_S
    except FileNotFoundError:  # cleared in between
        return False
    return path.is_file() and not (path.suffix == ".part" and is_new)


class Incoming:
    """An upload that is being written; `close` flushes it."""

    def __init__(self, path: Path, offset: int, total: int) -> None:
        self._path, self._left = path, total - offset
        with naming(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            sync_directory(path.parent)
            os.truncate(self._file, offset)
            os.lseek(self._file, offset, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        """Add a chunk.

        Raises:
            BlobError: more bytes than the head said.

        """
        self._left -= len(data)
        if self._left < 0:
            raise BlobError("Expected no more bytes than the answer's head says, got more.")
        with naming(self._path):
            write_all(self._file, data)

    @property
    def is_whole(self) -> bool:
        """Whether all bytes were written."""
        return self._left == 0

    def close(self) -> None:
        """Flush to the disk, and close."""
        try:
            with naming(self._path):
                os.fsync(self._file)
        finally:
            os.close(self._file)
