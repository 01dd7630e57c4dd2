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
        self._reading: asyncio.Future[None] | None = None
        self._failure: OSError | None = None
        self._is_over = False

    async def chunks(self) -> AsyncIterator[Any]:
        """Yield the chunks from the first; OSError, for all its readers, where one is not read."""
        number = 0
        while True:
            if number == len(self._read) and not self._is_over:
                # A reader that goes away takes no chunk with it that was being read.
                self._reading = asyncio.ensure_future(self._read_on(number))
                await asyncio.shield(self._reading)
            if self._failure is not None:
                raise self._failure
            if number == len(self._read):
                return
            yield self._read[number]
            number += 1

    async def _read_on(self, number: int) -> None:
        """Read the chunk of this number, where nobody did meanwhile."""
        async with self._turn:
            if number < len(self._read) or self._is_over:
                return
            try:
                data = await asyncio.to_thread(next, self._source, b"")
            except OSError as error:
                self._failure = error
            else:
                self._read.extend([pb.Chunk(data=data)] if data else [])
            self._is_over = self._failure is not None or not data


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
