"""What a newer side adds: refused whole within a run, passed over in the exchange around it."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from google.protobuf.message import Message

import client.app
from client.agent import Agent
from client.membership import MembershipFile
from coordinator.app import GridChannel
from coordinator.grid import ServiceGrid
from privacy.canonical import canonical_bytes
from privacy.rounds import PlanCode, PlanRefused
from protos.arion.v1 import service_pb2 as pb
from protos.arion.v1 import service_pb2_grpc as rpc
from protos.messages import Refusal
from protos.round_messages import HeadHeld, HeadQuery, UploadRequest
from protos.wire import Parcel, WireError, WireMessage
from tests.compat.examples import wire_messages
from tests.service.conftest import institutions, service, service_home
from tests.service.institutions import Make
from tests.service.members import channel_of
from tests.small_federation import SmallFederation, federation, ground, make_federation
from tests.small_hands import Hands, hands, take

__all__ = [  # fixtures
    "federation",
    "ground",
    "hands",
    "institutions",
    "make_federation",
    "service",
    "service_home",
    "take",
]

LATER = b"\xfa\x07\x05later"  # field 127
each = pytest.mark.parametrize(
    "message", wire_messages(), ids=lambda message: type(message).__name__
)


def with_later_fields(parsed: Message) -> Iterator[bytes]:
    """A message with a field of a later version, in itself and in every message within it."""
    yield parsed.SerializeToString() + LATER
    for field, value in parsed.ListFields():
        if field.message_type is not None:
            inner = value[0] if field.is_repeated else value
            inner.MergeFromString(LATER)
            yield parsed.SerializeToString()
            inner.DiscardUnknownFields()


@each
def test_a_field_of_a_later_version_is_refused(message: WireMessage) -> None:
    for data in with_later_fields(type(message).wire.FromString(message.to_bytes())):
        with pytest.raises(WireError, match="newer version"):
            type(message).from_bytes(data)


def test_a_node_charges_nothing_for_a_later_request(federation: SmallFederation) -> None:
    request = next(each for each in wire_messages() if isinstance(each, UploadRequest))
    home = federation.homes.nodes["north"]
    question = ("UploadRequest", request.to_bytes() + LATER, b"")
    kind, body, _ = client.app.answer(home, "simulate", "train.upload", question)
    client.app.close_nodes()
    assert kind == "Refusal"
    refusal = Refusal.from_bytes(body)
    assert refusal.code == "bad-message"
    assert "newer version" in refusal.detail
    entries = (home / "ledger" / "entries.jsonl").read_text()
    assert "reserved" not in entries
    assert "debited" not in entries


def test_a_node_charges_nothing_for_a_plan_with_a_later_field(hands: Hands) -> None:
    plan = json.loads(hands.plan().payload()) | {"later": 1}
    signed = hands.key.sign("plan", canonical_bytes(plan))
    recipe = hands.federation.settings.recipe_json()
    with pytest.raises(PlanRefused, match="same version") as caught:
        hands.nodes["north"].release(UploadRequest(signed, recipe), memoryview(hands.vector))
    assert caught.value.code == PlanCode.NOT_CANONICAL
    assert hands.federation.bodies("north", "run-reserved") == []


def test_an_answer_with_a_later_field_is_left_out(
    institutions: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The member counts as one that is away; the rest of the round goes on."""
    there = institutions()
    home = there.federation.homes.nodes["north"]

    def answer(action: str, *question: Any) -> client.app.Question:
        kind, body, payload = client.app.answer(home, "arion-grpc", action, question)
        return kind, body + LATER, payload

    agent = Agent(home, answer)
    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    service = there.service.home
    with closing(ServiceGrid("r", service.registry, service.mailbox, ["north"])) as grid:
        channel = GridChannel(grid)
        (address,) = channel.addresses(1, 30.0)
        asked = {address: Parcel(HeadQuery("coordinator"))}
        assert list(channel.exchange("query.head", asked, HeadHeld, 30.0)) == []
    agent.stop()
    thread.join(20)
    assert "north: " in caplog.text
    assert "newer version" in caplog.text


def test_a_node_goes_on_after_a_question_of_a_later_version(institutions: Make) -> None:
    there = institutions()
    there.start("north")
    (address,) = (m.address for m in there.service.home.registry.nodes() if m.name == "north")

    def answer(action: str, kind: str, body: bytes) -> tuple[str, bytes]:
        mailbox = there.service.home.mailbox
        message, end = mailbox.post("r", address, action, (kind, body, b"")), time.monotonic() + 30
        while (found := mailbox.first_answer([message])) is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        return found[0].kind, found[0].body

    kind, body = answer("query.later", "LaterQuery", b"")
    assert (kind, Refusal.from_bytes(body).code) == ("Refusal", "unknown-action")
    assert answer("query.head", "HeadQuery", HeadQuery("coordinator").to_bytes())[0] == "HeadHeld"


def test_the_exchange_passes_over_later_fields(institutions: Make) -> None:
    there = institutions()
    request = pb.ProgressRequest(message="0" * 32)
    request.MergeFromString(LATER)
    assert request.SerializeToString().endswith(LATER)
    credentials = MembershipFile(there.federation.homes.nodes["north"]).load().credentials
    with channel_of(there.service.ports.exchange, credentials) as channel:
        assert rpc.ExchangeStub(channel).Progress(request).offset == 0
