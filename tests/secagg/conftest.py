"""A federation in memory: real keys, real plans, and members that may leave at any point."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pytest

from privacy.consent import Consent
from privacy.dp.plan import PrivateStep
from privacy.identity import IdentityKey, Signed
from privacy.rounds import RoundPlan, sign_plan, verify_plan
from privacy.secagg.coordinator import OpenedSum, StreamingSum
from privacy.secagg.keys import EpochKeys
from privacy.secagg.memory import PlanKey, StoreConflict
from privacy.secagg.node import SecAggNode
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.parameters import choose_parameters
from privacy.secagg.reveals import accept_reveals, reveal
from privacy.secagg.roster import Roster, accept_roster
from protos.messages import SurvivorSignature, Upload

FEDERATION = "hospitals"
LENGTH = 101


class MemoryStore:
    """The contract of RoundStore without a disk."""

    def __init__(self) -> None:
        self.plans: dict[bytes, PlanKey] = {}
        self.sets: dict[bytes, bytes] = {}
        self.replies: dict[bytes, bytes] = {}
        self.rosters: dict[tuple[str, bytes], bytes] = {}

    def claim_roster(self, federation: str, nonce_commitment: bytes, roster_digest: bytes) -> None:
        if self.rosters.setdefault((federation, nonce_commitment), roster_digest) != roster_digest:
            raise StoreConflict("Expected the roster that the nonce was revealed for, got another.")

    def claim_plan(self, key: PlanKey, digest: bytes) -> None:
        last = self.last_seen(key.federation, key.run)
        if last is not None and (key.round, key.attempt) <= last:
            raise StoreConflict(f"Expected a (round, attempt) after {last}, got {key}.")
        self.plans[digest] = key

    def is_claimed(self, plan_digest: bytes) -> bool:
        return plan_digest in self.plans

    def withdraw_claim(self, plan_digest: bytes) -> None:
        if plan_digest not in self.sets:
            self.plans.pop(plan_digest, None)

    def last_seen(self, federation: str, run: str) -> tuple[int, int] | None:
        seen = [k for k in self.plans.values() if (k.federation, k.run) == (federation, run)]
        return max(((key.round, key.attempt) for key in seen), default=None)

    def signed_set(self, plan_digest: bytes) -> bytes | None:
        return self.sets.get(plan_digest)

    def record_signed_set(self, plan_digest: bytes, set_digest: bytes) -> bytes:
        return self.sets.setdefault(plan_digest, set_digest)

    def unmask_reply(self, plan_digest: bytes) -> bytes | None:
        return self.replies.get(plan_digest)

    def record_unmask_reply(self, plan_digest: bytes, reply: bytes) -> bytes:
        return self.replies.setdefault(plan_digest, reply)


@dataclass
class Federation:
    """Members node-0 ..., a coordinator, and the vectors that members contribute."""

    identities: dict[str, IdentityKey]
    coordinator: IdentityKey
    keys: dict[str, EpochKeys]
    bundles: list[Signed]
    reveals: list[Signed]
    nodes: dict[str, SecAggNode]
    roster: Roster
    n_min: int
    colluders: int
    vectors: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return self.roster.names

    @property
    def pins(self) -> dict[str, bytes]:
        return {name: key.public_key for name, key in self.identities.items()}

    def step(self, **changes: Any) -> PrivateStep:
        values = {
            "clipping_norm": 1.0,
            "noise_multiplier": 2.0,
            "sampling_probability": 0.01,
            "expected_batch": 16.0,
            "honest_survivors": self.n_min - self.colluders,
            "releases": 10,
            "unit": "record",
        }
        return PrivateStep(**{**values, **changes})

    def plan(self, round_number: int = 1, **changes: Any) -> RoundPlan:
        step = changes.get("step", self.step())
        if len(self.names) > 2:
            missing = len(self.names) - self.n_min
            chosen = choose_parameters(len(self.names), self.colluders, missing)
            changes = {**asdict(chosen), **changes}
        values = {
            "federation": FEDERATION,
            "run": "run-1",
            "epoch": 1,
            "round": round_number,
            "attempt": 1,
            "roster_digest": self.roster.digest.hex(),
            "model_digest": hashlib.sha256(b"model").hexdigest(),
            "recipe_digest": hashlib.sha256(b"recipe").hexdigest(),
            "trainable": (("lora.a", LENGTH - 1), ("lora.b", 1)),
            "vector_length": LENGTH,
            "cohort": self.names,
            "n_min": self.n_min,
            "colluders": self.colluders,
            "step": step,
            "dp_event": step.event_json(),
            "runtime": "arion-grpc",
        }
        return RoundPlan(**{**values, **changes})

    def consent(self, **changes: Any) -> Consent:
        values = {
            "federation": FEDERATION,
            "coordinator_key": self.coordinator.public_key.hex(),
            "members": {name: key.hex() for name, key in self.pins.items()},
            "purposes": ("triage",),
            "data_set": "notes",
            "unit": "record",
            "accountant": "schedule",
            "epsilon": 1.0,
            "delta": 1e-5,
            "epsilon_per_run": 0.5,
            "epsilon_if_all_others_collude": 0.8,
            "smallest_cohort": self.n_min,
            "tolerated_colluders": self.colluders,
            "trainable": ("lora.*",),
            "runtimes": ("arion-grpc",),
            "expires": date(2030, 1, 1),
        }
        return Consent(**{**values, **changes})

    def verify(
        self,
        plan: RoundPlan,
        consent: Consent | None = None,
        signed: Signed | None = None,
        **changes: Any,
    ) -> RoundPlan:
        values = {
            "coordinator_key": self.coordinator.public_key,
            "roster": self.nodes[self.names[0]].roster,
            "runtime": plan.runtime,
            "last_seen": None,
            "spent": (0.0, 0.0),
            "today": date(2029, 1, 1),
        }
        signed = signed or sign_plan(self.coordinator, plan)
        return verify_plan(signed, consent or self.consent(), **{**values, **changes})

    def vector(self, name: str, plan: RoundPlan) -> np.ndarray:
        """A vector of its own for every member and round, so that double counting shows."""
        generator = np.random.default_rng([self.names.index(name), plan.round, plan.attempt])
        dtype = "<u4" if plan.step.ring_bits == 32 else "<u2"
        return generator.integers(0, 2**plan.step.ring_bits, plan.vector_length).astype(dtype)

    def upload(self, name: str, plan: RoundPlan) -> tuple[Upload, np.ndarray]:
        words = self.vector(name, plan)
        return self.nodes[name].seal_upload(words, plan), words

    def collect(self, plan: RoundPlan, gone: Collection[str] = ()) -> StreamingSum:
        """All members but those gone upload."""
        total = StreamingSum(plan, self.roster)
        for name in self.names:
            if name not in gone:
                assert total.add(*self.upload(name, plan))
        return total

    def sign(
        self, plan: RoundPlan, total: StreamingSum, gone: Collection[str] = ()
    ) -> list[SurvivorSignature]:
        headers = total.close().headers
        present = [name for name in total.committee if name not in gone]
        return [self.nodes[name].sign_survivors(plan, headers) for name in present]

    def run(
        self,
        plan: RoundPlan,
        before_upload: Collection[str] = (),
        before_signing: Collection[str] = (),
        before_unmasking: Collection[str] = (),
    ) -> OpenedSum:
        """One attempt; members leave at the named points and do not come back."""
        total = self.collect(plan, before_upload)
        certificate = total.certify(self.sign(plan, total, before_signing))
        replies = [
            self.nodes[signature.node].unmask(plan, total.unmask_request(signature.node))
            for signature in certificate
            if signature.node not in before_unmasking
        ]
        return total.open_sum(replies)

    def expected(self, plan: RoundPlan, survivors: Collection[str]) -> np.ndarray:
        total = np.zeros(plan.vector_length, "<u4" if plan.step.ring_bits == 32 else "<u2")
        for name in survivors:
            total += self.vector(name, plan)
        return total % 2**plan.step.ring_bits if plan.step.ring_bits < 16 else total


def build(
    members: int = 4, n_min: int = 3, colluders: int = 1, *, hybrid: bool = False
) -> Federation:
    names = [f"node-{place}" if members <= 50 else f"node-{place:04}" for place in range(members)]
    identities = {name: IdentityKey.generate() for name in names}
    pins = {name: key.public_key for name, key in identities.items()}
    keys = {name: EpochKeys.generate() for name in names}
    own = {
        name: keys[name].bundle(FEDERATION, 1, name, identities[name], hybrid=hybrid)
        for name in names
    }
    bundles = list(own.values())
    rosters = {name: accept_roster(bundles, pins, own[name], 1, FEDERATION) for name in names}
    shown = {name: reveal(rosters[name], keys[name], identities[name]) for name in names}
    reveals = [entry.signed for entry in shown.values()]
    nodes = {}
    for name in names:
        roster, received = accept_reveals(rosters[name], reveals, shown[name].signed)
        secrets = {peer: keys[name].decapsulate(sealed) for peer, sealed in received.items()}
        pairwise = PairwiseKeys(keys[name], roster, {**shown[name].kem_secrets, **secrets})
        nodes[name] = SecAggNode(identities[name], pairwise, MemoryStore())
    roster, _ = accept_reveals(accept_roster(bundles, pins, None, 1, FEDERATION), reveals, None)
    return Federation(
        identities, IdentityKey.generate(), keys, bundles, reveals, nodes, roster, n_min, colluders
    )


@pytest.fixture
def make_federation() -> Callable[..., Federation]:
    return build


@pytest.fixture
def federation() -> Federation:
    """Four members, n_min 3, one colluder, quorum 3."""
    return build()
