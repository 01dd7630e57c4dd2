"""Members of a masked sum with real keys and stores, for benchmarks."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from privacy.dp.plan import PrivateStep
from privacy.identity import IdentityKey, Signed
from privacy.rounds import RoundPlan
from privacy.secagg.keys import EpochKeys
from privacy.secagg.node import SecAggNode
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.parameters import choose_parameters
from privacy.secagg.reveals import accept_reveals, reveal
from privacy.secagg.roster import Roster, accept_roster
from privacy.secagg.store import SqliteRoundStore

FEDERATION = "benchmark"
COLLUDERS = 1


@dataclass(frozen=True)
class Members:
    """One epoch.

    Attributes:
        roster: as the coordinator verified it.
        nodes: by name, sorted.
        bundles, reveals: what the coordinator relays to all.
        entry_s: CPU seconds in which a member that checks everything itself enters the epoch.

    """

    roster: Roster
    nodes: dict[str, SecAggNode]
    bundles: tuple[Signed, ...]
    reveals: tuple[Signed, ...]
    entry_s: float

    def plan(
        self, round_number: int, length: int, n_min: int, colluders: int = COLLUDERS
    ) -> RoundPlan:
        """Make the plan of a round that at least n_min members must finish, w = 16."""
        step = PrivateStep(
            clipping_norm=1.0, noise_multiplier=1.0, sampling_probability=0.01,
            expected_batch=64.0, honest_survivors=n_min - colluders, releases=1000, unit="record",
        )  # fmt: skip
        digest = hashlib.sha256(b"benchmark").hexdigest()
        members = len(self.nodes)
        return RoundPlan(
            federation=FEDERATION, run="run", epoch=1, round=round_number, attempt=1,
            roster_digest=self.roster.digest.hex(), model_digest=digest, recipe_digest=digest,
            trainable=(("vector", length),), vector_length=length, cohort=self.roster.names,
            **asdict(choose_parameters(members, colluders, members - n_min)),
            n_min=n_min, colluders=colluders,
            step=step, dp_event=step.event_json(), runtime="arion-grpc",
        )  # fmt: skip


def join(names: Sequence[str], folder: Path) -> Members:
    """Make identities and epoch keys, exchange bundles and nonces, open a store per member.

    The first member checks everything itself; the others take over what the coordinator verified,
    because n members that check n bundles are n^2 signatures in one process.
    """
    identities = {name: IdentityKey.generate() for name in names}
    pins = {name: key.public_key for name, key in identities.items()}
    keys = {name: EpochKeys.generate() for name in names}
    bundles = tuple(keys[name].bundle(FEDERATION, 1, name, identities[name]) for name in names)
    accepted = accept_roster(bundles, pins, None, 1, FEDERATION)
    reveals = tuple(
        reveal(replace(accepted, own=name), keys[name], identities[name]).signed for name in names
    )
    roster, _ = accept_reveals(accepted, reveals, None)
    begin = time.process_time()
    first, _ = accept_reveals(
        accept_roster(bundles, pins, bundles[0], 1, FEDERATION), reveals, reveals[0]
    )
    entry_s = time.process_time() - begin
    nodes = {}
    for name in roster.names:
        opened = first if name == first.own else replace(roster, own=name)
        store = SqliteRoundStore(folder / f"{name}.sqlite")
        nodes[name] = SecAggNode(identities[name], PairwiseKeys(keys[name], opened), store)
    return Members(roster, nodes, bundles, reveals, entry_s)
