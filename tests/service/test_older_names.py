"""Nodes of version 2 are told older names of payloads, and get what they ask for by them."""

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from client.agent import Agent
from client.arriving import Arriving
from coordinator.service.blobs import Blobs
from coordinator.service.mailbox import Mailbox
from coordinator.service.posts import Question
from privacy.payloads import older_payload_digest
from protos.arion.v1 import service_pb2 as pb
from tests.service.members import enrol, refused
from tests.service.running import RunningService

MODEL = random.Random(3).randbytes(3 << 20)
OLDER, NEWER = older_payload_digest(MODEL), blake3(MODEL).digest()


class Reads:
    """How often payloads were read through for their older names, and how many at once."""

    def __init__(self, blobs: Blobs) -> None:
        self.count = self.now = self.most = 0
        self._turn = threading.Lock()
        self._older_digest = blobs.older_digest

    def older_digest(self, digest: bytes) -> bytes:
        with self._turn:
            self.count, self.now = self.count + 1, self.now + 1
            self.most = max(self.most, self.now)
        time.sleep(0.2)  # a large one, or a slow store
        with self._turn:
            self.now -= 1
        return self._older_digest(digest)


@pytest.fixture
def reads(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> Reads:
    blobs = service.home.mailbox.blobs
    found = Reads(blobs)
    monkeypatch.setattr(blobs, "older_digest", found.older_digest)
    return found


def answered(home: Path, act: Callable[[], None], is_done: Callable[[], bool]) -> list[bytes]:
    """Run an agent until its answers are there; return the bodies of what it was asked."""
    got: list[bytes] = []

    def answer(*question: str | bytes) -> tuple[str, bytes, bytes]:
        act()
        got.append(question[2])  # type: ignore[arg-type]
        return "Upload", b"", b""

    agent = Agent(home, answer)
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not is_done() and time.monotonic() < end:
        time.sleep(0.02)
    agent.stop()
    thread.join(20)
    return got


@pytest.mark.usefixtures("old_node")
def test_a_payload_that_an_older_driver_left_is_found_by_either_name(
    service: RunningService, tmp_path: Path
) -> None:
    """The service is upgraded first, then the driver, which asks the same attempt anew."""
    link = enrol(service, tmp_path)
    (member,) = service.home.registry.members()
    mailbox = service.home.mailbox
    left = Question(member.address, "train.upload", ("UploadRequest", b"1", MODEL), OLDER)
    mailbox.ask("r", [left])
    stream = link.listen(30)
    assert next(stream).payload_digest == OLDER
    mailbox.ask("r", [Question(member.address, "train.upload", left.parcel, NEWER)])
    assert next(stream).payload_digest == OLDER
    assert link.fetch(OLDER, len(MODEL), Arriving()) == MODEL
    link.close()


def test_a_newer_node_finds_what_another_was_told_by_its_older_name(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, other = enrol(service, tmp_path / "a"), enrol(service, tmp_path / "b", "south")
    addresses = {m.name: m.address for m in service.home.registry.members()}
    mailbox = service.home.mailbox
    mailbox.post("old", addresses["north"], "train.upload", ("U", b"", MODEL), OLDER)
    mailbox.post("new", addresses["south"], "train.upload", ("U", b"", MODEL), NEWER)
    assert next(link.listen(30)).payload_digest == OLDER
    monkeypatch.setattr("client.transport.PROTOCOL", 2)
    assert next(other.listen(30)).payload_digest == OLDER
    assert link.fetch(OLDER, len(MODEL), Arriving()) == MODEL
    link.close()
    other.close()


@pytest.mark.usefixtures("old_node")
def test_a_name_that_another_was_told_opens_nothing(
    service: RunningService, tmp_path: Path
) -> None:
    link, other = enrol(service, tmp_path / "a"), enrol(service, tmp_path / "b", "south")
    (address,) = (m.address for m in service.home.registry.members() if m.name == "south")
    service.home.mailbox.post("r", address, "train.upload", ("U", b"", MODEL))
    assert next(other.listen(30)).payload_digest == OLDER
    for name in (OLDER, NEWER):
        refused("unknown-payload", lambda name=name: link.fetch(name, len(MODEL), Arriving()))
    assert other.fetch(OLDER, len(MODEL), Arriving()) == MODEL
    link.close()
    other.close()


@pytest.mark.usefixtures("old_node")
def test_a_node_that_is_told_much_gets_all_of_it(service: RunningService, tmp_path: Path) -> None:
    """What was told while the node trained on the first is there when it asks."""
    enrol(service, tmp_path).close()
    (member,) = service.home.registry.members()
    for number in range(80):
        parcel = ("U", b"%d" % number, b"payload %d" % number)
        service.home.mailbox.post(f"r{number}", member.address, "train.upload", parcel)
    trains = iter([1.5])
    waiting = service.home.mailbox.waiting
    got = answered(
        tmp_path, lambda: time.sleep(next(trains, 0)), lambda: not waiting(member.address)
    )
    assert sorted(map(int, got)) == list(range(80))
    assert waiting(member.address) == []


@pytest.mark.usefixtures("old_node")
def test_a_payload_is_read_through_once_for_all(
    service: RunningService, tmp_path: Path, reads: Reads
) -> None:
    links = [enrol(service, tmp_path / name, name) for name in ("a", "b", "c")]
    streams = [link.listen(30) for link in links]
    told: list[bytes] = []
    threads = [
        threading.Thread(target=lambda s=stream: told.append(next(s).payload_digest))
        for stream in streams
    ]
    for thread in threads:
        thread.start()
    members = service.home.registry.members()
    parcel = ("U", b"", MODEL)
    service.home.mailbox.ask("r", [Question(m.address, "a", parcel, NEWER) for m in members])
    for thread in threads:
        thread.join(20)
    assert (told, reads.count) == ([OLDER] * 3, 1)
    for link in links:
        link.close()


def test_streams_that_are_opened_and_left_have_nothing_read_twice_or_at_once(
    service: RunningService, tmp_path: Path, reads: Reads
) -> None:
    link = enrol(service, tmp_path)
    (member,) = service.home.registry.members()
    for number in range(3):
        service.home.mailbox.post("r", member.address, "a", ("U", b"", MODEL + b"%d" % number))
    for _ in range(40):
        call = link._exchange.Listen(pb.ListenRequest(protocol=2), timeout=20)
        time.sleep(0.02)
        call.cancel()
    assert link.is_member()
    assert (reads.most, reads.count <= 3) == (1, True)
    link.close()


def test_who_asks_for_what_is_not_there_has_nothing_read(
    service: RunningService, tmp_path: Path, reads: Reads
) -> None:
    link = enrol(service, tmp_path)
    (member,) = service.home.registry.members()
    service.home.mailbox.post("r", member.address, "train.upload", ("UploadRequest", b"", MODEL))
    refused("unknown-payload", lambda: link.fetch(bytes(32), 1, Arriving()))
    refused("unknown-payload", lambda: link.fetch(OLDER, 1, Arriving()))
    assert reads.count == 0
    link.close()


@pytest.mark.usefixtures("old_node")
def test_a_message_whose_payload_is_away_for_a_moment_is_told_later(
    service: RunningService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another run that had the same payload ends between this one's row and its second put."""
    enrol(service, tmp_path).close()
    (member,) = service.home.registry.members()
    mailbox: Mailbox = service.home.mailbox
    mailbox.post("r", member.address, "train.upload", ("U", b"7", MODEL))
    mailbox.blobs.delete(NEWER)
    threading.Timer(1.5, lambda: mailbox.blobs.put(MODEL)).start()
    got = answered(tmp_path, lambda: None, lambda: not mailbox.waiting(member.address))
    assert got == [b"7"]
    assert "north is not told train.upload yet" in caplog.text


def test_a_payload_that_the_disk_altered_has_no_older_name(tmp_path: Path) -> None:
    kept = Blobs(tmp_path)
    digest = kept.put(MODEL)
    assert kept.older_digest(digest) == kept.older_digest(kept.put(MODEL, OLDER)) == OLDER
    for damaged in (MODEL[:-1], MODEL + b"x", b"", MODEL[:-1] + bytes([MODEL[-1] ^ 1])):
        (tmp_path / digest.hex()).write_bytes(damaged)
        with pytest.raises(ValueError, match="cancel the run and resume it"):
            kept.older_digest(digest)
