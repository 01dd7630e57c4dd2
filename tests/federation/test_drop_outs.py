"""Attempts that fail: aborted with a code, tried again, charged; and when a run gives up."""

import itertools
import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import client.app
from arion.toml_file import write_toml
from client.config import CONSENT_FILE
from client.node import Node
from coordinator.errors import RunError
from coordinator.outcome import RoundOutcome, observing
from privacy.secagg.coordinator import StreamingSum
from protos.messages import UnmaskReply, UnmaskRequest, Upload
from protos.wire import Parcel, WireMessage
from tests.small_federation import NAMES, SmallFederation


class Away:
    """Members that do not answer an action in its first `times` attempts."""

    def __init__(self, action: str, names: tuple[str, ...], times: int) -> None:
        self._action, self._names, self._times = action, names, times
        self._asked = dict.fromkeys(names, 0)

    def __call__(self, name: str, action: str) -> bool:
        if action != self._action or name not in self._names:
            return False
        self._asked[name] += 1
        return self._asked[name] <= self._times


ABORTS = [
    ("train.upload", ("north", "west"), "below-n-min"),
    ("query.survivors", ("north", "west"), "no-quorum"),
    ("query.unmask", ("north", "west"), "no-quorum"),
]
aborts = pytest.mark.parametrize(("action", "names", "code"), ABORTS)


def refuse(federation: SmallFederation, *names: str) -> None:
    """These members' officers sign off a consent that the run does not fit."""
    for name in names:
        path = federation.homes.nodes[name] / CONSENT_FILE
        write_toml(path, tomllib.loads(path.read_text()) | {"smallest_cohort": 4})


@aborts
def test_an_aborted_attempt_is_tried_again_and_charged(
    federation: SmallFederation, action: str, names: tuple[str, ...], code: str
) -> None:
    outcomes: list[RoundOutcome] = []
    with observing(lambda outcome, state: outcomes.append(outcome)):
        state = federation.run(Away(action, names, 1))
    assert state.step == 3
    assert [(o.round, o.attempt, o.code) for o in outcomes] == [
        (1, 1, code), (1, 2, ""), (2, 1, ""), (3, 1, "")
    ]  # fmt: skip
    (aborted,) = federation.bodies("coordinator", "round-aborted")
    assert (aborted["round"], aborted["attempt"], aborted["code"]) == (1, 1, code)
    for name in NAMES:
        uploaded = action != "train.upload" or name not in names
        assert len(federation.bodies(name, "release-debited")) == 3 + uploaded
    federation.verified()


@aborts
def test_a_round_that_fails_three_times_ends_the_run(
    federation: SmallFederation, action: str, names: tuple[str, ...], code: str
) -> None:
    for _ in range(2):  # resuming burns no further attempts
        with pytest.raises(RunError, match="round 1 to succeed within 3 attempts"):
            federation.run(Away(action, names, 9))
    codes = [body["code"] for body in federation.bodies("coordinator", "round-aborted")]
    assert codes == [code] * 3
    assert len(federation.bodies("east", "release-debited")) == 3
    federation.verified()


@pytest.mark.parametrize("action", ["train.upload", "query.survivors", "query.unmask"])
def test_a_run_goes_on_without_one_member(federation: SmallFederation, action: str) -> None:
    state = federation.run(lambda name, asked: (name, asked) == ("south", action))
    assert state.step == 3
    rounds = federation.bodies("coordinator", "round-recorded")
    assert all(("south" in body["survivors"]) == (action != "train.upload") for body in rounds)
    assert len(rounds) == 3
    federation.verified()


@pytest.mark.parametrize("cut", [1, 2])
def test_words_that_are_cut_short_are_left_out(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    def parcel(message: WireMessage, payload: bytes = b"") -> Parcel:
        foul = isinstance(message, Upload) and message.node == "south"
        return Parcel(message, payload[:-cut] if foul else payload)

    monkeypatch.setattr(client.app, "Parcel", parcel)
    outcomes: list[RoundOutcome] = []
    with observing(lambda outcome, state: outcomes.append(outcome)):
        assert federation.run().step == 3
    assert [outcome.refusals["south"][0] for outcome in outcomes] == ["bad-upload"] * 3
    assert all(outcome.survivors == ("east", "north", "west") for outcome in outcomes)
    federation.verified()


def test_refusals_that_leave_too_few_stop_the_run(federation: SmallFederation) -> None:
    refuse(federation, "north", "west")
    with pytest.raises(RunError, match=r"got refusals of 2 of 4: north: .*; west: ") as caught:
        federation.run()
    assert "smallest_cohort" in str(caught.value)
    (aborted,) = federation.bodies("coordinator", "round-aborted")
    assert (aborted["attempt"], aborted["code"]) == (1, "below-n-min")
    assert federation.bodies("north", "refusal")[0]["clause"] == "smallest_cohort"
    assert federation.bodies("north", "run-reserved") == []
    federation.verified()


def test_one_refusal_leaves_enough(federation: SmallFederation) -> None:
    refuse(federation, "north")
    outcomes: list[RoundOutcome] = []
    with observing(lambda outcome, state: outcomes.append(outcome)):
        federation.run()
    assert [o.refusals["north"][0] for o in outcomes] == ["cohort-too-small"] * 3
    assert len(federation.bodies("north", "refusal")) == 3
    federation.verified()


def test_a_schedule_without_room_for_another_attempt(
    make_federation: Callable[..., SmallFederation], caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends with the rounds that it made."""
    federation = make_federation({"releases": 3})
    assert federation.run(Away("query.unmask", ("north", "west"), 1)).step == 2
    assert "the run ends after 2 of 3 rounds" in caplog.text
    assert "schedule is used up" in caplog.text
    assert all(len(federation.bodies(name, "release-debited")) == 3 for name in NAMES)
    assert len(federation.bodies("coordinator", "round-recorded")) == 2
    federation.verified()


def test_countersignatures_are_collected_and_none_is_waited_for(
    federation: SmallFederation,
) -> None:
    asked = itertools.count()

    def away(name: str, action: str) -> Any:
        """West countersigns as the epoch is entered, and is not there afterwards."""
        if name != "west" or action not in ("query.countersign", "query.close"):
            return False
        return action == "query.close" or next(asked) > 0

    federation.run(away)
    assert federation.verified()["coordinator"].countersignatures == 4 + 4 * 3
    assert federation.bodies("west", "run-closed") == []
    assert federation.bodies("east", "run-closed") == [{"run": "small"}]


@pytest.mark.parametrize("names", [("north",), ("north", "west"), NAMES], ids=len)
def test_nodes_that_start_again_are_back_in_the_next_attempt(
    federation: SmallFederation, names: tuple[str, ...]
) -> None:
    outcomes: list[RoundOutcome] = []

    def restart(outcome: RoundOutcome, _: object) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 1:
            for name in names:
                client.app._NODES.pop(federation.homes.nodes[name].resolve()).close()

    with observing(restart):
        assert federation.run().step == 3
    found = [(o.round, o.attempt, len(o.survivors)) for o in outcomes]
    if len(names) == 1:
        assert found == [(1, 1, 4), (2, 1, 3), (3, 1, 4)]
    else:
        assert found == [(1, 1, 4), (2, 1, 0), (2, 2, 4), (3, 1, 4)]
    federation.verified()


def test_a_member_that_answers_in_anothers_name_counts_for_nobody(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """west gives its own shares as north's: were they taken, none of north's would be left."""
    unmask = Node.unmask

    def foul(self: Node, request: UnmaskRequest) -> UnmaskReply:
        reply = unmask(self, request)
        return replace(reply, node="north") if self.name == "west" else reply

    monkeypatch.setattr(Node, "unmask", foul)
    outcomes: list[RoundOutcome] = []
    with observing(lambda outcome, state: outcomes.append(outcome)):
        assert federation.run().step == 3
    assert [outcome.code for outcome in outcomes] == ["", "", ""]


def test_masks_come_off_with_all_threads(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    open_sum = StreamingSum.open_sum

    def spy(self: StreamingSum, replies: Any, *, threads: int = 1) -> Any:
        asked.append(threads)
        return open_sum(self, replies, threads=threads)

    monkeypatch.setattr(StreamingSum, "open_sum", spy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    federation.run()
    assert asked == [3, 3, 3]
