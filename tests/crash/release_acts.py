"""A node that uploads: what leaves was debited before, and of one place in a run never twice.

The crash finds the node's home. Its epoch keys lie in memory (tmpfs): a process that was killed
finds them again, a machine that lost power does not. Both are tried in each state, the second in a
new epoch with new keys of the other members.
"""

import json
import pickle
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from arion.federation import Homes
from arion.toml_file import write_toml
from client.config import CONSENT_FILE, IDENTITY_FILE
from client.node import Node
from models.checkpoint import model_digest
from models.vector import read_vector, write_vector
from privacy.identity import IdentityKey, Signed
from privacy.ledger.files import read_lines
from privacy.ledger.head import TreeHead, parse_signed_line, parse_statement
from privacy.ledger.pins import PINS_FILE, load_pins
from privacy.ledger.verify import verify_ledger
from privacy.rounds import PlanRefused, RoundPlan, sign_plan
from privacy.secagg.header import SecAggRefused
from privacy.secagg.keys import EpochKeys
from privacy.secagg.memory import StoreConflict
from privacy.secagg.reveals import accept_reveals, reveal
from privacy.secagg.roster import accept_roster
from protos.round_messages import HeadOffer, UploadRequest
from tests.crash.actors import acknowledge
from tests.small_federation import FEDERATION, NAMES, RUN, build, lay_ground
from tests.small_hands import Hands, take_in_hand

NAME = "north"
ROUNDS = (1, 2)
_REFUSALS = (PlanRefused, SecAggRefused, StoreConflict)

Place = tuple[int, int]
"""Round and attempt of the run."""


@dataclass(frozen=True)
class Model:
    """Parameters that a coordinator sends, fp32 bytes, and their digest."""

    vector: bytes
    digest: str


@dataclass(frozen=True)
class Coordinator:
    """What the coordinator of a small federation says to north in epoch 1.

    Attributes:
        key: raw private key; signs plans.
        bundles, reveals: of all members. head: of north's ledger. shown: of its own.
        recipe: of the run. base, other: two models to train.
        plan: of round 1, attempt 1, for the base model.

    """

    key: IdentityKey
    bundles: tuple[Signed, ...]
    reveals: tuple[Signed, ...]
    head: Signed
    shown: HeadOffer
    recipe: bytes
    base: Model
    other: Model
    plan: RoundPlan

    @classmethod
    def of(cls, hands: Hands) -> "Coordinator":
        base = Model(hands.vector, model_digest(hands.model))
        plan = hands.plan()
        request = hands.request(plan)
        write_vector(hands.model, read_vector(hands.model) * 1.01)
        other = Model(hands.vector, model_digest(hands.model))
        known = hands.bundles, hands.reveals, hands.heads[NAME], hands.shown
        return cls(hands.key, *known, request.recipe, base, other, plan)

    def asks(self, model: Model, **changes: Any) -> UploadRequest:
        """The request of a plan for a model, with changes."""
        plan = RoundPlan(**{**dict(self.plan), "model_digest": model.digest, **changes})
        return UploadRequest(sign_plan(self.key, plan), self.recipe)


@dataclass
class Leaving:
    """All that left the node so far: digests by place."""

    node: Node
    digests: dict[Place, set[str]] = field(default_factory=dict)

    def ask(self, request: UploadRequest, model: Model) -> bool:
        """Ask for an upload; tell whether one came."""
        plan = RoundPlan.from_payload(request.plan.payload)
        try:
            sealed = self.node.release(request, memoryview(model.vector))
        except _REFUSALS:
            return False
        self.digests.setdefault((plan.round, plan.attempt), set()).add(sealed.digest)
        return True


class Release:
    """Two uploads and the run's end.

    Args:
        accountant: of the consent. A filter is charged at each debit, a schedule before the first.

    """

    def __init__(self, accountant: str) -> None:
        self._accountant = accountant
        self._seat: tuple[Path, Any] | None = None

    def prepare(self, folder: Path, rests: Path) -> None:
        (rests / "ground").mkdir()
        federation = build(lay_ground(rests / "ground"), rests / "federation", seed=None)
        place = federation.homes.nodes[NAME]
        place.rename(folder)
        place.symlink_to(folder)
        consent = tomllib.loads((folder / CONSENT_FILE).read_text())
        write_toml(folder / CONSENT_FILE, consent | {"accountant": self._accountant})
        hands = take_in_hand(federation)
        for node in hands.nodes.values():
            node.close()
        keys = {path.name: path.read_bytes() for path in hands.nodes[NAME]._epochs.files}
        (rests / "keys").write_bytes(pickle.dumps(keys))
        hands.key.save(rests / IDENTITY_FILE)
        (rests / "said").write_bytes(pickle.dumps(_without_key(Coordinator.of(hands))))

    def act(self, folder: Path, rests: Path) -> None:
        torch.set_num_threads(1)
        said = _coordinator(rests)
        with self._entered(folder, rests, said) as node:
            for number in ROUNDS:
                request = said.asks(said.base, round=number)
                sealed = node.release(request, memoryview(said.base.vector))
                acknowledge(f"left {number} {sealed.digest}")
            node.close_run(FEDERATION, RUN)
            acknowledge("closed")

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        said = [line.split() for line in acknowledged if line != "closed"]
        left: dict[Place, str] = {(int(number), 1): digest for _, number, digest in said}
        self._check_accounted(folder, left)
        for go_on in (self._go_on_killed, self._go_on_rivalled, self._go_on_rebooted):
            copy = folder.with_name(f"{folder.name}-again")
            shutil.copytree(folder, copy)
            before = debits(copy)
            digests = go_on(copy, rests, left)
            after = debits(copy)
            assert after.items() >= before.items(), "a ledger only grows"
            for place, made in digests.items():
                assert made == {after[place]}, f"{go_on.__name__}: {place} left twice or unpaid"
            report = verify_ledger(copy / "ledger", load_pins(rests / "federation" / PINS_FILE))
            assert report.is_ok, report.failures
            shutil.rmtree(copy)

    def _check_accounted(self, home: Path, left: dict[Place, str]) -> None:
        """Hold the ledger as the crash left it, unopened, against what had left."""
        made = debits(home)
        assert made.items() >= left.items()
        assert len(made) <= len(left) + 1
        opened = {"schedule": "run-reserved", "filter": "filter-opened"}[self._accountant]
        charges = [entry["body"]["charge"] for entry in written(home, "release-debited")]
        assert all((charge is not None) == (self._accountant == "filter") for charge in charges)
        first = written(home, opened)
        assert len(first) <= 1
        for entry in written(home, "release-debited"):
            assert first[0]["index"] < entry["index"]
            if (entry["body"]["round"], entry["body"]["attempt"]) in left:
                assert signed_size(home) > entry["index"]

    def _go_on_killed(self, home: Path, rests: Path, left: dict[Place, str]) -> Any:
        """The process died alone: the same plans are asked for again, and then others."""
        said, last = _coordinator(rests), max(debits(home), default=None)
        with self._going_on(home, rests, said, left) as leaving:
            for number in ROUNDS:
                came = leaving.ask(said.asks(said.base, round=number), said.base)
                assert came or (last is not None and (number, 1) < last)
            for number in ROUNDS:
                assert not leaving.ask(said.asks(said.other, round=number), said.other)
            return leaving.digests

    def _go_on_rivalled(self, home: Path, rests: Path, left: dict[Place, str]) -> Any:
        """The process died alone: the coordinator asks for other plans of the same places first."""
        said = _coordinator(rests)
        with self._going_on(home, rests, said, left) as leaving:
            for number in ROUNDS:
                leaving.ask(said.asks(said.other, round=number), said.other)
                leaving.ask(said.asks(said.base, round=number), said.base)
            return leaving.digests

    def _go_on_rebooted(self, home: Path, rests: Path, left: dict[Place, str]) -> Any:
        """The keys are lost: a new epoch, the same places again, and at last the next attempt."""
        said, is_closed = _coordinator(rests), bool(written(home, "run-closed"))
        with self._opened(home, rests) as node:
            leaving = _leaving(node, left)
            assert not leaving.ask(said.asks(said.base, round=1), said.base)
            epoch = {"epoch": 2, "roster_digest": enter_second(node, rests)}
            node.recall(said.head)
            node.countersign(said.shown)
            for number in ROUNDS:
                leaving.ask(said.asks(said.base, round=number, **epoch), said.base)
            following = said.asks(said.base, round=ROUNDS[-1], attempt=2, **epoch)
            assert leaving.ask(following, said.base) != is_closed
            return leaving.digests

    @contextmanager
    def _going_on(
        self, home: Path, rests: Path, said: Coordinator, left: dict[Place, str]
    ) -> Iterator[Leaving]:
        with self._entered(home, rests, said) as node:
            yield _leaving(node, left)

    @contextmanager
    def _entered(self, home: Path, rests: Path, said: Coordinator) -> Iterator[Node]:
        """The node's process starts in a home, with the keys that tmpfs kept for it."""
        keys = pickle.loads((rests / "keys").read_bytes())
        with self._opened(home, rests, keys) as node:
            node.publish_keys(FEDERATION, 1)
            node.accept_roster(said.bundles)
            node.accept_reveals(said.reveals)
            node.recall(said.head)
            node.countersign(said.shown)
            yield node

    @contextmanager
    def _opened(
        self, home: Path, rests: Path, keys: dict[str, bytes] | None = None
    ) -> Iterator[Node]:
        node = Node(home, "simulate")
        try:
            node._epochs.forget()
            folder = node._epochs._folder
            assert folder is not None, "this machine has tmpfs, as Linux has"
            for name, data in (keys or {}).items():
                (folder / name).write_bytes(data)
            if self._seat is not None and self._seat[0] == rests:  # model and data are only read
                node._seats._newest = self._seat[1]
                node._checked = self._seat[1][1]
            yield node
            if node._seats._newest is not None:
                self._seat = rests, node._seats._newest
        finally:
            node._epochs.forget()
            node.close()


def _leaving(node: Node, left: dict[Place, str]) -> Leaving:
    return Leaving(node, {place: {digest} for place, digest in left.items()})


def _without_key(said: Coordinator) -> dict[str, Any]:
    return {name: value for name, value in vars(said).items() if name != "key"}


def _coordinator(rests: Path) -> Coordinator:
    key = IdentityKey.load(rests / IDENTITY_FILE)
    return Coordinator(key, **pickle.loads((rests / "said").read_bytes()))


def enter_second(node: Node, rests: Path) -> str:
    """Have a node and three other members open epoch 2; return the roster's digest, hex."""
    homes = Homes(rests / "federation", NAMES).nodes
    identities = {name: IdentityKey.load(homes[name] / IDENTITY_FILE) for name in NAMES}
    pins = {name: identity.public_key for name, identity in identities.items()}
    others = {name: EpochKeys.generate() for name in NAMES if name != NAME}
    own = {
        name: keys.bundle(FEDERATION, 2, name, identities[name]) for name, keys in others.items()
    }
    bundles = (node.publish_keys(FEDERATION, 2), *own.values())
    reveals = [node.accept_roster(bundles)]
    for name, keys in others.items():
        roster = accept_roster(bundles, pins, own[name], 2, FEDERATION)
        reveals.append(reveal(roster, keys, identities[name]).signed)
    node.accept_reveals(reveals)
    roster, _ = accept_reveals(accept_roster(bundles, pins, None, 2, FEDERATION), reveals, None)
    return roster.digest.hex()


def written(home: Path, kind: str) -> list[dict[str, Any]]:
    """The entries of one kind in a ledger as it lies on the disk, whole lines only."""
    lines = read_lines(home / "ledger" / "entries.jsonl").complete
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def debits(home: Path) -> dict[Place, str]:
    """Digest of what was debited, by place; there are no two of one place."""
    bodies = [entry["body"] for entry in written(home, "release-debited")]
    found = {(body["round"], body["attempt"]): body["sealed_digest"] for body in bodies}
    assert len(found) == len(bodies), bodies
    return found


def signed_size(home: Path) -> int:
    """How many entries the newest signed head covers."""
    line = read_lines(home / "ledger" / "heads.jsonl").complete[-1]
    return parse_statement(parse_signed_line(line).payload, TreeHead).size
