"""The in-process grid: Flower's contract, drop-outs, and what comes back of a refusal."""

import inspect
import time
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

import client.app
from arion.local_grid import LocalGrid
from coordinator.app import GridChannel
from protos.epoch_messages import KeyBundleMessage, RevealsMessage, RosterMessage
from protos.flower import reply_from, to_records
from protos.messages import Refusal, SurvivorsRequest, Upload
from protos.round_messages import (
    Done,
    EpochRequest,
    HeadCountersigned,
    HeadHeld,
    HeadOffer,
    HeadQuery,
    RunClose,
    UploadRequest,
)
from protos.signed import Signed
from protos.wire import Parcel, WireMessage
from tests.small_federation import FEDERATION, NAMES, SmallFederation

FORGED = Signed(b"{}", bytes(64))


@pytest.fixture
def grid(federation: SmallFederation) -> LocalGrid:
    return federation.grid(lambda name, action: (name, action) == ("north", "query.head"))


def ask(grid: LocalGrid, action: str, parcel: Parcel, node: int = 2) -> Message:
    (reply,) = grid.send_and_receive([grid.create_message(to_records(parcel), action, node, "")])
    return reply


def test_it_is_a_flower_grid(grid: LocalGrid) -> None:
    assert isinstance(grid, Grid)
    for name in Grid.__abstractmethods__ - {"run"}:
        theirs = inspect.signature(getattr(Grid, name)).parameters
        assert list(inspect.signature(getattr(LocalGrid, name)).parameters) == list(theirs)
    assert sorted(grid.get_node_ids()) == [2, 3, 4, 5]


def test_messages_are_answered_once_and_in_order(grid: LocalGrid) -> None:
    content = to_records(Parcel(EpochRequest(FEDERATION, 1)))
    ids = grid.push_messages(grid.create_message(content, "query.keys", n, "") for n in (3, 2))
    answered = [list(grid.pull_messages(ids)) for _ in range(3)]
    assert [len(replies) for replies in answered] == [1, 1, 0]
    assert [r[0].metadata.reply_to_message_id for r in answered[:2]] == list(ids)
    assert [r[0].metadata.src_node_id for r in answered[:2]] == [3, 2]
    assert list(grid.pull_messages(["unknown"])) == []


def test_what_a_member_dropped_is_an_error(grid: LocalGrid) -> None:
    query = Parcel(HeadQuery("coordinator"))
    assert ask(grid, "query.head", query, 3).has_error()
    assert reply_from(ask(grid, "query.head", query, 2).content, HeadHeld).message == HeadHeld(None)
    found = GridChannel(grid).exchange(
        "query.head", dict.fromkeys((2, 3, 4, 5), query), HeadHeld, 5
    )
    assert [address for address, _ in found] == [2, 4, 5]


@pytest.mark.parametrize(
    ("action", "message", "code"),
    [
        ("query.keys", EpochRequest("another", 1), "wrong-federation"),
        ("query.roster", RosterMessage((FORGED,)), "keys-lost"),
        ("query.reveals", RevealsMessage((FORGED,)), "keys-lost"),
        ("train.upload", UploadRequest(FORGED, b"{}"), "other-roster"),
        ("query.survivors", SurvivorsRequest(bytes(32), (FORGED,)), "other-plan"),
        ("query.countersign", HeadOffer(FORGED, ()), "bad-ledger"),
        ("query.close", RunClose("another", "r"), "wrong-federation"),
        ("query.keys", HeadQuery("coordinator"), "bad-message"),
        ("train.upload", EpochRequest(FEDERATION, 1), "bad-message"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, WireMessage) else value,
)
def test_refusals_come_back_as_messages(
    grid: LocalGrid, action: str, message: WireMessage, code: str
) -> None:
    reply = reply_from(ask(grid, action, Parcel(message)).content, Done).message
    assert isinstance(reply, Refusal)
    assert (reply.code, "Expected" in reply.detail) == (code, True)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"arion": ConfigRecord({"kind": "EpochRequest"})}),
        RecordDict({"arion": ConfigRecord({"kind": "EpochRequest", "body": "x", "payload": b""})}),
        RecordDict(
            {"arion": ConfigRecord({"kind": "EpochRequest", "body": b"\xff", "payload": b""})}
        ),
        RecordDict({"arion": ConfigRecord({"kind": "Done", "body": b"", "payload": b""})}),
    ],
    ids=["nothing", "no body", "text", "garbage", "another kind"],
)
def test_malformed_messages(grid: LocalGrid, content: RecordDict) -> None:
    (reply,) = grid.send_and_receive([grid.create_message(content, "query.keys", 2, "")])
    refusal = reply_from(reply.content, KeyBundleMessage).message
    assert isinstance(refusal, Refusal)
    assert refusal.code == "bad-message"


def test_a_node_that_started_again_needs_an_epoch(grid: LocalGrid) -> None:
    ask(grid, "query.keys", Parcel(EpochRequest(FEDERATION, 1)))
    client.app.close_nodes()
    reply = ask(grid, "train.upload", Parcel(UploadRequest(FORGED, b"{}")))
    refusal = reply_from(reply.content, Upload).message
    assert isinstance(refusal, Refusal)
    assert refusal.code == "other-roster"


def test_the_channel_leaves_out_what_is_no_reply(grid: LocalGrid) -> None:
    channel = GridChannel(grid)
    request = {2: Parcel(EpochRequest(FEDERATION, 1))}
    assert list(channel.exchange("query.keys", request, HeadCountersigned, 5)) == []
    ((address, parcel),) = channel.exchange("query.keys", request, KeyBundleMessage, 5)
    assert address == 2
    assert isinstance(parcel.message, KeyBundleMessage)
    sent = len(request[2].message.to_bytes())
    assert channel.traffic.sent_bytes == 2 * sent
    assert channel.traffic.received_bytes == len(parcel.message.to_bytes())


def test_waiting_for_nodes_ends_at_the_deadline(grid: LocalGrid) -> None:
    channel = GridChannel(grid)
    assert len(channel.addresses(4, 1.0)) == len(NAMES)
    started = time.monotonic()
    assert len(channel.addresses(5, 0.1)) == len(NAMES)
    assert time.monotonic() - started < 5


class Silent(LocalGrid):
    """A carrier that never says anything of the messages it took."""

    def pull_messages(self, message_ids: Any) -> list[Message]:
        return []


def test_who_is_late_is_left_out(federation: SmallFederation) -> None:
    channel = GridChannel(Silent(client.app.app, federation.homes.nodes))
    request = {2: Parcel(EpochRequest(FEDERATION, 1))}
    assert list(channel.exchange("query.keys", request, KeyBundleMessage, 0.1)) == []
