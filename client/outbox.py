"""Sealed uploads on disk: what was debited is sent in these bytes or not at all."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from privacy.ledger.files import make_directory, replace_durably, sync_directory
from privacy.payloads import payload_digest
from protos.messages import Upload

_LENGTH_BYTES = 4
_SUFFIX = ".sealed"
_PARTS = b"arion sealed upload, parts\0"
"""Begins what is digested: no whole file, which older debits name, has such a head."""


@dataclass(frozen=True)
class SealedUpload:
    """An upload as it leaves the node: the control message and the masked words.

    Only `Outbox.seal` and `Outbox.load` make one; a transport accepts nothing else.

    Attributes:
        upload: the control message.
        words: masked words as `privacy.secagg.packing` lays them out.
        digest: what the ledger's debit names, hex: SHA-256 of the file's head and of the words'
            BLAKE3, which is faster for what is long, after a prefix; in older debits, of the file.

    """

    upload: Upload
    words: memoryview
    digest: str


class Outbox:
    """One file per plan; a file appears whole or not at all, and is on the disk before it is used.

    Args:
        folder: created if absent.

    """

    def __init__(self, folder: Path) -> None:
        make_directory(folder)
        self._folder = folder

    def seal(self, plan_digest: bytes, upload: Upload, words: memoryview) -> SealedUpload:
        """Write an upload durably and return it as it was written; the words are not copied.

        Args:
            plan_digest: the plan's.
            upload: the control message.
            words: what `privacy.secagg.packing.pack` returned.

        """
        body = upload.to_bytes()
        head = len(body).to_bytes(_LENGTH_BYTES, "big") + body
        replace_durably(self._path(plan_digest), head, words, is_cached=False)
        return SealedUpload(upload, words.toreadonly(), _digest(head, words))

    def load(self, plan_digest: bytes, debited: str) -> SealedUpload | None:
        """Return the upload sealed for a plan; None where there is none, or another than debited.

        Args:
            plan_digest: the plan's.
            debited: what the debit names.

        """
        path = self._path(plan_digest)
        if not path.exists():
            return None
        data = path.read_bytes()
        begin = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
        words = memoryview(data)[begin:]
        if begin > len(data) or debited not in (
            _digest(data[:begin], words),
            hashlib.sha256(data).hexdigest(),
        ):
            return None
        return SealedUpload(Upload.from_bytes(data[_LENGTH_BYTES:begin]), words, debited)

    def delete(self, plan_digest: bytes) -> None:
        """Remove the upload of a plan: one that was never debited, or is no longer needed."""
        self._path(plan_digest).unlink(missing_ok=True)
        sync_directory(self._folder)

    def keep_only(self, plan_digests: set[bytes]) -> None:
        """Remove every upload but those named."""
        keep = {digest.hex() + _SUFFIX for digest in plan_digests}
        for path in self._folder.iterdir():
            if path.name not in keep:
                path.unlink()
        sync_directory(self._folder)

    def _path(self, plan_digest: bytes) -> Path:
        return self._folder / (plan_digest.hex() + _SUFFIX)


def _digest(head: bytes, words: memoryview) -> str:
    return hashlib.sha256(_PARTS + head + payload_digest(words)).hexdigest()
