"""Payloads that several nodes fetch at once are read once, and held no longer than that takes."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client.arriving import Arriving
from client.transport import LinkLost
from coordinator.service import sharing, stores
from coordinator.service.blobs import Blobs
from coordinator.service.posts import Question
from coordinator.service.sharing import Shared, SharedPayloads
from privacy.payloads import payload_digest
from tests.service.members import enrol
from tests.service.running import RunningService

CHUNKS = [b"first", b"second", b"third"]


async def read(shared: Shared, pause_s: float = 0.0) -> list[bytes]:
    got = []
    async for chunk in shared.chunks():
        got.append(bytes(chunk.data))
        await asyncio.sleep(pause_s)
    return got


def test_readers_of_any_pace_get_all_and_each_chunk_is_read_once() -> None:
    passed = list[bytes]()

    def source() -> Iterator[bytes]:
        for chunk in CHUNKS:
            passed.append(chunk)
            yield chunk

    async def together() -> list[list[bytes]]:
        shared = Shared(source(), sum(map(len, CHUNKS)))
        first = await asyncio.gather(*(read(shared, pause) for pause in (0.0, 0.0, 0.02)))
        return [*first, await read(shared)]

    assert asyncio.run(together()) == [CHUNKS] * 4
    assert passed == CHUNKS


def test_a_chunk_that_cannot_be_read_ends_no_transfer_as_if_it_were_whole() -> None:
    def source() -> Iterator[bytes]:
        yield CHUNKS[0]
        raise OSError("the disk")

    async def together() -> list[list[bytes] | BaseException]:
        shared = Shared(source(), 100)
        first = await asyncio.gather(*(read(shared) for _ in range(3)), return_exceptions=True)
        return [*first, *await asyncio.gather(read(shared), return_exceptions=True)]

    found = asyncio.run(together())
    assert [type(each) for each in found] == [OSError] * 4


def test_a_reader_that_goes_away_takes_no_chunk_with_it() -> None:
    """It is cancelled while the disk is at its chunk; the thread that reads goes on."""
    begun, go_on = threading.Event(), threading.Event()

    def source() -> Iterator[bytes]:
        yield CHUNKS[0]
        begun.set()
        assert go_on.wait(20)
        yield from CHUNKS[1:]

    async def together() -> list[list[bytes]]:
        shared = Shared(source(), 100)
        gone = asyncio.ensure_future(read(shared))
        await asyncio.to_thread(begun.wait, 20)
        others = [asyncio.ensure_future(read(shared)) for _ in range(2)]
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0.01)
        others.append(asyncio.ensure_future(read(shared)))
        await asyncio.sleep(0.01)
        go_on.set()
        return await asyncio.gather(*others)

    assert asyncio.run(together()) == [CHUNKS] * 3


def test_what_is_held_is_limited_and_goes_with_its_last_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "SHARED_BYTES", 10)
    blobs = Blobs(tmp_path)
    digests = [blobs.put(chunk) for chunk in CHUNKS]
    payloads = SharedPayloads(blobs)
    first = payloads.of(digests[0], 5)
    assert first is not None
    assert payloads.of(digests[0], 5) is first
    second = payloads.of(digests[2], 5)
    assert second is not None
    assert payloads.of(digests[1], 1) is None
    del second
    gc.collect()
    assert payloads.of(digests[1], 6) is None
    assert payloads.of(digests[1], 5) is not None


@pytest.mark.parametrize("shared_bytes", [256 << 20, 0])
def test_nodes_that_fetch_at_once(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_bytes: int
) -> None:
    """A model of several chunks and a rest, which has room in memory or has not."""
    monkeypatch.setattr(sharing, "SHARED_BYTES", shared_bytes)
    monkeypatch.setattr(stores, "LARGE_BYTES", 1 << 20)
    links = [enrol(service, tmp_path / name, name) for name in ("north", "south", "west")]
    model = bytes(range(256)) * 20_000
    mailbox, members = service.home.mailbox, service.home.registry.members()
    parcel = ("UploadRequest", b"", model)
    mailbox.ask("r", [Question(member.address, "train.upload", parcel) for member in members])
    digest = payload_digest(model)
    with ThreadPoolExecutor(3) as nodes:
        for _ in range(3):
            got = nodes.map(lambda link: link.fetch(digest, len(model), Arriving()), links)
            assert list(got) == [model] * 3
    (service.home.path / "blobs" / digest.hex()).unlink()
    with pytest.raises(LinkLost):
        links[0].fetch(digest, len(model), Arriving())
    for link in links:
        link.close()
