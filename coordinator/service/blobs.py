"""Payloads named by their digest, and uploads that go on where they stopped.

An upload is written to a part file, flushed, checked and given its name; its offset is what is on
the disk, so that neither a lost connection nor a crash sends more than a chunk again.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

from blake3 import blake3

from coordinator.service.stores import CHUNK_BYTES, LARGE_BYTES, FolderStore, Store
from privacy.ledger.files import make_directory, naming, sync_directory
from privacy.ledger.uncached import open_uncached, write_uncached
from privacy.payloads import (
    DIGEST_BYTES,
    is_payload,
    is_payload_file,
    older_name,
    payload_digest,
)


class BlobError(ValueError):
    """A payload that is not the one named, or a chunk out of place."""


class UploadBusyError(BlobError):
    """What came of an upload is being checked now."""


class Blobs:
    """Payloads of one coordinator.

    Args:
        folder: of uploads that come in, and of payloads; created if it is missing.
        store: where payloads lie instead.

    """

    def __init__(self, folder: Path, store: Store | None = None) -> None:
        self._parts = folder / "parts"
        make_directory(self._parts)
        self._store = store or FolderStore(folder)
        self._writers = WeakValueDictionary[str, Incoming]()  # the newest of each upload
        self._closing: set[str] = set()  # uploads that are whole, and are being checked
        self._turn = Lock()

    def put(self, data: bytes, digest: bytes | None = None) -> bytes:
        """Keep a payload durably, once; return its digest, which is not computed where given."""
        digest = digest or payload_digest(data)
        if data and self.size(digest) != len(data):
            self._store.write(digest.hex(), data)
        return digest

    def size(self, digest: bytes) -> int | None:
        """Bytes of a payload, or None where it is not kept."""
        return self._store.size(_name(digest))

    def read(self, digest: bytes) -> bytes:
        """Return a payload.

        Raises:
            BlobError: it is not kept, or the disk altered it.

        """
        try:
            data = self._store.read(_name(digest))
        except FileNotFoundError:
            data = None
        if data is None or not is_payload(data, digest):
            raise BlobError(
                f"Expected the payload {digest.hex()[:16]}, got none or another. Restore the "
                "home from a backup."
            )
        return data

    def older_digest(self, digest: bytes) -> bytes:
        """Return what a node of version 2 calls a payload, which is read through for that.

        Raises:
            BlobError: it is not kept, or the disk altered it.

        """
        try:
            older = older_name(self.chunks(digest, 0), digest)
        except FileNotFoundError:
            older = None
        if older is None:
            raise BlobError(
                f"Expected the payload {digest.hex()[:16]} that a message names, got none or "
                "another. If it stays away, cancel the run and resume it."
            )
        return older

    def chunks(self, digest: bytes, offset: int) -> Iterator[bytes]:
        """Yield a payload in chunks, from an offset."""
        with self._store.open(_name(digest)) as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def chunks_once(self, digest: bytes) -> Iterator[bytes]:
        """Yield a payload in chunks, from its beginning, as one does who passes them on to many."""
        return self._store.chunks(_name(digest))

    def progress(self, upload: str) -> int:
        """Bytes of an upload that are on the disk."""
        path = self._part(upload)
        return path.stat().st_size if path.exists() else 0

    def receive(self, upload: str, offset: int, total: int) -> "Incoming":
        """Go on with an upload; whoever was writing it, on a connection that was lost, may not.

        Raises:
            BlobError: an offset beyond what is on the disk.
            UploadBusyError: `keep` is at it.

        """
        with self._turn:
            self._end_writer(upload)
            if not 0 <= offset <= min(self.progress(upload), total):
                raise BlobError(
                    f"Expected chunks from byte {self.progress(upload)} of {total}, got some from "
                    f"{offset}. Ask for the progress first."
                )
            incoming = self._writers[upload] = Incoming(self._part(upload), offset, total)
        return incoming

    def keep(self, upload: str, digest: bytes) -> None:
        """Give a whole upload its name; nobody can write to it from before it is checked.

        Raises:
            BlobError: none came, or other bytes than the digest names; what came is deleted.
            UploadBusyError: another call is at it.

        """
        part = self._part(upload)
        with self._turn:
            writer = self._end_writer(upload)
            if not part.exists():
                if self.size(digest) is not None:
                    return
                raise BlobError("Expected an upload's bytes first, got none. Send them again.")
            self._closing.add(upload)
        try:
            was_seen = writer is not None and writer.digest == digest
            if not was_seen and not is_payload_file(part, digest):
                part.unlink()
                raise BlobError("Expected the bytes that the answer's head names, got others.")
            self._store.take(part, _name(digest))
        finally:
            self._closing.discard(upload)

    def forget(self, upload: str) -> None:
        """Delete what came of an upload that nobody waits for."""
        self._part(upload).unlink(missing_ok=True)

    def delete(self, digest: bytes) -> None:
        """Delete a payload."""
        self._store.delete(_name(digest))

    def copy(self, digest: bytes, target: Path) -> None:
        """Put a payload at a place on the disk; FileNotFoundError where it is not kept."""
        self._store.copy(_name(digest), target)

    def adopt(self, path: Path) -> None:
        """Move a file that bears its payload's name into the store."""
        self._store.take(path, path.name)

    def free_bytes(self) -> int:
        """Bytes that the disk has left."""
        return shutil.disk_usage(self._parts).free

    def kept_bytes(self) -> int:
        """Bytes of all payloads and uploads."""
        uploads = FolderStore(self._parts).sizes()
        return sum(self._store.sizes().values()) + sum(uploads.values())

    def names(self) -> list[str]:
        """Names of all payloads and uploads, but those that a process may be writing now."""
        return [*self._store.names(), *FolderStore(self._parts).names()]

    def discard(self, name: str) -> None:
        """Delete what `names` named."""
        self._store.delete(name)
        (self._parts / name).unlink(missing_ok=True)

    def _end_writer(self, upload: str) -> "Incoming | None":
        if upload in self._closing:
            raise UploadBusyError("Expected one answer to a message at a time, got two.")
        if writer := self._writers.pop(upload, None):
            writer.end()
        return writer

    def _part(self, upload: str) -> Path:
        assert upload.isalnum(), "uploads are named by the mailbox"
        return self._parts / upload


def _name(digest: bytes) -> str:
    assert len(digest) == DIGEST_BYTES, "payloads are named by digests"
    return digest.hex()


class Incoming:
    """An upload that is being written; `close` flushes it.

    Attributes:
        digest: BLAKE3 of the whole upload, once it is flushed, where this wrote all of it: whoever
            holds this need not read the bytes again to name them.

    """

    def __init__(self, path: Path, offset: int, total: int) -> None:
        self._path, self._left = path, total - offset
        self._turn, self._is_over = Lock(), False
        self._hash, self.digest = None if offset else blake3(), b""
        with naming(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            is_large = total > LARGE_BYTES
            opened = open_uncached(path, flags) if is_large else os.open(path, flags, 0o600)
            self._file = os.fdopen(opened, "wb", buffering=0)  # closes itself when it is forgotten
            sync_directory(path.parent)
            os.truncate(opened, offset)
            os.lseek(opened, offset, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        """Add a chunk.

        Raises:
            BlobError: more bytes than the head said, or another connection goes on with the upload.

        """
        if len(data) > self._left:
            raise BlobError("Expected no more bytes than the answer's head says, got more.")
        with self._turn, naming(self._path):
            if self._is_over:
                raise BlobError("Expected the newest connection of this upload, got an older one.")
            write_uncached(self._file.fileno(), (data,))
            if self._hash is not None:
                self._hash.update(data)
            self._left -= len(data)  # a chunk that a full disk took in part makes nothing whole

    def end(self) -> None:
        """Let nothing more be written."""
        with self._turn:
            self._is_over = True

    @property
    def is_whole(self) -> bool:
        """Whether all bytes were written."""
        return self._left == 0

    def close(self) -> None:
        """Flush to the disk, and close; a chunk that is being written is waited for."""
        with self._turn:
            self._is_over = True
            try:
                with naming(self._path):
                    os.fsync(self._file.fileno())
                if self.is_whole and self._hash is not None:
                    self.digest = self._hash.digest()
            finally:
                self._file.close()
