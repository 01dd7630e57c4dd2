"""Rosters, epochs and ledger heads that play foul: the node refuses, and stops on a fork."""

from dataclasses import replace
from pathlib import Path

import pytest

from client.epoch import HELD_EPOCHS
from client.histories import FORK_FILE
from client.node import IDENTITY_FILE, Node
from privacy.identity import IdentityKey, SignatureError, Signed
from privacy.ledger.entries import ForkError
from privacy.ledger.log import LedgerLog
from privacy.rounds import PlanCode, PlanRefused
from privacy.secagg.header import RefusalCode, SecAggRefused
from privacy.secagg.keys import EpochKeys, KeysLostError, RosterError
from privacy.secagg.roster import accept_roster
from protos.messages import SurvivorsRequest
from protos.round_messages import HeadOffer, UploadRequest
from tests.client.refusals import ask, refused, rewrite_consent
from tests.small_federation import FEDERATION, NAMES, SmallFederation
from tests.small_hands import Hands


def sybil_bundles(hands: Hands, case: str) -> list[Signed]:
    """Bundles of epoch 1 with one that is not a pinned member's."""
    bundles, stranger = list(hands.bundles), IdentityKey.generate()
    fake = EpochKeys.generate()
    if case == "extra":
        return [*bundles, fake.bundle(FEDERATION, 1, "mallory", stranger)]
    if case == "swapped":
        return [fake.bundle(FEDERATION, 1, "east", stranger), *bundles[1:]]
    if case == "twice":
        return [*bundles, bundles[0]]
    if case == "too few":
        return bundles[:2]
    return [hands.bundles[0], fake.bundle(FEDERATION, 1, "north", stranger), *bundles[2:]]


@pytest.mark.parametrize("case", ["extra", "swapped", "twice", "too few", "our own"])
def test_sybils_in_the_roster(hands: Hands, case: str) -> None:
    node = hands.nodes["north"]
    with pytest.raises(RosterError):
        node.accept_roster(sybil_bundles(hands, case))
    plan = hands.plan(roster_digest="0" * 64)
    refused(hands, PlanCode.WRONG_ROSTER, lambda: ask(hands, hands.request(plan)))


def test_a_roster_without_who_is_away(hands: Hands) -> None:
    """Three of four are accepted, once: the nonce is shown for that roster and no other."""
    nodes, epoch = hands.nodes, 2
    bundles = [node.publish_keys(FEDERATION, epoch) for node in nodes.values()]
    with pytest.raises(RosterError, match="at least 3 of the 4 pinned"):
        nodes["east"].accept_roster(bundles[:2])
    nodes["east"].accept_roster(bundles[:3])
    with pytest.raises(RosterError, match="revealed its nonce for"):
        nodes["east"].accept_roster(bundles)
    with pytest.raises(RosterError, match="own bundle"):
        nodes["west"].accept_roster(bundles[:3])


@pytest.mark.parametrize(("away", "is_enough"), [(2, True), (3, False)])
def test_how_many_may_be_away(hands: Hands, away: int, is_enough: bool) -> None:
    """No fewer than a quorum of all who are pinned."""
    members = dict(hands.nodes["north"].consent.members)
    strangers = {f"away-{n}": IdentityKey.generate().public_key.hex() for n in range(away)}
    clauses = {"members": {**members, **strangers}}
    if is_enough:
        rewrite_consent(hands, **clauses)
        assert hands.nodes["north"].consent.smallest_roster == len(NAMES)
    else:
        with pytest.raises(RosterError, match="at least 5 of the 7 pinned members, got 4"):
            rewrite_consent(hands, **clauses)


def with_another_nonce(hands: Hands) -> list[Signed]:
    """Bundles of epoch 1, east's of them made after all nonces were shown."""
    home = hands.federation.homes.nodes["east"]
    chosen = EpochKeys.generate().bundle(
        FEDERATION, 1, "east", IdentityKey.load(home / IDENTITY_FILE)
    )
    return [chosen, *hands.bundles[1:]]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_roster_made_after_the_nonces_were_shown(hands: Hands, restarted: bool) -> None:
    """Who has seen our nonce would choose its own, and with it the graph: it is not shown twice."""
    if restarted:
        hands.reopen("north")
    node = hands.nodes["north"]
    with pytest.raises(RosterError, match="revealed its nonce for"):
        node.accept_roster(with_another_nonce(hands))
    assert node.accept_roster(hands.bundles) == hands.reveals[1]
    node.accept_reveals(hands.reveals)
    node.countersign(hands.shown)
    hands.release("north", hands.plan())


def test_nonces_that_are_never_passed_on_count(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that collects nonces, dislikes their graph and says nothing has had a trial."""
    monkeypatch.setattr("privacy.secagg.store.LARGEST_EPOCHS", 3)
    for number in (2, 3, 4):
        bundles = [node.publish_keys(FEDERATION, number) for node in hands.nodes.values()]
        if number < 4:
            for node in hands.nodes.values():
                node.accept_roster(bundles)
    with pytest.raises(RosterError, match="at most 3 epochs"):
        hands.nodes["north"].accept_roster(bundles)


def test_a_member_that_another_institutions_consent_pins_otherwise(hands: Hands) -> None:
    members = dict(hands.nodes["north"].consent.members)
    members["east"] = IdentityKey.generate().public_key.hex()
    with pytest.raises(RosterError, match="'east'"):
        rewrite_consent(hands, members=members)


def test_a_second_survivor_set_under_one_plan(hands: Hands) -> None:
    plan = hands.plan()
    total = hands.collect(plan)
    headers = total.close().headers
    node = hands.nodes["north"]
    node.sign_survivors(SurvivorsRequest(plan.digest(), headers))
    for other in (headers[:3], headers[1:]):
        with pytest.raises(SecAggRefused) as caught:
            node.sign_survivors(SurvivorsRequest(plan.digest(), other))
        assert caught.value.code is RefusalCode.SECOND_SET
    hands.reopen("north")
    hands.release("north", plan)
    with pytest.raises(SecAggRefused, match="a member signs one"):
        hands.nodes["north"].sign_survivors(SurvivorsRequest(plan.digest(), headers[:3]))


def test_unmasking_without_a_quorum_or_another_plan(hands: Hands) -> None:
    plan = hands.plan()
    total = hands.collect(plan)
    request = total.close()
    signatures = [hands.nodes[name].sign_survivors(request) for name in NAMES]
    total.certify(signatures)
    node = hands.nodes["north"]
    asked = total.unmask_request("north")
    for code, foul in (
        (RefusalCode.NO_QUORUM, replace(asked, certificate=asked.certificate[:2])),
        (RefusalCode.OTHER_PLAN, replace(asked, plan_digest=hands.plan(2).digest())),
        (RefusalCode.NOT_SIGNED, replace(asked, headers=asked.headers[:3])),
    ):
        with pytest.raises(SecAggRefused) as caught:
            node.unmask(foul)
        assert caught.value.code is code


def test_messages_before_an_epoch(federation: SmallFederation) -> None:
    node = Node(federation.homes.nodes["north"], "simulate")
    request = UploadRequest(Signed(b"{}", bytes(64)), b"{}")
    try:
        with pytest.raises(SecAggRefused, match="a roster of this epoch first"):
            node.release(request, memoryview(b""))
        with pytest.raises(RosterError, match="a request for keys first"):
            node.accept_roster([])
        with pytest.raises(RosterError, match="a roster first"):
            node.accept_reveals([])
        with pytest.raises(PlanRefused, match="Expected federation"):
            node.publish_keys("another", 1)
    finally:
        node.close()


def test_an_epoch_that_was_left(hands: Hands) -> None:
    """The ninth epoch at once ends the first one."""
    node = hands.nodes["north"]
    for number in range(2, 2 + HELD_EPOCHS):
        node.publish_keys(FEDERATION, number)
    with pytest.raises(RosterError, match="Expected an epoch after 9, got 1"):
        node.publish_keys(FEDERATION, 1)


def test_numbers_may_come_in_another_order(hands: Hands) -> None:
    node = hands.nodes["north"]
    later = node.publish_keys(FEDERATION, 3)
    assert node.publish_keys(FEDERATION, 2) != later == node.publish_keys(FEDERATION, 3)


def enter(hands: Hands, number: int) -> list[Signed]:
    """Everyone enters another epoch; returns its bundles."""
    nodes = hands.nodes.values()
    bundles = [each.publish_keys(FEDERATION, number) for each in nodes]
    reveals = [each.accept_roster(bundles) for each in nodes]
    for each in nodes:
        each.accept_reveals(reveals)
        each.countersign(hands.shown)
    return bundles


def test_an_older_roster(hands: Hands) -> None:
    """Neither its bundles, nor its nonces, nor a plan passes once its run went on in another."""
    node, old = hands.nodes["north"], hands.plan(2)
    hands.release("north", hands.plan(1))
    bundles = enter(hands, 2)
    pins = {name: bytes.fromhex(key) for name, key in node.consent.members.items()}
    roster = accept_roster(bundles, pins, None, 2, FEDERATION)
    plan = hands.plan(1, 2, epoch=2, roster_digest=roster.digest.hex())
    hands.release("north", plan)
    with pytest.raises(RosterError, match="epoch"):
        node.accept_roster(hands.bundles)
    with pytest.raises(RosterError, match="for this roster"):
        node.accept_reveals(hands.reveals)
    with pytest.raises(SecAggRefused) as caught:
        hands.release("north", old)
    assert caught.value.code is RefusalCode.OTHER_ROSTER


def test_runs_at_once_have_epochs_of_their_own(hands: Hands) -> None:
    """A plan of one run's epoch is signed and opened after another run's was entered."""
    plan = hands.plan()
    total = hands.collect(plan)
    enter(hands, 2)
    request = total.close()
    total.certify([hands.nodes[name].sign_survivors(request) for name in NAMES])
    shares = [hands.nodes[name].unmask(total.unmask_request(name)) for name in NAMES]
    assert total.open_sum(shares).survivors == NAMES


@pytest.mark.parametrize("epoch", [2, 9])
def test_a_plan_of_an_epoch_that_nobody_entered(hands: Hands, epoch: int) -> None:
    with pytest.raises(SecAggRefused) as caught:
        hands.release("north", hands.plan(epoch=epoch))
    assert caught.value.code is RefusalCode.OTHER_ROSTER
    assert hands.federation.bodies("north", "run-reserved") == []


@pytest.fixture
def two_histories(hands: Hands, tmp_path: Path) -> tuple[HeadOffer, HeadOffer]:
    """Two heads of the coordinator's ledger that no one history holds."""
    body = {"run": "two", "federation": FEDERATION, "cohort": [], "model_digest": "0" * 64}
    with LedgerLog(tmp_path / "two", "coordinator") as log:
        log.append("run-opened", body)
        return hands.shown, HeadOffer(log.sign_head(hands.key), ())


def test_a_forked_ledger_stops_the_node(
    hands: Hands, two_histories: tuple[HeadOffer, HeadOffer]
) -> None:
    node, plan = hands.nodes["north"], hands.plan()
    node.countersign(two_histories[0])
    assert node.held_head() == two_histories[0].head
    with pytest.raises(ForkError):
        node.countersign(two_histories[1])
    assert "Expected" in (node.home / FORK_FILE).read_text()
    hands.reopen("north")
    refused(hands, PlanCode.FORKED_LEDGER, lambda: hands.release("north", plan))


def test_an_officer_settles_a_fork(
    hands: Hands, two_histories: tuple[HeadOffer, HeadOffer]
) -> None:
    node = hands.nodes["north"]
    node.countersign(two_histories[0])
    with pytest.raises(ForkError):
        node.countersign(two_histories[1])
    (node.home / FORK_FILE).unlink()
    hands.release("north", hands.plan())


def test_a_head_by_another_key(hands: Hands, two_histories: tuple[HeadOffer, HeadOffer]) -> None:
    node = hands.nodes["north"]
    head = two_histories[0].head
    forged = HeadOffer(IdentityKey.generate().sign("ledger-head", head.payload), ())
    with pytest.raises(SignatureError):
        node.countersign(forged)
    assert not (node.home / FORK_FILE).exists()
    assert node.held_head() == head


def test_keys_lost_while_another_run_asks(federation: SmallFederation) -> None:
    bundles = []
    for home in federation.homes.nodes.values():
        node = Node(home, "simulate")
        bundles.append(node.publish_keys(FEDERATION, 1))
        node.close()
    node = Node(federation.homes.nodes["east"], "simulate")
    node._epochs.forget()  # the machine was started again: tmpfs is empty
    node.close()
    node = Node(federation.homes.nodes["east"], "simulate")
    try:
        node.publish_keys(FEDERATION, 2)  # another run
        with pytest.raises(KeysLostError):
            node.accept_roster(bundles)
    finally:
        node.close()


def test_nonces_of_an_epoch_whose_keys_are_lost(hands: Hands) -> None:
    """The node has accepted another run's roster since."""
    node = hands.nodes["north"]
    node._epochs.forget([1])
    node.accept_roster([each.publish_keys(FEDERATION, 2) for each in hands.nodes.values()])
    with pytest.raises(KeysLostError):
        node.accept_reveals(hands.reveals)


def test_a_node_holds_no_more_than_eight_epochs(hands: Hands) -> None:
    """Those that came to nothing are left too, with the secrets of each pair."""
    for number in range(2, 4 + HELD_EPOCHS):
        enter(hands, number)
    assert len(hands.nodes["north"]._members) == HELD_EPOCHS
