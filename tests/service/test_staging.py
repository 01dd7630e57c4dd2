"""A run's next model lies where nodes will fetch it before they are told of it."""

from pathlib import Path

import pytest

from coordinator.grid import ServiceGrid
from privacy.payloads import payload_digest
from protos.flower import records_of
from tests.service.members import enrol
from tests.service.running import RunningService

MODEL = b"model" * 1000


def test_a_staged_payload_is_neither_put_nor_hashed_again(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(service, tmp_path / "north").close()
    (member,) = service.home.registry.members()
    blobs, digest = service.home.mailbox.blobs, payload_digest(MODEL)
    grid = ServiceGrid("r", service.home.registry, service.home.mailbox, ["north"])
    grid.stage(MODEL)
    written = (service.home.path / "blobs" / digest.hex()).stat()
    grid.push_messages([])  # another phase in between, and a long one
    grid.tidy()
    monkeypatch.setattr("coordinator.grid.payload_digest", None)
    asked = grid.create_message(
        records_of("UploadRequest", b"", MODEL), "train.upload", member.address, ""
    )
    grid.push_messages([asked])
    grid.tidy()
    assert (service.home.path / "blobs" / digest.hex()).stat().st_ino == written.st_ino
    (post,) = service.home.mailbox.waiting(member.address)
    assert post.payload_digest == digest
    grid.stage(b"never asked with")
    grid.close()
    assert blobs.names() == []
