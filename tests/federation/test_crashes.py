"""A run that dies anywhere goes on to the same model, with every round recorded once.

Failures: the coordinator's and all nodes' processes end at a chosen call (or by SIGKILL), and
their keys in tmpfs stay, or are lost. Not failures here: lost disks. What may differ from the
undisturbed run: keys, masks, signatures, epochs; and, where keys were lost, one attempt.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import client.app
import client.epoch
from arion.run_federation import final_vector
from arion.run_status import status_of
from arion.run_words import status_line
from client.node import Node
from client.outbox import Outbox
from coordinator.attempt import AttemptRunner
from coordinator.driver import RunDriver
from coordinator.epochs import OPENINGS
from coordinator.member_heads import MemberHeads
from coordinator.records import RunRecords
from coordinator.store import RunStore
from coordinator.witnesses import Witnesses
from privacy.ledger.log import LedgerLog
from privacy.secagg.node import SecAggNode
from tests.dying import dying
from tests.small_federation import NAMES, SmallFederation, digest_of

ROUNDS = 3
# (owner, function, which call): in round 2 but for the named ones.
POINTS: dict[str, tuple[Any, str, int]] = {
    "plan of round 1 saved": (RunStore, "save", 1),
    "plan saved": (RunStore, "save", 5),
    "survivors saved": (RunStore, "save", 6),
    "applied saved": (RunStore, "save", 7),
    "recorded saved": (RunStore, "save", 8),
    "first state saved": (RunStore, "save_state", 1),
    "state saved": (RunStore, "save_state", 3),
    "round recorded": (RunRecords, "recorded", 2),
    "run opened": (RunRecords, "open", 1),
    "model released": (RunRecords, "released", 1),
    "heads collected": (Witnesses, "collect", 3),
    "uploads collected": (AttemptRunner, "collect", 2),
    "set certified": (AttemptRunner, "certify", 2),
    "sum opened": (AttemptRunner, "open", 2),
    "node's upload sealed": (Outbox, "seal", 6),
    "node's set signed": (SecAggNode, "sign_survivors", 6),
    "node's shares given": (SecAggNode, "unmask", 6),
    "node's head countersigned": (Node, "countersign", 10),
    "node's ledger recalled": (Node, "recall", 3),
    "member's head kept": (MemberHeads, "keep", 14),
}
points = pytest.mark.parametrize("point", POINTS)
before_and_after = pytest.mark.parametrize("when", ["before", "after"])


def crash(federation: SmallFederation, owner: Any, name: str, call: int, when: str) -> None:
    with dying(owner, name, call, when):
        federation.run()


def check(federation: SmallFederation, attempts: int = ROUNDS) -> None:
    """Every round recorded once, every member charged once per attempt, all ledgers hold."""
    recorded = federation.bodies("coordinator", "round-recorded")
    assert [body["round"] for body in recorded] == [1, 2, 3]
    assert len(federation.bodies("coordinator", "run-opened")) == 1
    assert len(federation.bodies("coordinator", "release")) == 1
    for name in NAMES:
        debits = federation.bodies(name, "release-debited")
        assert len(debits) <= attempts
        assert len({body["plan_digest"] for body in debits}) == len(debits)
        assert len(federation.bodies(name, "run-reserved")) == 1
    federation.verified()


def test_two_undisturbed_runs_are_one(
    make_federation: Callable[..., SmallFederation], undisturbed: str
) -> None:
    federation = make_federation()
    assert digest_of(federation.run()) == undisturbed
    assert digest_of(make_federation(seed=8).run()) != undisturbed
    assert digest_of(federation.run()) == undisturbed  # a finished run has nothing left to do
    check(federation)


@points
@before_and_after
def test_a_crash_anywhere(
    federation: SmallFederation, undisturbed: str, point: str, when: str
) -> None:
    crash(federation, *POINTS[point], when)
    assert digest_of(federation.run()) == undisturbed
    assert federation.bodies("coordinator", "round-aborted") == []
    check(federation)


@pytest.mark.parametrize("call", range(1, 6))
@before_and_after
def test_a_crash_at_any_line_of_the_coordinators_ledger(
    federation: SmallFederation,
    undisturbed: str,
    call: int,
    when: str,
) -> None:
    with dying(RunRecords, "_write", call, when):
        federation.run()
    assert digest_of(federation.run()) == undisturbed
    check(federation)


@pytest.mark.parametrize("call", [5, 10, 15, 17, 22])
@before_and_after
def test_a_crash_at_any_line_of_anyones_ledger(
    federation: SmallFederation, undisturbed: str, call: int, when: str
) -> None:
    crash(federation, LedgerLog, "append", call, when)
    assert digest_of(federation.run()) == undisturbed
    check(federation)


def test_a_crash_in_every_round_and_after_it(federation: SmallFederation, undisturbed: str) -> None:
    for point in ("uploads collected", "sum opened", "applied saved", "heads collected"):
        owner, name, _ = POINTS[point]
        crash(federation, owner, name, 1, "after")
    assert digest_of(federation.run()) == undisturbed
    check(federation)


def lose_keys(federation: SmallFederation, *names: str) -> None:
    """These machines were restarted: what lay in memory and tmpfs is gone."""
    client.app.close_nodes()
    for name in names:
        node = Node(federation.homes.nodes[name], "simulate")
        node._epochs.forget()
        node.close()


@pytest.mark.parametrize("lost", [("north",), NAMES], ids=["one", "all"])
@pytest.mark.parametrize(
    ("point", "charged"), [("plan saved", 3), ("uploads collected", 4), ("sum opened", 4)]
)
def test_lost_epoch_keys(
    federation: SmallFederation, point: str, charged: int, lost: tuple[str, ...]
) -> None:
    crash(federation, *POINTS[point], "after")
    lose_keys(federation, *lost)
    assert federation.run().step == ROUNDS
    (aborted,) = federation.bodies("coordinator", "round-aborted")
    assert (aborted["round"], aborted["attempt"], aborted["code"]) == (2, 1, "epoch-lost")
    attempts = [body["attempt"] for body in federation.bodies("coordinator", "round-recorded")]
    assert attempts == [1, 2, 1]
    for name in NAMES:
        assert len(federation.bodies(name, "release-debited")) == charged
    check(federation, attempts=4)


def test_a_schedule_that_is_used_up_ends_the_run_with_the_rounds_it_made(
    make_federation: Callable[..., SmallFederation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three releases for three rounds: one is lost, and the third round has none."""
    federation = make_federation({"releases": ROUNDS})
    crash(federation, *POINTS["uploads collected"], "after")
    lose_keys(federation, "north")
    assert federation.run().step == 2
    aborted = [body["code"] for body in federation.bodies("coordinator", "round-aborted")]
    assert aborted == ["epoch-lost", "below-n-min"]
    assert len(federation.bodies("coordinator", "release")) == 1
    for name in NAMES:
        assert len(federation.bodies(name, "release-debited")) == ROUNDS
        assert len(federation.bodies(name, "run-closed")) == 1
    federation.verified()
    monkeypatch.setattr(RunDriver, "_take_up", lambda _: pytest.fail("it goes on"))
    again = federation.run()  # it is over
    assert again.step == 2
    assert len(federation.bodies("coordinator", "release")) == 1
    status = status_of(federation.homes.coordinator)
    assert status.state == "finished"
    assert "finished   2/3 rounds  its schedule was used up" in status_line(status)
    assert torch.equal(final_vector(federation.homes.coordinator), again.average_D)


def test_keys_lost_between_rounds_cost_nothing(
    federation: SmallFederation, undisturbed: str
) -> None:
    crash(federation, *POINTS["recorded saved"], "after")
    lose_keys(federation, *NAMES)
    assert digest_of(federation.run()) == undisturbed
    check(federation)


@pytest.mark.parametrize("lost", ["keys", "process"])
def test_a_crash_while_an_attempt_is_aborted(federation: SmallFederation, lost: str) -> None:
    crash(federation, *POINTS["uploads collected"], "after")
    lose_keys(federation, "north")
    point = "aborted" if lost == "keys" else "_write"
    with dying(RunRecords, point):
        federation.run()
    assert federation.run().step == ROUNDS
    assert len(federation.bodies("coordinator", "round-aborted")) == 1
    check(federation, attempts=4)


def test_a_fixed_set_whose_member_does_not_come_back(federation: SmallFederation) -> None:
    crash(federation, *POINTS["set certified"], "before")
    away = iter([True])

    def drops(name: str, action: str) -> bool:
        return (name, action) == ("west", "train.upload") and next(away, False)

    assert federation.run(drops).step == ROUNDS
    (aborted,) = federation.bodies("coordinator", "round-aborted")
    assert (aborted["round"], aborted["code"]) == (2, "below-n-min")
    check(federation, attempts=4)


OPENING = ("roster", "reveals")
RESTARTS = (*OPENING, "recall", "countersign")


def restarts(federation: SmallFederation, at: str, *, times: int, keys: str) -> Callable[..., bool]:
    """All nodes' processes are others when such a message comes for north, the first few times.

    Their keys are in tmpfs, or those of north are lost.
    """
    left = iter(range(times))

    def restart(name: str, action: str) -> bool:
        if (name, action) == ("north", f"query.{at}") and next(left, None) is not None:
            client.app.close_nodes()
            if keys == "lost":
                lose_keys(federation, "north")
        return False

    return restart


@pytest.mark.parametrize("keys", ["kept", "lost"])
@pytest.mark.parametrize("at", RESTARTS)
def test_a_node_starts_again_while_an_epoch_is_opened(
    federation: SmallFederation, undisturbed: str, at: str, keys: str
) -> None:
    ended = federation.run(restarts(federation, at, times=1, keys=keys))
    assert ended.step == ROUNDS
    assert digest_of(ended) == undisturbed or at not in OPENING
    check(federation)


@pytest.mark.parametrize("keys", ["kept", "lost"])
@pytest.mark.parametrize("at", RESTARTS)
def test_a_node_starts_again_while_an_attempts_epoch_is_entered_again(
    federation: SmallFederation, undisturbed: str, at: str, keys: str
) -> None:
    crash(federation, *POINTS["uploads collected"], "after")
    ended = federation.run(restarts(federation, at, times=1, keys=keys))
    aborted = [body["code"] for body in federation.bodies("coordinator", "round-aborted")]
    if at in OPENING:
        assert aborted == (["epoch-lost"] if keys == "lost" else [])
        assert keys == "lost" or digest_of(ended) == undisturbed
    check(federation, attempts=4)


def test_a_node_that_starts_again_and_again_is_left_out(federation: SmallFederation) -> None:
    drops = restarts(federation, "reveals", times=OPENINGS, keys="kept")
    assert federation.run(drops).step == ROUNDS
    assert "north" not in federation.bodies("coordinator", "round-recorded")[0]["survivors"]
    federation.verified()


DRIVE = """
import sys
from pathlib import Path
import client.app, client.epoch, coordinator.app
from arion.local_grid import LocalGrid
from coordinator.app import GridChannel
from coordinator.driver import RunDriver
root, client.epoch._TMPFS = map(Path, sys.argv[1:])
nodes = {home.name: home for home in (root / "nodes").iterdir()}
RunDriver(root / "coordinator", GridChannel(LocalGrid(client.app.app, nodes))).run()
"""


def wait_for_round(ledger: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not ledger.exists() or ledger.read_bytes().count(b"round-recorded") < number:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.002)


def test_kill_minus_nine(make_federation: Callable[..., SmallFederation]) -> None:
    rounds = {"step": {"releases": 12}, "rounds": 12}
    undisturbed = digest_of(make_federation(**rounds).run())
    federation = make_federation(**rounds)
    root = federation.homes.root
    arguments = [str(root), str(client.epoch._TMPFS)]
    process = subprocess.Popen([sys.executable, "-c", DRIVE, *arguments])
    wait_for_round(federation.homes.coordinator / "ledger" / "entries.jsonl", 4, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert digest_of(federation.run()) == undisturbed
    recorded = federation.bodies("coordinator", "round-recorded")
    assert [(body["round"], body["attempt"]) for body in recorded] == [(n, 1) for n in range(1, 13)]
    for name in NAMES:
        assert len(federation.bodies(name, "release-debited")) == 12
    federation.verified()
