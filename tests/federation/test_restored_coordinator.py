"""A coordinator whose home was put back to an older copy: it stops itself, and nodes stop it.

The coordinator asks every member for the newest head that it signed and they hold; a node releases
nothing in an epoch before it was shown a head that extends the one it holds.
"""

import json
import shutil
from pathlib import Path

import pytest

from client.histories import FORK_FILE
from client.node import Node
from coordinator.errors import RestoredLedgerError, RunError
from coordinator.shared import RESTORED_FILE, SharedLedger
from coordinator.store import RunStore
from coordinator.witnesses import Witnesses
from privacy.identity import IdentityKey
from privacy.ledger.entries import ForkError
from privacy.ledger.head import TreeHead, sign_head
from privacy.ledger.log import LedgerLog
from privacy.rounds import PlanCode, PlanRefused
from privacy.secagg.header import RefusalCode, SecAggRefused
from protos.round_messages import HeadHeld, HeadOffer
from tests.dying import dying
from tests.small_federation import FEDERATION, NAMES, SmallFederation
from tests.small_hands import Hands

STOPPED = "restored-ledger: .* restored from an older copy.* Restore the newest backup"


def put_back(federation: SmallFederation) -> Path:
    """After two of three rounds, the home is that of the first; returns the newest copy of it."""
    home = federation.homes.coordinator
    older, newest = home.with_name("older"), home.with_name("newest")
    with dying(Witnesses, "collect", 2, "after"):
        federation.run()
    shutil.copytree(home, older)
    with dying(Witnesses, "collect", 2, "after"):
        federation.run()
    home.rename(newest)
    older.rename(home)
    return newest


def debits(federation: SmallFederation) -> list[int]:
    return [len(federation.bodies(name, "release-debited")) for name in NAMES]


def ledger_of(federation: SmallFederation) -> tuple[bytes, bytes]:
    folder = federation.homes.coordinator / "ledger"
    return (folder / "entries.jsonl").read_bytes(), (folder / "heads.jsonl").read_bytes()


def check_stopped(federation: SmallFederation) -> None:
    """Nothing is planned, signed or released, and no officer has anything to settle."""
    before, plans = ledger_of(federation), attempts(federation)
    with pytest.raises(RestoredLedgerError, match=STOPPED):
        federation.run()
    assert ledger_of(federation) == before
    assert attempts(federation) == plans
    assert debits(federation) == [2] * 4
    assert not any((home / FORK_FILE).exists() for home in federation.homes.nodes.values())


def attempts(federation: SmallFederation) -> int:
    store = RunStore(federation.homes.coordinator)
    found = len(store.attempts())
    store.close()
    return found


def test_an_older_home_plans_nothing(federation: SmallFederation) -> None:
    put_back(federation)
    check_stopped(federation)
    check_stopped(federation)


def test_an_older_ledger_that_went_on_by_itself_plans_nothing(federation: SmallFederation) -> None:
    """It is longer than the head that members hold, and forks from it."""
    put_back(federation)
    with LedgerLog(federation.homes.coordinator / "ledger", "coordinator") as log:
        for name in "abc":
            body = {"run": name, "federation": FEDERATION, "cohort": [], "model_digest": "0" * 64}
            log.append("run-opened", body)
    check_stopped(federation)


def test_the_newest_copy_goes_on(federation: SmallFederation) -> None:
    newest, home = put_back(federation), federation.homes.coordinator
    check_stopped(federation)
    shutil.rmtree(home)
    newest.rename(home)
    federation.run()
    assert debits(federation) == [3] * 4
    federation.verified()


def test_what_one_run_found_stops_the_next(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head stays in the home; no member has to bring it again. A whole ledger clears it."""
    newest, home = put_back(federation), federation.homes.coordinator
    check_stopped(federation)
    with monkeypatch.context() as patch:
        patch.setattr(Node, "held_head", lambda self: None)
        check_stopped(federation)
    shutil.rmtree(home / "ledger")
    shutil.copytree(newest / "ledger", home / "ledger")
    shared = SharedLedger(home)
    with shared.turn():
        shared.verify_not_restored(IdentityKey.load(home / "identity.key").public_key)
    shared.close()
    assert not (home / RESTORED_FILE).exists()


def test_only_a_head_that_we_signed_stops_a_run(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that claims more than there is has no say: its head is another key's."""
    head = TreeHead(ledger="coordinator", size=99, root="0" * 64, time="2030-01-01T00:00:00Z")
    forged = sign_head(IdentityKey.generate(), head)
    with monkeypatch.context() as patch:
        patch.setattr(Node, "held_head", lambda self: forged if self.name == "north" else None)
        with pytest.raises(RunError, match=r"to countersign .* got refusals of north"):
            federation.run()
    assert not (federation.homes.coordinator / RESTORED_FILE).exists()
    federation.run()
    federation.verified()


def test_a_node_refuses_plans_of_a_coordinator_that_does_not_stop(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It offers its older head all the same: the node marks the fork, and says which code."""
    put_back(federation)
    monkeypatch.setattr(SharedLedger, "hold_against", lambda self, key, signed: 0)
    with pytest.raises(RunError, match="got refusals of east, north, south, west"):
        federation.run()
    assert all((home / FORK_FILE).exists() for home in federation.homes.nodes.values())
    monkeypatch.setattr(Witnesses, "show_all", lambda *ignored: None)
    with pytest.raises(RunError):
        federation.run()
    assert debits(federation) == [2] * 4
    for name in NAMES:
        codes = [body["code"] for body in federation.bodies(name, "refusal")]
        assert set(codes) == {PlanCode.FORKED_LEDGER}


def test_a_node_releases_nothing_in_an_epoch_before_it_was_shown_a_head(hands: Hands) -> None:
    """Whether it was started since or not: a coordinator restored under a running node stops."""
    node = hands.nodes["north"]
    hands.release("north", hands.plan(1))
    node.accept_reveals(hands.reveals)
    with pytest.raises(SecAggRefused, match="coordinator's ledger to be shown") as caught:
        hands.release("north", hands.plan(2))
    assert caught.value.code is RefusalCode.OTHER_ROSTER
    assert len(hands.federation.bodies("north", "release-debited")) == 1
    node.countersign(hands.shown)
    hands.release("north", hands.plan(2))
    assert len(hands.federation.bodies("north", "release-debited")) == 2


def test_an_older_head_shown_to_a_node_is_refused_by_code(hands: Hands) -> None:
    node = hands.nodes["north"]
    with LedgerLog(hands.federation.homes.coordinator / "ledger", "coordinator") as log:
        body = json.loads(log.entries[0].payload())["body"] | {"run": "next"}
        log.append("run-opened", body)
        newer = HeadOffer(log.sign_head(hands.key), tuple(log.consistency_proof(1)))
    node.countersign(newer)
    assert HeadHeld.from_bytes(HeadHeld(node.held_head()).to_bytes()).head == newer.head
    node.accept_reveals(hands.reveals)
    with pytest.raises(ForkError, match="it was rolled back"):
        node.countersign(hands.shown)
    with pytest.raises(PlanRefused) as caught:
        hands.release("north", hands.plan())
    assert caught.value.code is PlanCode.FORKED_LEDGER
