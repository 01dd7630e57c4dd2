"""What is not well formed or another's: each ends with its fixed code, the others are served."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from client.membership import MembershipFile
from client.transport import Credentials, Link, LinkRefused
from privacy.enrolment import PROTOCOL, join_payload, new_connection_key, signing_request
from privacy.identity import IdentityKey
from privacy.payloads import payload_digest
from protos.arion.v1 import service_pb2 as pb
from tests.service.attacker import PAYLOAD, Attacker, attack, code_of, head

__all__ = ["attack"]  # a fixture


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
    digest = payload_digest(PAYLOAD)
    assert code_of(lambda: next(stub.Fetch(pb.FetchRequest(digest=digest)))) == "unknown-payload"
    assert stub.Progress(pb.ProgressRequest(message=message)).offset == 0
    assert stub.Answer(iter([head(message)])).status == "over"
    assert evil.parts() == []
    with pytest.raises(grpc.RpcError):
        next(stub.Listen(pb.ListenRequest(protocol=PROTOCOL), timeout=0.5))
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
