"""A federation of four small institutions in a folder, run for real.

What is simulated: the carrier (one process), the data, and crashes (an exception that nothing
catches; one test kills a process). What is not: keys, plans, ledgers, files, masks and noise.
Seeded runs draw samples and noise from (seed, node, run, round, attempt), so every node's encoding
can be computed again here; masks and keys are drawn anew each time.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

import client.app
from arion.federation import Budget, Homes, build_homes, share_out
from arion.institutions import find_institutions
from arion.local_grid import LocalGrid
from client.data import DataConfig
from client.node import Node
from client.training import LocalTrainer, unit_rows
from client.training_records import training_records
from coordinator.app import GridChannel
from coordinator.driver import RunDriver
from coordinator.settings import RunSettings, load_settings
from models.checkpoint import load_model, save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.optimiser import OptimiserState
from models.recipe import prepare
from models.tokenizer import Tokenizer
from models.training_settings import OptimiserSettings, Recipe
from models.vector import trainable_layout
from privacy.dp.lattice import encode
from privacy.dp.noise import SeededGaussian, derive_seeded_key
from privacy.dp.plan import PrivateStep
from privacy.dp.sampling import PoissonSampler, SeededUniform
from privacy.ledger.pins import PINS_FILE, load_pins
from privacy.ledger.verify import LedgerReport, verify_tree
from privacy.rounds import RoundPlan
from privacy.secagg.coordinator import OpenedSum, StreamingSum
from privacy.units import INSTITUTION

FEDERATION = "simulated"
RUN = "small"
SEED = 7
NAMES = ("east", "north", "south", "west")
PERSONS = 20
RECIPE = Recipe(sequence_length=24, sequences_per_unit=2)
STEP = PrivateStep(
    clipping_norm=1.0,
    noise_multiplier=1.2,
    sampling_probability=0.5,
    expected_batch=24.0,
    honest_survivors=2,
    releases=6,
    unit="person",
)
BUDGET = Budget(60.0, 1e-5)
NO_NOISE = {"noise_multiplier": 0.0, "ring_bits": 32}


@dataclass(frozen=True)
class Ground:
    """What all federations of a test session share: a base model and four shards."""

    base_model: Path
    data: Path


def lay_ground(folder: Path, names: Sequence[str] = NAMES) -> Ground:
    """Write a model of 12,592 parameters, and records of twenty persons at each institution."""
    words = ["ward", "knee", "left", "mild", "scan", "night", "cough", "dose", "stable", "pain"]
    generator = np.random.default_rng(0)
    texts = []
    for name in names:
        place = folder / "data" / f"{name}.jsonl"
        place.parent.mkdir(exist_ok=True)
        lines = []
        for record in range(2 * PERSONS):
            text = " ".join(generator.choice(words, 4 + record % 9))
            texts.append(text)
            lines.append(json.dumps({"text": text, "person": f"{name}-{record % PERSONS}"}))
        place.write_text("\n".join(lines) + "\n")
    tokenizer = Tokenizer.train(texts, 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=8,
        experts=4,
        experts_per_token=2,
        expert_hidden_size=16,
        max_positions=32,
    )
    model = Decoder(config, torch.Generator().manual_seed(0))
    save_model(model, tokenizer, folder / "base")
    return Ground(folder / "base", folder / "data")


@dataclass
class SmallFederation:
    """Homes in a folder, and everything that a test asks of them."""

    homes: Homes
    seed: int | None
    _trainers: dict[str, LocalTrainer] = field(default_factory=dict)

    @property
    def settings(self) -> RunSettings:
        return load_settings(self.homes.coordinator)

    def run(
        self,
        drops: Callable[[str, str], bool] = lambda name, action: False,
    ) -> OptimiserState:
        """Drive the run from wherever it stands to its end, in freshly opened parts."""
        client.app.close_nodes()
        grid = self.grid(drops)
        driver = RunDriver(self.homes.coordinator, GridChannel(grid))
        try:
            return driver.run()
        finally:
            driver.close()
            client.app.close_nodes()

    def grid(self, drops: Callable[[str, str], bool] = lambda name, action: False) -> LocalGrid:
        def by_type(name: str, message: Message) -> bool:
            return drops(name, message.metadata.message_type)

        return LocalGrid(client.app.app, self.homes.nodes, by_type)

    def bodies(self, owner: str, kind: str) -> list[dict[str, Any]]:
        """The entries of one kind in a node's or the coordinator's ledger."""
        home = self.homes.coordinator if owner == "coordinator" else self.homes.nodes[owner]
        lines = (home / "ledger" / "entries.jsonl").read_text().splitlines()
        entries = [json.loads(line) for line in lines]
        return [entry["body"] for entry in entries if entry["kind"] == kind]

    def verified(self) -> dict[str, LedgerReport]:
        """All ledgers by owner, after checking that each holds."""
        pins = load_pins(self.homes.root / PINS_FILE)
        reports = {report.name: report for report in verify_tree(self.homes.root, pins)}
        failures = [failure for report in reports.values() for failure in report.failures]
        assert failures == []
        return reports

    def trainer(self, name: str) -> LocalTrainer:
        """A node's data under the base model, read apart from the node."""
        if name not in self._trainers:
            home = self.homes.nodes[name]
            node = Node(home, "simulate")
            config = node.config
            node.close()
            model, tokenizer = load_model(self.settings.base_model)
            prepare(model, RECIPE)
            units = unit_rows(training_records(config), tokenizer, RECIPE)
            if self.settings.step.unit == INSTITUTION:
                units = units.as_one()
            self._trainers[name] = LocalTrainer(model, units, RECIPE, pad_draws=False)
        return self._trainers[name]

    def drawn(self, name: str, plan: RoundPlan) -> np.ndarray:
        """The units that a seeded node draws in a round."""
        key = derive_seeded_key(self.seed, "sample", name, plan.run, plan.round, plan.attempt)
        sampler = PoissonSampler(plan.step.sampling_probability, SeededUniform(key))
        return sampler.draw(self.trainer(name).unit_count)

    def clipped_sum(self, name: str, plan: RoundPlan) -> np.ndarray:
        """What a seeded node sums up in round 1."""
        return self.trainer(name).clipped_sum(self.drawn(name, plan), plan.step)

    def encoding(self, name: str, plan: RoundPlan) -> np.ndarray:
        """What a seeded node masks in round 1."""
        key = derive_seeded_key(self.seed, "noise", name, plan.run, plan.round, plan.attempt)
        source = SeededGaussian(key) if plan.step.is_private else None
        return encode(self.clipped_sum(name, plan), plan.step, source)


Make = Callable[..., SmallFederation]


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return lay_ground(tmp_path_factory.mktemp("ground"))


def build(
    ground: Ground,
    root: Path,
    step: Mapping[str, Any] | None = None,
    seed: int | None = SEED,
    **changes: Any,
) -> SmallFederation:
    """Build a federation: `step` changes the mechanism, `seed` None takes the system's entropy."""
    config = DataConfig(text_fields=("text",), unit_field="person")
    shares = share_out(find_institutions(ground.data, config), None)
    model, _ = load_model(ground.base_model)
    prepare(model, RECIPE)
    mechanism = PrivateStep(**{**STEP.model_dump(), **(step or {})})
    settings = {
        "federation": FEDERATION,
        "run": RUN,
        "n_min": 3,
        "colluders": 1,
        "rounds": 3,
        "step": mechanism,
        "recipe": RECIPE,
        "optimiser": OptimiserSettings(),
        "base_model": ground.base_model,
        "runtime": "simulate",
        "seeded": seed is not None,
        "deadline_s": 120.0,
    }
    homes = build_homes(
        root,
        shares,
        {**settings, **changes},
        budget=BUDGET if mechanism.is_private else Budget(None, 1e-5),
        vector_length=sum(size for _, size in trainable_layout(model)),
        seed=seed,
        node_options={"heldout": 0.0, "validation": 0.0},
    )
    return SmallFederation(homes, seed)


@pytest.fixture
def make_federation(ground: Ground, tmp_path: Path) -> Iterator[Make]:
    """See `build`."""
    made = itertools.count()
    yield lambda *args, **options: build(ground, tmp_path / f"f{next(made)}", *args, **options)
    client.app.close_nodes()


@pytest.fixture
def federation_of(tmp_path: Path) -> Iterator[Make]:
    """Build a federation of other members: their names, and changes of the settings."""

    def make(*names: str, **changes: Any) -> SmallFederation:
        place = tmp_path / "-".join(names)
        place.mkdir()
        return build(lay_ground(place, names), place / "federation", **changes)

    yield make
    client.app.close_nodes()


@pytest.fixture
def federation(make_federation: Make) -> SmallFederation:
    """Four institutions, n_min 3, one colluder, three seeded rounds with noise."""
    return make_federation()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[OpenedSum]:
    """Every sum that a coordinator opens from here on."""
    sums: list[OpenedSum] = []
    original = StreamingSum.open_sum

    def spy(self: StreamingSum, *args: Any, **options: Any) -> OpenedSum:
        sums.append(original(self, *args, **options))
        return sums[-1]

    monkeypatch.setattr(StreamingSum, "open_sum", spy)
    return sums


@pytest.fixture(scope="session")
def undisturbed(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the honest federation's three rounds come to, when nothing goes wrong."""
    return digest_of(build(ground, tmp_path_factory.mktemp("undisturbed")).run())


def digest_of(state: OptimiserState) -> str:
    return hashlib.sha256(state.vector_D.numpy().tobytes()).hexdigest()
