"""A payload as it comes over the wire: hashed on the way, and put together once."""

from io import BytesIO

from blake3 import blake3

from privacy.payloads import older_payload_digest

_FIRST_ROOM_BYTES = 256 << 20
"""What a message says of a payload's size is believed so far; beyond that, once bytes come."""


class Arriving:
    """The part of a payload that came; it outlives the connection that it came over.

    Chunks are not kept until all are there: with the whole, that would take twice its memory.

    Attributes:
        came: bytes that are there.

    """

    def __init__(self) -> None:
        self._bytes, self._room, self._hash = BytesIO(), 0, blake3()
        self.came = 0

    def add(self, chunk: bytes, size: int) -> None:
        """Add a chunk to a payload that is said to be so long; one that goes beyond only counts."""
        begun, self.came = self.came, self.came + len(chunk)
        if self.came > size:
            return
        if self.came > self._room:
            self._make_room(begun, size)
        self._bytes.write(chunk)
        self._hash.update(chunk)

    def whole(self, digest: bytes, size: int) -> bytes | None:
        """Return the payload; None where other bytes came than those named."""
        if not self.came == self._room == size:  # of a room for more, the rest never came
            return None
        data = self._bytes.getvalue()
        is_named = digest == self._hash.digest() or digest == older_payload_digest(data)
        return data if is_named else None

    def _make_room(self, begun: int, size: int) -> None:
        self._room = min(size, max(_FIRST_ROOM_BYTES, 2 * self.came))
        bytes_ = BytesIO(bytes(self._room))  # whose bytes `getvalue` does not copy
        bytes_.write(self._bytes.getbuffer()[:begun])
        self._bytes = bytes_
