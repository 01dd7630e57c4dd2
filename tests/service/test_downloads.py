"""What a node downloads is what was named, and a lost download goes on."""

from pathlib import Path

import pytest

from client.agent import Downloads
from client.arriving import Arriving
from client.transport import CHUNK_BYTES, Link, LinkLost
from tests.service.members import enrol, refused
from tests.service.running import RunningService


def test_a_payload_that_arrives_altered_is_not_used(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path / "node")
    mailbox, (member,) = service.home.mailbox, service.home.registry.members()
    payload = bytes(3_000_000)
    mailbox.post("r", member.address, "train.upload", ("UploadRequest", b"", payload))
    envelope = next(link.listen(30))
    assert link.fetch(envelope.payload_digest, envelope.payload_bytes, Arriving()) == payload
    blob = service.home.path / "blobs" / envelope.payload_digest.hex()
    for altered in (payload[:-1] + b"x", payload[:-1], payload + b"x"):
        blob.write_bytes(altered)
        refused(
            "other-payload", lambda: link.fetch(envelope.payload_digest, len(payload), Arriving())
        )
    refused("unknown-payload", lambda: link.fetch(bytes(32), 1, Arriving()))
    link.close()


def test_a_download_goes_on_where_it_was_lost_and_is_kept(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path / "node")
    mailbox, (member,) = service.home.mailbox, service.home.registry.members()
    payload = bytes(range(256)) * 20_000  # five chunks
    mailbox.post("r", member.address, "train.upload", ("UploadRequest", b"", payload))
    envelope = next(link.listen(30))
    flaky, downloads = Flaky(link, chunks=2), Downloads()
    with pytest.raises(LinkLost):
        downloads.get(flaky, envelope)
    assert downloads.get(flaky, envelope) == payload
    assert downloads.get(flaky, envelope) == payload
    assert flaky.offsets == [0, 2 * CHUNK_BYTES]
    link.close()


class Flaky:
    """A link whose first download is lost after some chunks."""

    def __init__(self, link: Link, chunks: int) -> None:
        self._link, self._chunks = link, chunks
        self.offsets: list[int] = []

    def fetch(self, digest: bytes, size: int, begun: Arriving) -> bytes:
        self.offsets.append(begun.came)
        if len(self.offsets) == 1:
            whole = self._link.fetch(digest, size, Arriving())
            for at in range(self._chunks):
                begun.add(whole[at * CHUNK_BYTES :][:CHUNK_BYTES], size)
            raise LinkLost("lost")
        return self._link.fetch(digest, size, begun)
