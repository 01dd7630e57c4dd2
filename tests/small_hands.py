"""The coordinator of a small federation, driven by hand: it may ask for what it should not."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.node import Node
from client.outbox import SealedUpload
from coordinator.driver import IDENTITY_FILE
from coordinator.members import Members
from coordinator.planning import make_plan
from coordinator.records import RunRecords
from coordinator.shared import SharedLedger
from models.checkpoint import load_model, model_digest
from models.decoder import Decoder
from models.recipe import prepare
from models.vector import read_vector
from privacy.dp.plan import PrivateStep
from privacy.identity import IdentityKey, Signed
from privacy.rounds import RoundPlan, sign_plan
from privacy.secagg.coordinator import OpenedSum, StreamingSum
from privacy.secagg.packing import unpack
from privacy.secagg.reveals import accept_reveals
from privacy.secagg.roster import accept_roster
from protos.round_messages import HeadOffer, UploadRequest
from tests.small_federation import FEDERATION, NAMES, Make, SmallFederation


@dataclass
class Hands:
    """A coordinator driven by hand, and the open nodes of its epoch 1."""

    federation: SmallFederation
    key: IdentityKey
    nodes: dict[str, Node]
    model: Decoder
    members: Members
    bundles: tuple[Any, ...]
    reveals: tuple[Any, ...]
    heads: dict[str, Signed]
    shown: HeadOffer

    @property
    def vector(self) -> bytes:
        return read_vector(self.model).numpy().astype("<f4").tobytes()

    def plan(self, number: int = 1, attempt: int = 1, **changes: Any) -> RoundPlan:
        """The honest plan, or one that says something else."""
        step = changes.pop("step", {})
        digest = model_digest(self.model)
        settings = self.federation.settings
        plan = make_plan(settings, self.model, digest, self.members, number=number, attempt=attempt)
        new = PrivateStep(**{**plan.step.model_dump(), **step})
        values = {**dict(plan), "step": new, "dp_event": new.event_json()}
        return RoundPlan(**{**values, **changes})

    def request(self, plan: RoundPlan, key: IdentityKey | None = None) -> UploadRequest:
        recipe = self.federation.settings.recipe_json()
        return UploadRequest(sign_plan(key or self.key, plan), recipe)

    def release(self, name: str, plan: RoundPlan) -> SealedUpload:
        return self.nodes[name].release(self.request(plan), memoryview(self.vector))

    def collect(self, plan: RoundPlan, names: Collection[str] = NAMES) -> StreamingSum:
        total = StreamingSum(plan, self.members.roster)
        for name in names:
            sealed = self.release(name, plan)
            words = unpack(sealed.words, plan.step.ring_bits, plan.vector_length)
            total.add(sealed.upload, words)
        return total

    def open(self, plan: RoundPlan) -> OpenedSum:
        total = self.collect(plan)
        request = total.close()
        total.certify([self.nodes[name].sign_survivors(request) for name in NAMES])
        return total.open_sum([self.nodes[n].unmask(total.unmask_request(n)) for n in NAMES])

    def reopen(self, name: str) -> Node:
        """The node's process starts again and enters the epoch it was in."""
        self.nodes[name].close()
        self.nodes[name] = node = Node(self.federation.homes.nodes[name], "simulate")
        node.publish_keys(FEDERATION, 1)
        node.accept_roster(self.bundles)
        node.accept_reveals(self.reveals)
        self.heads[name] = node.recall(self.heads[name])
        node.countersign(self.shown)
        return node

    def outbox(self, name: str) -> list[Path]:
        """Sealed uploads on a node's disk."""
        return list((self.federation.homes.nodes[name] / "outbox").iterdir())


def take_in_hand(federation: SmallFederation) -> Hands:
    nodes = {name: Node(home, "simulate") for name, home in federation.homes.nodes.items()}
    bundles = tuple(node.publish_keys(FEDERATION, 1) for node in nodes.values())
    settings = federation.settings
    pins = {name: bytes.fromhex(key) for name, key in settings.members.items()}
    roster = accept_roster(bundles, pins, None, 1, FEDERATION)
    reveals = tuple(node.accept_roster(bundles) for node in nodes.values())
    for node in nodes.values():
        node.accept_reveals(reveals)
    roster, _ = accept_reveals(roster, reveals, None)
    heads = {name: node.recall(None) for name, node in nodes.items()}
    model, _ = load_model(settings.base_model)
    prepare(model, settings.recipe)
    key = IdentityKey.load(federation.homes.coordinator / IDENTITY_FILE)
    members = Members(roster, dict.fromkeys(NAMES, 0))
    shown = first_head(federation, key, model)
    for node in nodes.values():
        node.countersign(shown)
    return Hands(federation, key, nodes, model, members, bundles, reveals, heads, shown)


def first_head(federation: SmallFederation, key: IdentityKey, model: Decoder) -> HeadOffer:
    """Open the run in the coordinator's ledger, as its driver does, and sign that."""
    ledger = SharedLedger(federation.homes.coordinator)
    RunRecords(ledger, federation.settings).open(model_digest(model))
    with ledger.turn() as log:
        head = log.sign_head(key)
    ledger.close()
    return HeadOffer(head, ())


@pytest.fixture
def take(make_federation: Make) -> Iterator[Callable[..., Hands]]:
    """Build a federation and take its coordinator in hand."""
    taken: list[Hands] = []

    def take_one(federation: SmallFederation | None = None, **options: Any) -> Hands:
        taken.append(take_in_hand(federation or make_federation(**options)))
        return taken[-1]

    yield take_one
    for hands in taken:
        for node in hands.nodes.values():
            node.close()


@pytest.fixture
def hands(take: Callable[..., Hands]) -> Hands:
    """The honest federation, in hand."""
    return take()
