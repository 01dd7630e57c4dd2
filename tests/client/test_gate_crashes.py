"""A node that dies at any step of its one exit, and starts again on the same disk."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from client.budget import NodeBooks
from client.outbox import Outbox
from privacy.ledger.log import LedgerLog
from privacy.rounds import PlanCode, PlanRefused
from privacy.secagg.store import SqliteRoundStore
from tests.dying import dying
from tests.small_federation import NAMES
from tests.small_hands import Hands

STEPS = {
    "reserve": (NodeBooks, "reserve"),
    "claim": (SqliteRoundStore, "claim_plan"),
    "seal": (Outbox, "seal"),
    "debit": (LedgerLog, "append"),
    "head": (LedgerLog, "sign_head"),
    "tidy": (Outbox, "keep_only"),
}
CRASHES = [(step, when) for step in STEPS for when in ("before", "after")]
CHARGED = CRASHES.index(("debit", "after"))
# The steps' far ends: each leaves the most behind.
late = pytest.mark.parametrize(("step", "when"), CRASHES[1::2], ids=map(" ".join, CRASHES[1::2]))
crashes = pytest.mark.parametrize(("step", "when"), CRASHES, ids=map(" ".join, CRASHES))


def die(hands: Hands, step: str, when: str) -> bytes:
    """Die in round 1; return what lay sealed on the disk."""
    owner, name = STEPS[step]
    call = 2 if step == "debit" else 1  # the ledger's first entry of the round is the reservation
    with dying(owner, name, call, when):
        hands.release("north", hands.plan())
    return lies_sealed(hands)


def lies_sealed(hands: Hands) -> bytes:
    sealed = [path for path in hands.outbox("north") if path.suffix == ".sealed"]
    return sealed[0].read_bytes() if sealed else b""


def check_books(hands: Hands, debits: int) -> None:
    for node in hands.nodes.values():
        node.close()
    federation = hands.federation
    assert len(federation.bodies("north", "run-reserved")) == 1
    found = federation.bodies("north", "release-debited")
    assert len({body["plan_digest"] for body in found}) == len(found) == debits
    assert federation.verified()["north"].is_ok


@crashes
def test_one_debit_and_one_upload_per_plan(hands: Hands, step: str, when: str) -> None:
    left = die(hands, step, when)
    was_charged = CRASHES.index((step, when)) >= CHARGED
    assert len(hands.federation.bodies("north", "release-debited")) == was_charged
    hands.reopen("north")
    sealed = hands.release("north", hands.plan())
    assert (lies_sealed(hands) == left) == was_charged
    (body,) = hands.federation.bodies("north", "release-debited")
    assert body["sealed_digest"] == sealed.digest
    check_books(hands, debits=1)


@late
def test_the_round_still_opens(hands: Hands, step: str, when: str) -> None:
    die(hands, step, when)
    hands.reopen("north")
    plan = hands.plan()
    total = hands.open(plan)
    check_books(hands, debits=1)
    expected = sum(hands.federation.encoding(name, plan) for name in NAMES)
    assert np.array_equal(total.words, expected)


@pytest.mark.parametrize(
    ("step", "when", "sealed"),
    [("claim", "after", 1), ("seal", "after", 2), ("debit", "before", 2), ("debit", "after", 1)],
)
def test_what_is_drawn_anew_is_masked_anew(
    take: Callable[..., Hands], monkeypatch: pytest.MonkeyPatch, step: str, when: str, sealed: int
) -> None:
    seen: list[bytes] = []
    original = Outbox.seal

    def spy(self: Outbox, digest: bytes, upload: Any, words: Any) -> Any:
        seen.append(bytes(words))
        return original(self, digest, upload, words)

    hands = take(seed=None)
    monkeypatch.setattr(Outbox, "seal", spy)
    die(hands, step, when)
    hands.reopen("north")
    hands.release("north", hands.plan())
    assert len(set(seen)) == len(seen) == sealed
    check_books(hands, debits=1)


@late
def test_a_new_attempt_after_a_crash_is_charged_anew(hands: Hands, step: str, when: str) -> None:
    die(hands, step, when)
    hands.reopen("north")
    hands.release("north", hands.plan(attempt=2))
    with pytest.raises(PlanRefused) as caught:
        hands.release("north", hands.plan())
    assert caught.value.code is PlanCode.OLD_ROUND
    check_books(hands, debits=1 + (CRASHES.index((step, when)) >= CHARGED))


def test_dying_twice(hands: Hands) -> None:
    die(hands, "claim", "after")
    hands.reopen("north")
    with dying(Outbox, "seal", when="after"):
        hands.release("north", hands.plan())
    hands.reopen("north")
    with dying(Outbox, "delete"):
        hands.release("north", hands.plan())
    hands.reopen("north")
    with dying(SqliteRoundStore, "withdraw_claim", when="after"):
        hands.release("north", hands.plan())
    hands.reopen("north")
    hands.release("north", hands.plan())
    check_books(hands, debits=1)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:40], lambda _: b""])
def test_a_damaged_sealed_upload_is_not_sent(
    hands: Hands, damage: Callable[[bytes], bytes]
) -> None:
    hands.release("north", hands.plan())
    (path,) = hands.outbox("north")
    path.write_bytes(damage(path.read_bytes()))
    hands.reopen("north")
    with pytest.raises(PlanRefused, match="this one stays charged") as caught:
        hands.release("north", hands.plan())
    assert caught.value.code is PlanCode.OLD_ROUND
    assert hands.federation.bodies("north", "refusal")[0]["code"] == "old-round"
    check_books(hands, debits=1)
