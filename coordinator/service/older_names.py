"""What nodes of version 2 call payloads: names by SHA-256, beside ours by BLAKE3.

A payload is read through for its older name once, by one thread at a time, however many nodes wait
for it or open streams and leave them. A name is kept for as long as a message bears the payload: so
long a node may ask for it.
"""

import asyncio

from coordinator.service.mailbox import Mailbox


class OlderNames:
    """The older names that one service has told; for its event loop alone."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._names: dict[bytes, bytes] = {}
        self._begun: dict[bytes, asyncio.Task[bytes]] = {}
        self._one = asyncio.Lock()

    async def of(self, digest: bytes) -> bytes:
        """Return the older name of a payload.

        Raises:
            BlobError: it is not kept, or the disk altered it.

        """
        if digest in self._names:
            return self._names[digest]
        if digest not in self._begun:
            task = self._begun[digest] = asyncio.create_task(self._find(digest))
            task.add_done_callback(lambda done: self._end(digest, done))
        return await asyncio.shield(self._begun[digest])  # who leaves does not end it for others

    def own(self, name: bytes) -> list[bytes]:
        """Return the digests here of the payload that a node asks for by a name of either kind.

        There may be two: what a coordinator of version 2 left is kept by its older name.
        """
        return [name, *(own for own, older in self._names.items() if older == name)]

    def _end(self, digest: bytes, done: asyncio.Task[bytes]) -> None:
        del self._begun[digest]
        if not done.cancelled():
            done.exception()  # whoever still waits has it; where nobody does, that is no news

    async def _find(self, digest: bytes) -> bytes:
        async with self._one:
            older = await asyncio.to_thread(self._mailbox.blobs.older_digest, digest)
            named = await asyncio.to_thread(self._mailbox.named, list(self._names))
        self._names = {own: name for own, name in self._names.items() if own in named}
        self._names[digest] = older
        return older
