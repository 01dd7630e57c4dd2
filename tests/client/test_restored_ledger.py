"""A node whose disk was put back to an older state: it notices, spends nothing, and says so.

The coordinator keeps the newest head of each member's ledger and shows it after every start. What
is not noticed, and documented: a coordinator that shows an older head than it holds, and what was
debited after the last head that it was given.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.histories import RESTORED_FILE
from client.node import Node
from coordinator.driver import MEMBERS_FOLDER
from coordinator.errors import RunError
from coordinator.member_heads import MemberHeads
from coordinator.witnesses import Witnesses
from privacy.identity import IdentityKey, SignatureError, Signed
from privacy.ledger.entries import LedgerError, RestoredError
from privacy.ledger.head import TreeHead, sign_head
from privacy.ledger.pins import PINS_FILE, load_pins
from privacy.ledger.verify import verify_tree
from privacy.rounds import PlanCode, PlanRefused
from privacy.secagg.header import RefusalCode, SecAggRefused
from tests.dying import dying
from tests.small_federation import FEDERATION, NAMES, SmallFederation
from tests.small_hands import Hands


def home_of(hands: Hands) -> Path:
    return hands.federation.homes.nodes["north"]


@contextmanager
def rolled_back(home: Path, hands: Hands | None = None) -> Iterator[None]:
    """What happens within the block is lost from the node's disk after it."""
    copy = home.with_name(f"{home.name}-copy")
    shutil.copytree(home, copy)
    yield
    if hands is not None:
        hands.nodes[home.name].close()
    shutil.rmtree(home)
    copy.rename(home)


def start(hands: Hands) -> Node:
    """North's process starts and enters the epoch; nobody has shown it its head yet."""
    hands.nodes["north"].close()
    hands.nodes["north"] = node = Node(home_of(hands), "simulate")
    node.publish_keys(FEDERATION, 1)
    node.accept_roster(hands.bundles)
    node.accept_reveals(hands.reveals)
    node.countersign(hands.shown)
    return node


def entries(hands: Hands) -> bytes:
    return (home_of(hands) / "ledger" / "entries.jsonl").read_bytes()


def keep_head(hands: Hands) -> None:
    """What the coordinator is given after an attempt."""
    hands.heads["north"] = hands.nodes["north"]._histories.own_head()


def check_stopped(hands: Hands) -> None:
    """The node is asked to go on, refuses, and writes nothing to its older ledger."""
    node, before = start(hands), entries(hands)
    with pytest.raises(RestoredError, match="restored from an older copy"):
        node.recall(hands.heads["north"])
    with pytest.raises(SecAggRefused):
        hands.release("north", hands.plan(3))
    node = start(hands)
    with pytest.raises(RestoredError):
        node.recall(hands.heads["north"])
    assert entries(hands) == before
    assert "Put the newest copy" in (home_of(hands) / RESTORED_FILE).read_text()


@pytest.mark.parametrize("rounds_kept", [0, 1, 2])
def test_a_restored_older_ledger_is_refused(hands: Hands, rounds_kept: int) -> None:
    for number in range(1, rounds_kept + 1):
        hands.release("north", hands.plan(number))
    with rolled_back(home_of(hands), hands):
        hands.release("north", hands.plan(rounds_kept + 1))
        keep_head(hands)
    check_stopped(hands)


def test_a_restored_ledger_that_went_on_by_itself_is_refused(hands: Hands) -> None:
    """It holds as many entries as were signed, and other ones."""
    with rolled_back(home_of(hands), hands):
        hands.release("north", hands.plan())
        keep_head(hands)
    node = start(hands)
    for number in range(3):
        refusal = PlanRefused(PlanCode.EXPIRED, "expires", "Expected a valid consent.")
        node._books.refuse(refusal, bytes([number]) * 32)
    check_stopped(hands)


def test_nothing_leaves_while_the_file_lies_there(hands: Hands) -> None:
    hands.reopen("north")
    (home_of(hands) / RESTORED_FILE).write_text("older copy\n")
    before = entries(hands)
    with pytest.raises(PlanRefused, match="see RESTORED in this node's home") as caught:
        hands.release("north", hands.plan())
    assert caught.value.code is PlanCode.RESTORED_LEDGER
    assert entries(hands) == before
    assert hands.outbox("north") == []


def test_the_newest_copy_put_back_goes_on(hands: Hands) -> None:
    newest = home_of(hands).with_name("newest")
    with rolled_back(home_of(hands), hands):
        hands.release("north", hands.plan())
        keep_head(hands)
        hands.nodes["north"].close()
        shutil.copytree(home_of(hands), newest)
    check_stopped(hands)
    hands.nodes["north"].close()
    shutil.rmtree(home_of(hands))
    newest.rename(home_of(hands))
    hands.reopen("north")
    hands.release("north", hands.plan(2))
    assert len(hands.federation.bodies("north", "release-debited")) == 2


def test_nothing_leaves_before_the_head_was_shown(hands: Hands) -> None:
    start(hands)
    with pytest.raises(SecAggRefused, match="to be shown first") as caught:
        hands.release("north", hands.plan())
    assert caught.value.code is RefusalCode.OTHER_ROSTER


def test_only_a_node_that_never_released_may_be_shown_nothing(hands: Hands) -> None:
    start(hands).recall(None)
    hands.release("north", hands.plan())
    with pytest.raises(RestoredError, match="got none, and this node has released"):
        start(hands).recall(None)


def test_a_head_that_is_not_this_nodes_decides_nothing(hands: Hands) -> None:
    home, node = home_of(hands), start(hands)
    own = IdentityKey.load(home / "identity.key")
    head = TreeHead(ledger="north", size=99, root="0" * 64, time="2030-01-01T00:00:00Z")
    with pytest.raises(SignatureError):
        node.recall(sign_head(IdentityKey.generate(), head))
    with pytest.raises(LedgerError, match="got one of 'south'"):
        node.recall(sign_head(own, head.model_copy(update={"ledger": "south"})))
    with pytest.raises(SignatureError):
        node.recall(own.sign("ledger-countersign", head.payload()))
    assert not (home / RESTORED_FILE).exists()
    node.recall(hands.heads["north"])
    hands.release("north", hands.plan())


def two_rounds_and_back(federation: SmallFederation) -> None:
    """North's disk is put back to the state between rounds 1 and 2, after round 2."""
    with dying(Witnesses, "collect", 2):
        federation.run()
    with (
        rolled_back(federation.homes.nodes["north"]),
        dying(Witnesses, "collect", 2, "after"),
    ):
        federation.run()


def test_a_federation_stops_at_a_restored_member(federation: SmallFederation) -> None:
    two_rounds_and_back(federation)
    for _ in range(2):
        with pytest.raises(RunError, match=r"north refuses to go on .* from an older copy"):
            federation.run()
    assert len(federation.bodies("north", "release-debited")) == 1


def test_a_kept_head_exposes_a_restored_member_offline(federation: SmallFederation) -> None:
    two_rounds_and_back(federation)
    reports = verify_tree(federation.homes.root, load_pins(federation.homes.root / PINS_FILE))
    (report,) = [report for report in reports if report.name == "north"]
    assert any("members/north.witness.json" in failure for failure in report.failures)


def test_the_longest_head_of_a_member_is_kept(federation: SmallFederation, tmp_path: Path) -> None:
    key = IdentityKey.generate()
    heads = MemberHeads(tmp_path / "m", {"north": key.public_key.hex()})

    def head(size: int, ledger: str = "north") -> Signed:
        root = f"{size:064x}"
        return sign_head(
            key, TreeHead(ledger=ledger, size=size, root=root, time="2030-01-01T00:00:00Z")
        )

    assert heads.newest("north") is None
    for size in (2, 5, 3):
        heads.keep("north", head(size))
    assert heads.newest("north") == head(5)
    with pytest.raises(LedgerError, match="got one of 'south'"):
        heads.keep("north", head(9, "south"))
    with pytest.raises(SignatureError):
        heads.keep("north", IdentityKey.generate().sign("ledger-head", head(9).payload))
    assert MemberHeads(tmp_path / "m", {"north": key.public_key.hex()}).newest("north") == head(5)


def test_an_attempt_that_was_aborted_is_kept_too(federation: SmallFederation) -> None:
    away = iter([True])

    def drops(name: str, action: str) -> bool:
        return action == "query.unmask" and name in ("west", "south") and next(away, False)

    federation.run(drops)
    for name in NAMES:
        folder = federation.homes.coordinator / MEMBERS_FOLDER
        newest = MemberHeads(folder, federation.settings.members).newest(name)
        assert newest is not None
