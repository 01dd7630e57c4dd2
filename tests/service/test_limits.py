"""Attacks over real connections: each ends with its fixed code, and the others are served."""

import contextlib
import errno
import hashlib
import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import event, text

from client.membership import MembershipFile
from client.transport import CHUNK_BYTES, Credentials, Link, LinkLost, LinkRefused
from coordinator.service import blobs as blobs_module
from coordinator.service.blobs import Blobs
from coordinator.service.home import ServiceHome
from coordinator.service.limits import Limits, Pace
from coordinator.service.refusals import Refused
from privacy.enrolment import join_payload, new_connection_key, signing_request
from privacy.identity import IdentityKey
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc
from tests.service.conftest import with_settings
from tests.service.running import RunningService
from tests.service.test_enrolment import enrol
from tests.service.test_operations import channel_of

PAYLOAD = bytes(range(256)) * 9_000


class Attacker:
    """A member that speaks the protocol by hand, and an honest one beside it."""

    def __init__(self, service: RunningService, folder: Path) -> None:
        self.service, self.folder = service, folder
        self.honest = enrol(service, folder / "honest", "honest")
        enrol(service, folder / "evil", "evil").close()
        self.credentials = MembershipFile(folder / "evil").load().credentials
        self.address = {member.name: member.address for member in service.home.registry.members()}
        self._channels: list[grpc.Channel] = []

    def stub(self) -> rpc.ExchangeStub:
        """A connection of its own."""
        self._channels.append(channel_of(self.service.ports.exchange, self.credentials))
        return rpc.ExchangeStub(self._channels[-1])

    def asked(self, name: str = "evil", payload: bytes = b"") -> str:
        """A message that waits for an answer."""
        parcel = ("UploadRequest", b"", payload)
        return self.service.home.mailbox.post("r", self.address[name], "train.upload", parcel)

    def honest_is_served(self) -> None:
        """The other member uploads, and is acknowledged."""
        assert self.honest.answer(self.asked("honest"), "Done", b"body", PAYLOAD)

    def parts(self) -> list[Path]:
        """Uploads that have begun."""
        return list((self.service.home.path / "blobs" / "parts").iterdir())

    def close(self) -> None:
        self.honest.close()
        for channel in self._channels:
            channel.close()


@pytest.fixture
def attack(service_home: ServiceHome, tmp_path: Path) -> Iterator[Callable[..., Attacker]]:
    """Start a service with some limits, and join both members."""
    made: list[tuple[RunningService, Attacker]] = []

    def start(**limits: Any) -> Attacker:
        running = RunningService(with_settings(service_home, limits=Limits(**limits)))
        made.append((running, Attacker(running, tmp_path)))
        return made[-1][1]

    yield start
    for running, attacker in made:
        attacker.close()
        running.stop()


def head(message: str, payload: bytes = PAYLOAD, **changes: Any) -> Any:
    digest = hashlib.sha256(payload).digest() if payload else b""
    values = {"message": message, "kind": "Done", "body": b"", "payload_digest": digest,
              "payload_bytes": len(payload), "offset": 0}  # fmt: skip
    return pb.AnswerPart(head=pb.AnswerHead(**{**values, **changes}))


def code_of(act: Callable[[], object]) -> str:
    """The fixed code that a call ends with, or gRPC's status where there is none."""
    with pytest.raises(grpc.RpcError) as caught:
        act()
    trailers = dict(caught.value.trailing_metadata() or ())
    return str(trailers.get("arion-code", caught.value.code().name))


def test_streams_of_a_member_are_counted(attack: Callable[..., Attacker]) -> None:
    evil = attack(streams=2)
    stub = evil.stub()
    request = pb.ListenRequest(protocol=1)
    message = evil.asked()
    held = [stub.Listen(request) for _ in range(2)]
    assert [next(stream).message for stream in held] == [message] * 2
    assert code_of(lambda: next(stub.Listen(request))) == "too-many-streams"
    evil.honest_is_served()
    held[0].cancel()
    end = time.monotonic() + 10
    while True:
        stream = stub.Listen(request)
        with contextlib.suppress(grpc.RpcError):
            assert next(stream).message == message
            break
        assert time.monotonic() < end
        time.sleep(0.05)


def test_300_idle_uploads_hold_up_nobody(attack: Callable[..., Attacker]) -> None:
    """Heads without a byte behind them: all but a few are refused, the rest end when idle."""
    evil = attack(transfers=4, idle_s=2.0, calls_per_s=1000)
    stop = threading.Event()

    def idle(message: str) -> Iterator[Any]:
        yield head(message)
        stop.wait(30)

    stubs = [evil.stub() for _ in range(6)]
    calls = [stubs[k % 6].Answer.future(idle(evil.asked())) for k in range(300)]
    evil.honest_is_served()
    codes = [code_of(call.result) for call in calls]
    stop.set()
    assert set(codes) == {"too-many-transfers", "too-slow"}
    assert codes.count("too-many-transfers") >= 250
    evil.honest_is_served()
    assert evil.parts() == [] or all(path.stat().st_size == 0 for path in evil.parts())


def test_a_slow_sender_is_cut_off_and_goes_on_later(attack: Callable[..., Attacker]) -> None:
    """One byte now and then never idles, but keeps no pace; what came is not lost."""
    evil = attack(idle_s=1.0, slowest_bytes_per_s=1 << 30)
    message = evil.asked()

    def slow() -> Iterator[Any]:
        yield head(message)
        for start in range(1000):
            yield pb.AnswerPart(data=PAYLOAD[start : start + 1])
            time.sleep(0.05)

    assert code_of(lambda: evil.stub().Answer(slow())) == "too-slow"
    offset = evil.stub().Progress(pb.ProgressRequest(message=message)).offset
    assert 0 < offset < 1000
    link = Link(evil.service.address, evil.credentials)
    assert link.answer(message, "Done", b"", PAYLOAD)
    link.close()


def test_a_reader_that_does_not_read_is_cut_off(attack: Callable[..., Attacker]) -> None:
    evil = attack(idle_s=0.5)
    payload = bytes(64 << 20)
    evil.asked(payload=payload)
    digest = hashlib.sha256(payload).digest()
    stream = evil.stub().Fetch(pb.FetchRequest(digest=digest))
    next(stream)
    end = time.monotonic() + 20
    labels = {"method": "Fetch", "outcome": "too-slow"}
    while not evil.service.metrics.get_sample_value("arion_calls_total", labels):
        assert time.monotonic() < end
        time.sleep(0.1)
    evil.honest_is_served()
    stream.cancel()


def test_calls_of_a_member_are_paced(attack: Callable[..., Attacker]) -> None:
    evil = attack(calls_per_s=5)
    stub, request = evil.stub(), pb.ProgressRequest(message="0" * 32)
    codes = []
    for _ in range(100):
        try:
            stub.Progress(request)
        except grpc.RpcError as error:
            codes.append(dict(error.trailing_metadata())["arion-code"])
    assert codes
    assert set(codes) == {"too-many-calls"}
    evil.honest_is_served()


def test_a_pace_recovers_and_its_memory_is_bounded() -> None:
    now = [0.0]
    pace = Pace(2.0, lambda: now[0])
    for _ in range(20):
        pace.count("a")
    for _ in range(3):  # refused calls do not push the next one away
        with pytest.raises(Refused):
            pace.count("a")
    pace.count("b")
    now[0] = 0.5
    pace.count("a")
    with pytest.raises(Refused):
        pace.count("a")
    for number in range(20_000):
        pace.count(str(number))
    assert len(pace._left) == 10_000


def test_strangers_are_paced_by_their_address(attack: Callable[..., Attacker]) -> None:
    evil = attack(joins_per_s=1.0)
    authority = Credentials(evil.service.home.authority.pem)
    with channel_of(evil.service.ports.enrolment, authority) as channel:
        stub = rpc.EnrolmentStub(channel)
        codes = [
            code_of(lambda: stub.Join(pb.JoinRequest(protocol=1, token="arion1.x.y")))
            for _ in range(30)
        ]
    assert set(codes) == {"bad-invitation", "too-many-calls"}
    assert codes[-1] == "too-many-calls"
    evil.honest_is_served()


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
    write_all = blobs_module.write_all

    def full(descriptor: int, data: bytes) -> None:
        writes.append(len(data))
        if len(writes) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(blobs_module, "write_all", full)
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


def test_messages_that_are_too_large_and_bombs(attack: Callable[..., Attacker]) -> None:
    """Neither 30 MB nor 30 MB that unfold from 30 kB come to our code; nor does a long head."""
    evil = attack()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stub, large = evil.stub(), bytes(30 << 20)
    part = head(evil.asked(), payload=b"", body=large)
    assert code_of(lambda: stub.Answer(iter([part]))) == "RESOURCE_EXHAUSTED"
    bomb = lambda: stub.Answer(iter([part]), compression=grpc.Compression.Gzip)  # noqa: E731
    assert code_of(bomb) in ("RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
    metadata = [(f"x-{number}", "y" * 4096) for number in range(16)]
    request = pb.ProgressRequest(message="0" * 32)
    assert code_of(lambda: evil.stub().Progress(request, metadata=metadata)) == "RESOURCE_EXHAUSTED"
    authority = Credentials(evil.service.home.authority.pem)
    with channel_of(evil.service.ports.enrolment, authority) as channel:
        join = pb.JoinRequest(protocol=1, csr=bytes(1 << 20))
        assert code_of(lambda: rpc.EnrolmentStub(channel).Join(join)) == "RESOURCE_EXHAUSTED"
    evil.honest_is_served()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 << 10  # kB: what this process itself sent, some times over


def test_300_silent_connections(attack: Callable[..., Attacker]) -> None:
    evil = attack()
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            port = evil.service.ports.exchange
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        evil.honest_is_served()
        fresh = Link(
            evil.service.address, MembershipFile(evil.folder / "honest").load().credentials
        )
        assert fresh.answer(evil.asked("honest"), "Done", b"", b"")
        fresh.close()


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\0b", "", "x" * 100_000, "é"]
)
def test_names_that_are_paths(attack: Callable[..., Attacker], name: str) -> None:
    evil = attack()
    stub = evil.stub()
    assert stub.Progress(pb.ProgressRequest(message=name)).offset == 0
    assert stub.Answer(iter([head(name)])).status == "over"
    digest = name.encode()[:32]
    assert code_of(lambda: next(stub.Fetch(pb.FetchRequest(digest=digest)))) == "unknown-payload"
    assert evil.parts() == []


def test_answers_that_are_not_well_formed(attack: Callable[..., Attacker]) -> None:
    evil = attack()
    stub, data = evil.stub(), pb.AnswerPart(data=b"x")
    message = evil.asked()
    cases: dict[str, list[Any]] = {
        "nothing": [],
        "data first": [data, head(message)],
        "an empty part": [pb.AnswerPart()],
        "no digest": [head(message, payload_digest=b"")],
        "a short digest": [head(message, payload_digest=b"x" * 31)],
        "a digest of nothing": [head(message, payload=b"", payload_digest=bytes(32))],
        "no kind": [head(message, kind="")],
        "a long kind": [head(message, kind="k" * 65)],
        "two heads": [head(message), head(message)],
        "an empty chunk": [head(message), pb.AnswerPart(data=b"")],
        "an offset beyond": [head(message, offset=5), data],
        "an offset at the end": [head(message, offset=len(PAYLOAD)), data],
        "more than it says": [head(message, payload=b"ab"), pb.AnswerPart(data=b"abc")],
        "less than it says": [head(message), data],
        "other bytes": [head(message, payload=b"ab"), pb.AnswerPart(data=b"cd")],
    }
    for case, parts in cases.items():
        assert code_of(lambda parts=parts: stub.Answer(iter(parts))) == "bad-answer", case
    assert evil.service.home.mailbox.is_waiting(message, evil.address["evil"])
    evil.honest_is_served()


def test_ids_of_another_node_on_every_route(attack: Callable[..., Attacker]) -> None:
    evil = attack()
    stub, message = evil.stub(), evil.asked("honest", PAYLOAD)
    digest = hashlib.sha256(PAYLOAD).digest()
    assert code_of(lambda: next(stub.Fetch(pb.FetchRequest(digest=digest)))) == "unknown-payload"
    assert stub.Progress(pb.ProgressRequest(message=message)).offset == 0
    assert stub.Answer(iter([head(message)])).status == "over"
    assert evil.parts() == []
    with pytest.raises(grpc.RpcError):
        next(stub.Listen(pb.ListenRequest(protocol=1), timeout=0.5))
    assert evil.service.home.mailbox.is_waiting(message, evil.address["honest"])


def test_an_answer_that_is_sent_again(attack: Callable[..., Attacker]) -> None:
    evil = attack()
    link, message = Link(evil.service.address, evil.credentials), evil.asked()
    assert link.answer(message, "Done", b"first", PAYLOAD)
    assert not link.answer(message, "Done", b"second", PAYLOAD[::-1])
    found = evil.service.home.mailbox.first_answer([message])
    assert found is not None
    assert (found[0].body, found[1]) == (b"first", PAYLOAD)
    link.close()


def test_a_request_of_another_member_is_not_joined_again(attack: Callable[..., Attacker]) -> None:
    """Whoever saw a member's signing request cannot take its place with its own invitation."""
    evil = attack()
    registry, identity = evil.service.home.registry, IdentityKey.generate()
    seen = MembershipFile(evil.folder / "honest").load().request.encode()
    invitation = registry.invite("third")
    signed = identity.sign("join", join_payload(invitation.digest, seen))
    authority = Credentials(evil.service.home.authority.pem)
    link = Link(f"localhost:{evil.service.ports.enrolment}", authority)
    with pytest.raises(LinkRefused) as caught:
        link.join(str(invitation), seen, identity.public_key, signed.signature)
    assert caught.value.code == "request-known"
    own = signing_request(new_connection_key(), "x")
    signed = identity.sign("join", join_payload(invitation.digest, own))
    assert link.join(str(invitation), own, identity.public_key, signed.signature) == "third"
    link.close()
    evil.honest_is_served()


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
    assert mailbox.blobs.size(hashlib.sha256(b"kept").digest()) == 4
