"""A training of owned experts in memory, and what passes between its parts."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import client.experts_training
from client.entropy import Entropy
from client.experts_training import ExpertsTraining
from client.training import LocalTrainer, UnitRows
from models.checkpoint import model_digest
from models.config import ModelConfig
from models.decoder import Decoder
from models.optimiser import OptimiserState, adam_step
from models.owned import public_inputs
from models.tokenizer import Row, stack_rows
from models.training_settings import OptimiserSettings, Recipe
from models.vector import read_vector, views_by_name
from privacy.dp.lattice import release_variance
from privacy.dp.local_plan import LocalPlan
from privacy.dp.plan import PrivateStep
from privacy.experts_job import ExpertsJob

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=32, initializer_range=0.2,
    tie_embeddings=False,
)  # fmt: skip
SEED, UNITS, LENGTH, CLIP = 3, 24, 16, 0.05
RECIPE = Recipe(sequence_length=LENGTH, sequences_per_unit=2)
GENERATOR = torch.Generator().manual_seed(9)
PUBLIC = torch.randint(0, 32, (8, LENGTH), generator=GENERATOR)
ADAM = OptimiserSettings(learning_rate=1e-2, bias_correction=True, average_decay=0.5)
SHARED = {"honest_survivors": 1, "unit": "patient", "ring_bits": 32, "clipping_norm": CLIP}
STEP = PrivateStep(
    noise_multiplier=0.8, sampling_probability=0.4, expected_batch=9.0, releases=4, **SHARED
)
EMBEDDING = PrivateStep(
    noise_multiplier=2.0, sampling_probability=1.0, expected_batch=1.0, releases=1, **SHARED
)


def unit_rows_of(count: int = UNITS) -> UnitRows:
    """Units of one or two sequences over tokens 0 to 62."""
    generator = torch.Generator().manual_seed(4)

    def row(length: int) -> Row:
        return Row(tuple(torch.randint(0, 63, (length,), generator=generator).tolist()), length)

    return UnitRows(tuple(tuple(row(9 + u % 8) for _ in range(1 + u % 2)) for u in range(count)))


@dataclass
class Watched:
    """A training, and what passed between its parts."""

    training: ExpertsTraining
    trainer: LocalTrainer
    job: ExpertsJob
    drawn: list[np.ndarray] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)
    batches: list[float] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def train(self) -> "Watched":
        self.tensors = dict(self.training.train())
        return self


Start = Callable[..., Watched]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Open a training in memory; `step` changes the mechanism, `units` the data."""

    def make(
        units: UnitRows | None = None,
        *,
        step: dict[str, Any] | None = None,
        base: Decoder | None = None,
        seed: int | None = SEED,
        **changes: Any,
    ) -> Watched:
        base = base or Decoder(CONFIG, torch.Generator().manual_seed(1))
        changes = {"base_digest": model_digest(base)} | changes
        job = job_of(PrivateStep(**{**dict(STEP), **(step or {})}), **changes)
        trainer = LocalTrainer(base, units or unit_rows_of(), RECIPE, pad_draws=False)
        public = public_inputs(base, PUBLIC)
        training = ExpertsTraining(job, trainer, public, tmp_path, Entropy(seed), save_every=2)
        return watch(Watched(training, trainer, job), monkeypatch)

    return make


def job_of(step: PrivateStep, **changes: Any) -> ExpertsJob:
    experts = len(changes.get("sources", (1, 3)))
    sizes = {"gate_up": 48 * 32, "down": 32 * 24}
    layout = tuple(
        (f"blocks.{layer}.experts.owned.{kind}.weight", experts * size)
        for layer in range(2)
        for kind, size in sizes.items()
    )
    values = {
        "run": "experts",
        "owner": "north",
        "base_digest": "0" * 64,
        "public_digest": "0" * 64,
        "sources": (1, 3),
        "train_rows": False,
        "gain": 1.0,
        "margin": 0.0,
        "sequence_length": LENGTH,
        "sequences_per_unit": 2,
        "optimiser": ADAM,
        "trainable": layout,
        "delta_1e15": 10**9,
        "seeded": True,
        "data": "Letters.",
        "licence": "Research.",
    }
    plan = LocalPlan(
        embedding=EMBEDDING,
        step=step,
        embedding_length=64,
        vector_length=sum(size for _, size in layout),
    )
    return ExpertsJob(**values | {"plan": plan} | changes)


def watch(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Watched:
    clipped_sum, trainer = watched.trainer.clipped_sum, watched.trainer

    def spy_sum(drawn: np.ndarray, step: PrivateStep) -> np.ndarray:
        watched.drawn.append(drawn)
        watched.before.append(read_vector(trainer.model))
        return clipped_sum(drawn, step)

    def spy_adam(
        state: OptimiserState, sum_D: Tensor, batch: float, *rest: Any, noise_variance: float
    ) -> OptimiserState:
        watched.sums.append(sum_D.numpy().copy())
        watched.batches.append(batch)
        assert noise_variance == release_variance(watched.job.plan.step, 1)
        return adam_step(state, sum_D, batch, *rest, noise_variance=noise_variance)

    monkeypatch.setattr(trainer, "clipped_sum", spy_sum)
    monkeypatch.setattr(client.experts_training, "adam_step", spy_adam)
    return watched


def brute_force_sum(watched: Watched, number: int) -> np.ndarray:
    """Clip each drawn unit's own gradient by autograd alone, and add up, fp64."""
    model, units = watched.trainer.model, watched.trainer.units
    parameters = [p for p in model.parameters() if p.requires_grad]
    views = views_by_name(model, watched.before[number])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(views[name])
    total = np.zeros(watched.job.plan.vector_length)
    for unit in watched.drawn[number]:
        loss = model.loss(*stack_rows(units.rows[unit], LENGTH))
        mean = loss.total_B.sum() / loss.tokens_B.sum()
        grads = torch.autograd.grad(mean, parameters)
        gradient = torch.cat([g.flatten() for g in grads]).double().numpy()
        total += gradient * min(1.0, CLIP / max(np.linalg.norm(gradient), 1e-12))
    return total


def has_the_plans_noise(watched: Watched) -> bool:
    """The steps' noise has the plan's mean and variance, each at a significance of 1e-6."""
    pairs = [(s, brute_force_sum(watched, n)) for n, s in enumerate(watched.sums)]
    deviation = math.sqrt(release_variance(watched.job.plan.step, 1))
    noise = np.concatenate([(s - x) / deviation for s, x in pairs])
    mean = abs(noise.mean()) * math.sqrt(len(noise))
    variance = abs(noise.var() - 1) * math.sqrt(len(noise) / 2)
    return max(mean, variance) < stats.norm.isf(5e-7)
