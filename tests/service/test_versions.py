"""Coordinator before nodes, nodes before coordinator: one version back, in both directions.

Version 1 is this code with its constants set back and without what version 2 added: the call Hello,
and the signature of a renewal.
"""

import threading
import time
from pathlib import Path

import pytest

import client.transport
from client.agent import Agent
from client.membership import MembershipFile, renew
from client.transport import Credentials, Link, LinkRefused
from coordinator.service import callers
from coordinator.service.enrolment import Enrolment
from coordinator.service.home import ServiceHome
from privacy.enrolment import PROTOCOL, new_connection_key, signing_request
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc
from tests.service.attacker import code_of
from tests.service.conftest import RunningService
from tests.service.members import channel_of, enrol, refused


@pytest.fixture
def old_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "PROTOCOL", 1)
    monkeypatch.setattr(callers, "OLDEST_PROTOCOL", 1)
    monkeypatch.setattr(Enrolment, "Hello", rpc.EnrolmentServicer.Hello)


@pytest.fixture
def old_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.transport, "PROTOCOL", 1)
    monkeypatch.setattr(client.transport, "OLDEST_PROTOCOL", 1)


def answered_one_message(service: RunningService, home: Path) -> None:
    """Whether an agent at this home answers what is asked."""
    (member,) = service.home.registry.members()
    message = service.home.mailbox.post("r", member.address, "query.head", ("HeadQuery", b"", b""))
    agent = Agent(home, lambda *question: ("Done", b"", b""))
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while service.home.mailbox.first_answer([message]) is None:
        assert time.monotonic() < end
        time.sleep(0.02)
    agent.stop()
    thread.join(20)


@pytest.mark.usefixtures("old_coordinator")
def test_a_new_node_works_with_a_coordinator_one_version_back(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path)
    before = MembershipFile(tmp_path).load().certificate
    answered_one_message(service, tmp_path)
    assert renew(tmp_path, link).certificate != before
    link.close()
    stranger = Link(f"localhost:{service.ports.enrolment}", Credentials(service.home.authority.pem))
    refused("unknown-call", stranger.hello)
    stranger.close()


@pytest.mark.usefixtures("old_node")
def test_a_node_one_version_back_works_with_a_new_coordinator(
    service: RunningService, tmp_path: Path
) -> None:
    link = enrol(service, tmp_path)
    answered_one_message(service, tmp_path)
    assert link.renew(signing_request(new_connection_key(), "x"), b"")
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
