"""A federation's homes for simulation: keys, consents, settings; as officers would set them up."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from arion.institutions import Institution
from arion.run_file import RunFileError
from arion.toml_file import write_toml
from client.config import CONSENT_FILE, NODE_FILE
from client.config import IDENTITY_FILE as NODE_IDENTITY_FILE
from client.data import DataConfig, DataError
from coordinator.driver import IDENTITY_FILE
from coordinator.settings import SETTINGS_FILE, RunSettings, save_settings
from privacy.consent import load_consent
from privacy.consent_pins import COORDINATOR
from privacy.dp.accountant import epsilon_if_all_others_collude
from privacy.dp.plan import PrivateStep
from privacy.identity import IdentityKey
from privacy.ledger.files import make_directory, replace_durably
from privacy.ledger.pins import PINS_FILE, Pin, pins_bytes
from privacy.secagg.parameters import LARGEST_COMPLETE
from privacy.units import RECORD

FEDERATION = "simulated"
_LIFE_DAYS = 3650
_ROOM = 1.000001  # consents are written a hair above the figures they were computed from


@dataclass(frozen=True)
class Share:
    """What one simulated node holds: an institution's shard, or one part of its units."""

    name: str
    institution: Institution
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Homes:
    """Where the parts of a simulated federation live."""

    root: Path
    names: tuple[str, ...]

    @property
    def coordinator(self) -> Path:
        """The coordinator's home."""
        return self.root / "coordinator"

    @property
    def nodes(self) -> dict[str, Path]:
        """Each node's home by name."""
        return {name: self.root / "nodes" / name for name in self.names}


@dataclass(frozen=True)
class Budget:
    """What each simulated consent allows: epsilon None is a run without noise."""

    epsilon: float | None
    delta: float


def share_out(institutions: Sequence[Institution], nodes: int | None) -> tuple[Share, ...]:
    """Give each node an institution, or a part of one where there are more nodes.

    Args:
        institutions: sorted by name.
        nodes: how many nodes; None makes one for each institution. Fewer takes the first ones,
            more deals each institution's units out to several nodes.

    """
    count = nodes or len(institutions)
    if count <= len(institutions):
        return tuple(Share(i.name, i) for i in institutions[:count])
    shares = []
    for index, institution in enumerate(institutions):
        parts = len(range(index, count, len(institutions)))
        for part in range(parts):
            name = f"{institution.name[:58]}-{part + 1}" if parts > 1 else institution.name
            shares.append(Share(name, institution, part, parts))
    return tuple(sorted(shares, key=lambda share: share.name))


def build_homes(
    root: Path,
    shares: Sequence[Share],
    settings: Mapping[str, Any],
    *,
    budget: Budget,
    vector_length: int,
    seed: int | None,
    node_options: Mapping[str, float],
) -> Homes:
    """Create every home of a federation, once; existing ones are taken as they are.

    Args:
        root: folder of the run.
        shares: one per node.
        settings: fields of `RunSettings` but the members.
        budget: what the consents allow.
        vector_length: of an upload.
        seed: of a seeded simulation, or None.
        node_options: heldout and validation shares.

    """
    homes = Homes(root, tuple(share.name for share in shares))
    if (homes.coordinator / SETTINGS_FILE).exists():
        return homes
    key = _identity(homes.coordinator, IDENTITY_FILE)
    keys = {share.name: _identity(homes.nodes[share.name], NODE_IDENTITY_FILE) for share in shares}
    members = {name: node.public_key.hex() for name, node in keys.items()}
    run = RunSettings(**{**settings, "members": members})
    for share in shares:
        home = homes.nodes[share.name]
        write_toml(home / NODE_FILE, _node_toml(share, run, seed, node_options))
        consent = _consent_toml(
            share, run, key, budget=budget, vector_length=vector_length, seed=seed
        )
        write_toml(home / CONSENT_FILE, consent)
        load_consent(home / CONSENT_FILE)
    pins = {name: Pin(public_key=hex_key, kind="node") for name, hex_key in members.items()}
    pins[COORDINATOR] = Pin(public_key=key.public_key.hex(), kind="coordinator")
    replace_durably(root / PINS_FILE, pins_bytes(pins))
    save_settings(homes.coordinator, run)  # last: its presence says that all is there
    return homes


def _identity(home: Path, file_name: str) -> IdentityKey:
    make_directory(home)
    path = home / file_name
    if path.exists():
        return IdentityKey.load(path)
    key = IdentityKey.generate()
    key.save(path)
    return key


def _node_toml(
    share: Share, run: RunSettings, seed: int | None, options: Mapping[str, float]
) -> dict[str, Any]:
    fields = share.institution.config.model_dump(exclude_none=True)
    return {
        "name": share.name,
        "data": str(share.institution.path.resolve()),
        "base_model": str(run.base_model),
        "part": share.part,
        "parts": share.parts,
        "pad_draws": False,  # nobody times a simulated node
        **({} if seed is None else {"seed": seed}),
        **options,
        "fields": fields,
    }


def _consent_toml(
    share: Share,
    run: RunSettings,
    coordinator: IdentityKey,
    *,
    budget: Budget,
    vector_length: int,
    seed: int | None,
) -> dict[str, Any]:
    epsilon = budget.epsilon or 1.0  # without noise no epsilon is compared with these
    return {
        "federation": run.federation,
        "coordinator_key": coordinator.public_key.hex(),
        "purposes": ["simulation"],
        "data_set": share.institution.label,
        "unit": run.step.unit,
        "accountant": "schedule",
        "epsilon": epsilon,
        "delta": budget.delta,
        "epsilon_per_run": epsilon,
        "epsilon_if_all_others_collude": _collusion(run.step, budget, vector_length),
        "smallest_cohort": run.n_min,
        "tolerated_colluders": run.colluders,
        "trainable": ["*"],
        "runtimes": ["simulate"],
        "expires": (datetime.now(UTC) + timedelta(days=_LIFE_DAYS)).date().isoformat(),
        "allow_unprotected_release": budget.epsilon is None,
        "allow_seeded_simulation": seed is not None,
        "sparse_graph": len(run.members) > LARGEST_COMPLETE,
        "members": dict(run.members),
    }


def _collusion(step: PrivateStep, budget: Budget, vector_length: int) -> float:
    if budget.epsilon is None:
        return 1.0
    value = epsilon_if_all_others_collude(step, budget.delta, vector_length=vector_length)
    if math.isinf(value):
        raise RunFileError(
            "Expected noise of which one member's share bounds something by itself, got none: no "
            f"consent can say what happens if all others collude. Lower privacy.epsilon (it is "
            f"{budget.epsilon:g}), or have fewer nodes or a larger training.expected_batch."
        )
    return max(value, budget.epsilon) * _ROOM


def common_unit(configs: Sequence[DataConfig]) -> str:
    """Name the privacy unit of a run: "record", the field that all shards share, or "person".

    Raises:
        DataError: some shards say whose a record is and some do not: one run has one kind of unit.

    """
    fields = {config.unit_field for config in configs}
    if fields == {None}:
        return RECORD
    if None in fields:
        raise DataError(
            "Expected a unit_field in every institution's data.toml or in none, got both: one run "
            f"protects one kind of unit. Fields found: {sorted(f for f in fields if f)}."
        )
    return str(next(iter(fields))) if len(fields) == 1 else "person"
