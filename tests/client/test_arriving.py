"""A payload as it comes: in any pieces, more than was said, or other bytes than were named."""

import os
import tracemalloc
from collections.abc import Iterator

import pytest

from client import arriving
from client.arriving import Arriving
from privacy.payloads import older_payload_digest, payload_digest

ROOM = 1000


@pytest.fixture(autouse=True)
def small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "_FIRST_ROOM_BYTES", ROOM)


def pieces(data: bytes, step: int) -> Iterator[bytes]:
    return (data[at : at + step] for at in range(0, len(data), step))


def arrived(data: bytes, step: int, size: int) -> Arriving:
    found = Arriving()
    for piece in pieces(data, step):
        found.add(piece, size)
    return found


@pytest.mark.parametrize("size", [1, ROOM - 1, ROOM, ROOM + 1, 7 * ROOM + 3])
@pytest.mark.parametrize("step", [1, 64, 3 * ROOM])
def test_any_pieces_make_the_whole(size: int, step: int) -> None:
    data = os.urandom(size)
    found = arrived(data, step, size)
    assert found.came == size
    assert found.whole(payload_digest(data), size) == data
    assert found.whole(older_payload_digest(data), size) == data


def test_other_bytes_and_other_lengths_are_not_taken() -> None:
    data = os.urandom(2 * ROOM + 5)
    name, size = payload_digest(data), len(data)
    assert arrived(data[:-1] + bytes([data[-1] ^ 1]), 64, size).whole(name, size) is None
    assert arrived(data[:-1], 64, size).whole(name, size) is None
    assert arrived(data, 64, size).whole(bytes(32), size) is None
    longer = arrived(data + b"x", 64, size)
    assert longer.came > size
    assert longer.whole(name, size) is None
    zeros = bytes(ROOM)  # the room that is waiting for the rest is no part of what came
    assert arrived(zeros[:10], 10, ROOM).whole(payload_digest(zeros), ROOM) is None
    assert arrived(zeros[:10], 10, ROOM).whole(payload_digest(zeros[:10]), ROOM) is None
    found = arrived(zeros[:10], 10, ROOM)  # then another message says that this was all
    assert found.whole(payload_digest(zeros[:10]), 10) is None
    assert Arriving().whole(payload_digest(b""), 0) == b""


def test_what_a_message_says_of_a_size_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        arrived(bytes(10), 1, 1 << 40)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
