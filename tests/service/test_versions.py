"""Coordinator before nodes, nodes before coordinator: one version back, in both directions.

Version 2 is this code with its constants set back, and without what version 3 knows of BLAKE3.
"""

import hashlib
import random
import threading
import time
from pathlib import Path

import pytest
from blake3 import blake3

import client.transport
from client.agent import Agent
from client.membership import MembershipFile, renew
from client.transport import Credentials, Link, LinkRefused
from coordinator.service import blobs, callers
from coordinator.service.home import ServiceHome
from privacy.enrolment import PROTOCOL
from privacy.payloads import older_payload_digest
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc
from tests.service.attacker import code_of
from tests.service.conftest import RunningService, is_sha256
from tests.service.members import channel_of, enrol

MODEL, WORDS = random.Random(0).randbytes(3 << 20), random.Random(1).randbytes(5 << 20)


@pytest.fixture
def old_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "PROTOCOL", 2)
    monkeypatch.setattr(callers, "OLDEST_PROTOCOL", 1)
    monkeypatch.setattr(blobs, "payload_digest", older_payload_digest)
    monkeypatch.setattr(blobs, "is_payload", is_sha256)
    monkeypatch.setattr(blobs, "is_payload_file", lambda p, d: is_sha256(p.read_bytes(), d))


def answered_one_message(service: RunningService, home: Path) -> bytes:
    """Have an agent at this home read a payload and answer with one; return that one's name."""
    (member,) = service.home.registry.members()
    mailbox = service.home.mailbox
    message = mailbox.post("r", member.address, "train.upload", ("UploadRequest", b"", MODEL))
    came: list[bytes] = []

    def answer(*question: str | bytes) -> tuple[str, bytes, bytes]:
        came.append(question[3])  # type: ignore[arg-type]
        return "Upload", b"", WORDS

    agent = Agent(home, answer)
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while (found := mailbox.first_answer([message])) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    agent.stop()
    thread.join(20)
    post, payload = found
    assert (came, payload) == ([MODEL], WORDS)
    return post.payload_digest


def test_both_of_this_version_name_payloads_by_blake3(
    service: RunningService, tmp_path: Path
) -> None:
    enrol(service, tmp_path).close()
    assert answered_one_message(service, tmp_path) == blake3(WORDS).digest()


@pytest.mark.usefixtures("old_coordinator")
def test_a_new_node_works_with_a_coordinator_one_version_back(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path)
    before = MembershipFile(tmp_path).load().certificate
    assert answered_one_message(service, tmp_path) == hashlib.sha256(WORDS).digest()
    assert renew(tmp_path, link).certificate != before
    link.close()


@pytest.mark.usefixtures("old_node")
def test_a_node_one_version_back_works_with_a_new_coordinator(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path)
    before = MembershipFile(tmp_path).load().certificate
    assert answered_one_message(service, tmp_path) == hashlib.sha256(WORDS).digest()
    assert renew(tmp_path, link).certificate != before
    link.close()


def test_other_versions_are_refused_on_both_ports(service: RunningService, tmp_path: Path) -> None:
    enrol(service, tmp_path).close()
    credentials = MembershipFile(tmp_path).load().credentials
    for version in (0, PROTOCOL + 1, 2**31):
        with channel_of(service.ports.exchange, credentials) as channel:
            request = pb.ListenRequest(protocol=version)
            code = code_of(lambda r=request, c=channel: next(rpc.ExchangeStub(c).Listen(r)))
            assert code == "other-protocol"
        with channel_of(service.ports.enrolment, Credentials(credentials.authority)) as channel:
            request = pb.JoinRequest(protocol=version)
            code = code_of(lambda r=request, c=channel: rpc.EnrolmentStub(c).Join(r))
            assert code == "other-protocol"


def test_two_versions_apart_is_told_what_to_do(
    service: RunningService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(service, tmp_path).close()
    monkeypatch.setattr(client.transport, "PROTOCOL", PROTOCOL + 2)
    monkeypatch.setattr(client.transport, "OLDEST_PROTOCOL", PROTOCOL + 1)
    with pytest.raises(LinkRefused, match="Install a version"):
        Agent(tmp_path, lambda *question: ("Done", b"", b"")).run()


def test_a_coordinator_says_what_it_speaks_and_what_time_it_has(
    service_home: ServiceHome, service: RunningService
) -> None:
    link = Link(f"localhost:{service.ports.enrolment}", Credentials(service_home.authority.pem))
    hello = link.hello()
    link.close()
    assert (hello.oldest, hello.newest) == (PROTOCOL - 1, PROTOCOL)
    assert abs(hello.time - time.time()) < 60
