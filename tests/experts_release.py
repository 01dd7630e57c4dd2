"""One node of the small federation that trains experts of its own, and what tests ask of it."""

import itertools
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from arion.toml_file import write_toml
from client.config import CONSENT_FILE, IDENTITY_FILE, NODE_FILE
from client.experts_order import ExpertsOrder, train_experts
from client.module_outbox import SealedModule
from models.training_settings import OptimiserSettings
from privacy.identity import IdentityKey
from privacy.ledger.files import make_directory, replace_durably
from privacy.ledger.pins import PINS_FILE, Pin, pins_bytes
from privacy.ledger.verify import LedgerReport, verify_tree
from tests.small_federation import SEED, Ground

OWNER = "north"
ORDER = ExpertsOrder(
    epsilon=8.0,
    delta=1e-6,
    steps=6,
    sampling_probability=0.3,
    expected_batch=6.0,
    sequence_length=24,
    sequences_per_unit=2,
    optimiser=OptimiserSettings(learning_rate=1e-2),
    data="Ward notes.",
    licence="Research.",
)


def train_command(home: "Home", **changes: Any) -> list[str]:
    """The words of `arion model expert train-private` that order what `ORDER` does."""
    options = {
        "public": home.path.parents[1] / "public.txt",
        "out": home.path.parent / "out",
        "epsilon": ORDER.epsilon,
        "delta": ORDER.delta,
        "steps": ORDER.steps,
        "rate": ORDER.sampling_probability,
        "batch": ORDER.expected_batch,
        "sequence-length": ORDER.sequence_length,
        "sequences-per-unit": ORDER.sequences_per_unit,
        "data": ORDER.data,
        "licence": ORDER.licence,
    } | changes
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["model", "expert", "train-private", str(home.path), *words]


@dataclass
class Home:
    """A node's home, and what lies in it."""

    path: Path
    public: list[str]

    def train(self, **changes: Any) -> SealedModule:
        """Order experts as `arion` does, in a process that starts anew."""
        runtime = changes.pop("runtime", "simulate")
        order = ExpertsOrder(**{**dict(ORDER), **changes})
        return train_experts(self.path, order, self.public, runtime=runtime)

    def bodies(self, kind: str) -> list[dict[str, Any]]:
        path = self.path / "ledger" / "entries.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        entries = [json.loads(line) for line in lines]
        return [entry["body"] for entry in entries if entry["kind"] == kind]

    def report(self) -> LedgerReport:
        """The ledger, held against every module below the home's folder."""
        key = IdentityKey.load(self.path / IDENTITY_FILE).public_key.hex()
        (report,) = verify_tree(self.path.parent, {OWNER: Pin(public_key=key, kind="node")})
        return report

    def write_consent(self, **clauses: Any) -> None:
        key = IdentityKey.load(self.path / IDENTITY_FILE)
        others = {name: IdentityKey.generate().public_key.hex() for name in ("east", "west")}
        consent = {
            "federation": "clinics",
            "coordinator_key": IdentityKey.generate().public_key.hex(),
            "members": {OWNER: key.public_key.hex(), **others},
            "purposes": ["triage"],
            "data_set": "notes",
            "unit": "person",
            "accountant": "schedule",
            "epsilon": 20.0,
            "delta": 1e-5,
            "epsilon_per_run": 10.0,
            "epsilon_if_all_others_collude": 20.0,
            "smallest_cohort": 3,
            "tolerated_colluders": 1,
            "trainable": ["*"],
            "owned_experts_may_leave": True,
            "runtimes": ["simulate"],
            "expires": (datetime.now(UTC) + timedelta(days=9)).date().isoformat(),
            "allow_seeded_simulation": True,
        }
        write_toml(self.path / CONSENT_FILE, consent | clauses)

    def write_node(self, ground: Ground, seed: int | None) -> None:
        node = {
            "name": OWNER,
            "data": str(ground.data / f"{OWNER}.jsonl"),
            "base_model": str(ground.base_model),
            "heldout": 0.0,
            "validation": 0.0,
            "fields": {"text_fields": ["text"], "unit_field": "person"},
        }
        write_toml(self.path / NODE_FILE, node | ({} if seed is None else {"seed": seed}))

    def set_node(self, **changes: Any) -> None:
        values = tomllib.loads((self.path / NODE_FILE).read_text())
        write_toml(self.path / NODE_FILE, values | changes)


Make = Callable[..., Home]


@pytest.fixture
def make_home(ground: Ground, tmp_path: Path) -> Make:
    """Build a node's home; clauses of the consent by name, `seed` None for real entropy."""

    made = itertools.count()

    def make(seed: int | None = SEED, **clauses: Any) -> Home:
        root = tmp_path / f"run{next(made)}"
        words = "night scan knee ward pain dose left mild cough stable river stone cloud "
        home = Home(root / OWNER, [words * (1 + line % 3) for line in range(40)])
        make_directory(home.path)
        IdentityKey.generate().save(home.path / IDENTITY_FILE)
        home.write_node(ground, seed)
        home.write_consent(**clauses)
        key = IdentityKey.load(home.path / IDENTITY_FILE).public_key.hex()
        pins = {OWNER: Pin(public_key=key, kind="node")}
        replace_durably(home.path.parent / PINS_FILE, pins_bytes(pins))
        return home

    return make


@pytest.fixture
def home(make_home: Make) -> Home:
    """An honest, seeded node whose consent lets owned experts leave."""
    return make_home()
