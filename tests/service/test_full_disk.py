"""Disks and databases that fill: nothing is acknowledged, and the node comes again."""

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from client.transport import CHUNK_BYTES, Link, LinkLost, LinkRefused
from coordinator.service import blobs as blobs_module
from coordinator.service.blobs import Blobs
from coordinator.service.home import ServiceHome
from privacy.payloads import payload_digest
from tests.service.attacker import PAYLOAD, Attacker, attack

__all__ = ["attack"]  # a fixture


def test_answers_on_the_disk_have_a_quota(attack: Callable[..., Attacker]) -> None:
    evil = attack(quota_bytes=2 * len(PAYLOAD))
    link = Link(evil.service.address, evil.credentials)
    for _ in range(2):
        assert link.answer(evil.asked(), "Done", b"", PAYLOAD)
    with pytest.raises(LinkRefused) as caught:
        link.answer(evil.asked(), "Done", b"", PAYLOAD)
    assert caught.value.code == "over-quota"
    evil.honest_is_served()
    evil.service.home.mailbox.clear("r")
    assert link.answer(evil.asked(), "Done", b"", PAYLOAD)
    link.close()


def test_uploads_leave_the_disk_its_reserve(attack: Callable[..., Attacker]) -> None:
    """The node is told to come again, not that it is refused for good."""
    evil = attack(reserve_bytes=1 << 60)
    link = Link(evil.service.address, evil.credentials)
    message = evil.asked()
    with pytest.raises(LinkLost, match="disk-full"):
        link.answer(message, "Done", b"", PAYLOAD)
    assert link.answer(message, "Done", b"body", b"")  # what needs no room goes on
    assert evil.parts() == []
    link.close()


def test_a_disk_that_fills_in_the_middle(
    attack: Callable[..., Attacker], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = attack()
    link, message, writes = Link(evil.service.address, evil.credentials), evil.asked(), []
    write = blobs_module.write_uncached

    def full(descriptor: int, parts: tuple[bytes]) -> None:
        writes.append(len(parts))
        if len(writes) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, parts)

    with monkeypatch.context() as patch:
        patch.setattr(blobs_module, "write_uncached", full)
        with pytest.raises(LinkLost, match="disk-full") as caught:
            link.answer(message, "Done", b"", PAYLOAD)
    assert str(evil.service.home.path) not in str(caught.value)
    assert evil.service.home.mailbox.blobs.progress(message) == CHUNK_BYTES
    assert link.answer(message, "Done", b"", PAYLOAD)
    found = evil.service.home.mailbox.first_answer([message])
    assert found is not None
    assert found[1] == PAYLOAD
    link.close()


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    """A file system of 2 MB; where we may not mount one, the test above is what there is."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        kept = Blobs(disk / "blobs")
        first = kept.put(b"first")
        with pytest.raises(OSError, match="Free or mend"):
            kept.put(bytes(4 << 20))
        incoming = kept.receive("a1", 0, 4 << 20)
        with pytest.raises(OSError, match="Free or mend"):
            incoming.write(bytes(4 << 20))
        incoming.close()
        assert kept.read(first) == b"first"
        kept.forget("a1")
        for path in (disk / "blobs").glob("*.part"):
            path.unlink()
        assert kept.read(kept.put(bytes(1 << 20))) == bytes(1 << 20)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_database_that_is_full_acknowledges_nothing(attack: Callable[..., Attacker]) -> None:
    evil = attack()
    engine, message = evil.service.home.engine, evil.asked()
    link = Link(evil.service.address, evil.credentials)

    def small(connection: Any, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite: not below what there is

    event.listen(engine, "connect", small)
    engine.dispose()
    with pytest.raises(LinkLost, match="disk-full"):
        link.answer(message, "Done", bytes(1 << 20), b"")
    assert evil.service.home.mailbox.is_waiting(message, evil.address["evil"])
    assert evil.service.home.mailbox.first_answer([message]) is None
    event.remove(engine, "connect", small)
    engine.dispose()
    assert link.answer(message, "Done", bytes(1 << 20), b"")
    with engine.connect() as connection:
        assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"
    link.close()


def test_what_a_crash_left_without_a_row_is_deleted(service_home: ServiceHome) -> None:
    mailbox = service_home.mailbox
    kept = mailbox.post("r", 1, "train.upload", ("UploadRequest", b"", b"kept"))
    begun = mailbox.blobs.receive(kept, 0, 10)
    begun.write(b"begun")
    begun.close()
    lost = mailbox.blobs.put(b"lost")
    orphan = mailbox.blobs.receive("0" * 32, 0, 10)
    orphan.close()
    folder = service_home.path / "blobs"
    for name, age in (("old.part", 7200.0), ("new.part", 0.0)):
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (time.time() - age,) * 2)
    assert mailbox.sweep() == 3
    assert (folder / "new.part").exists()
    assert not (folder / "old.part").exists()
    assert mailbox.blobs.size(lost) is None
    assert mailbox.blobs.progress(kept) == len(b"begun")
    assert mailbox.blobs.size(payload_digest(b"kept")) == 4
