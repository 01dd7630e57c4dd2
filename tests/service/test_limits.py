"""Taking too much of the service: each attack ends with its fixed code, the others are served."""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from client.membership import MembershipFile
from client.transport import Credentials, Link
from coordinator.service.limits import Pace
from coordinator.service.refusals import Refused
from privacy.enrolment import PROTOCOL
from privacy.payloads import payload_digest
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc
from tests.service.attacker import PAYLOAD, Attacker, attack, code_of, head
from tests.service.members import channel_of

__all__ = ["attack"]  # a fixture


def test_streams_of_a_member_are_counted(attack: Callable[..., Attacker]) -> None:
    evil = attack(streams=2)
    stub = evil.stub()
    request = pb.ListenRequest(protocol=PROTOCOL)
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
    digest = payload_digest(payload)
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
            code_of(lambda: stub.Join(pb.JoinRequest(protocol=PROTOCOL, token="arion1.x.y")))
            for _ in range(30)
        ]
    assert set(codes) == {"bad-invitation", "too-many-calls"}
    assert codes[-1] == "too-many-calls"
    evil.honest_is_served()


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
        join = pb.JoinRequest(protocol=PROTOCOL, csr=bytes(1 << 20))
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
