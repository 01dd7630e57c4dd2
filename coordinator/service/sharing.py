"""Payloads that several nodes fetch at about the same time, as they do a round's model: read once.

What is held goes when the last of those nodes has it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from weakref import WeakValueDictionary

from coordinator.service.blobs import Blobs
from coordinator.service.stores import SHARED_BYTES
from protos.arion.v1 import service_pb2 as pb


class Shared:
    """One payload's chunks, read as far as the foremost of its readers came.

    Args:
        chunks: of the payload.
        size: of it, bytes.

    """

    def __init__(self, chunks: Iterator[bytes], size: int) -> None:
        self._source, self.size = chunks, size
        self._read: list[Any] = []
        self._turn = asyncio.Lock()
        self._failure: OSError | None = None

    async def chunks(self) -> AsyncIterator[Any]:
        """Yield the chunks from the first; OSError, for all its readers, where one is not read."""
        number = 0
        while number < len(self._read) or await self._read_on(number):
            yield self._read[number]
            number += 1

    async def _read_on(self, number: int) -> bool:
        """Tell whether there is such a chunk, which is read where nobody did meanwhile."""
        async with self._turn:
            if number < len(self._read):
                return True
            if self._failure is not None:  # with it the source has ended
                raise self._failure
            try:
                data = await asyncio.to_thread(next, self._source, b"")
            except OSError as error:
                self._failure = error
                raise
            if data:
                self._read.append(pb.Chunk(data=data))
            return bool(data)


class SharedPayloads:
    """The payloads of a service that are being fetched now, as far as they have room in memory.

    Args:
        blobs: where they lie.

    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._held = WeakValueDictionary[bytes, Shared]()

    def of(self, digest: bytes, size: int) -> Shared | None:
        """Return a payload to read from its beginning; None where there is no room for it."""
        found = self._held.get(digest)
        if found is None and sum(each.size for each in self._held.values()) + size <= SHARED_BYTES:
            found = self._held[digest] = Shared(self._blobs.chunks_once(digest), size)
        return found
