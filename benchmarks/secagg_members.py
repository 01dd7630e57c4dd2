"""Members of a masked sum with real keys and stores, for benchmarks."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from privacy.dp.plan import PrivateStep
from privacy.identity import IdentityKey
from privacy.rounds import RoundPlan
from privacy.secagg.keys import EpochKeys
from privacy.secagg.node import SecAggNode
from privacy.secagg.pairwise import PairwiseKeys
from privacy.secagg.parameters import choose_parameters
from privacy.secagg.roster import Roster, accept_reveals, accept_roster, reveal
from privacy.secagg.store import SqliteRoundStore

FEDERATION = "benchmark"
COLLUDERS = 1


@dataclass(frozen=True)
class Members:
    """One epoch.

    Attributes:
        roster: as the coordinator verified it.
        nodes: by name, sorted.

    """

    roster: Roster
    nodes: dict[str, SecAggNode]

    def plan(self, round_number: int, length: int, n_min: int) -> RoundPlan:
        """Make the plan of a round that at least n_min members must finish, w = 16."""
        step = PrivateStep(
            clipping_norm=1.0, noise_multiplier=1.0, sampling_probability=0.01,
            expected_batch=64.0, honest_survivors=n_min - COLLUDERS, releases=1000, unit="record",
        )  # fmt: skip
        digest = hashlib.sha256(b"benchmark").hexdigest()
        return RoundPlan(
            federation=FEDERATION, run="run", epoch=1, round=round_number, attempt=1,
            roster_digest=self.roster.digest.hex(), model_digest=digest, recipe_digest=digest,
            trainable=(("vector", length),), vector_length=length, cohort=self.roster.names,
            **asdict(choose_parameters(len(self.nodes), COLLUDERS, len(self.nodes) - n_min)),
            n_min=n_min, colluders=COLLUDERS,
            step=step, dp_event=step.event_json(), runtime="arion-grpc",
        )  # fmt: skip


def join(names: Sequence[str], folder: Path) -> Members:
    """Make identities and epoch keys, exchange bundles and nonces, open a store per member."""
    identities = {name: IdentityKey.generate() for name in names}
    pins = {name: key.public_key for name, key in identities.items()}
    keys = {name: EpochKeys.generate() for name in names}
    own = {name: keys[name].bundle(FEDERATION, 1, name, identities[name]) for name in names}
    bundles = list(own.values())
    rosters = {name: accept_roster(bundles, pins, own[name], 1, FEDERATION) for name in names}
    reveals = [reveal(rosters[name], keys[name], identities[name]).signed for name in names]
    roster, _ = accept_reveals(accept_roster(bundles, pins, None, 1, FEDERATION), reveals, None)
    nodes = {}
    for name in roster.names:
        opened, _ = accept_reveals(rosters[name], reveals, None)
        store = SqliteRoundStore(folder / f"{name}.sqlite")
        nodes[name] = SecAggNode(identities[name], PairwiseKeys(keys[name], opened), store)
    return Members(roster, nodes)
