"""The arms of a comparison: who trains on what, under which protection, at the same budget.

| arm | data of one model | protection |
|---|---|---|
| local, local_dp | one institution's | none; its own DP-SGD, with all of the noise |
| central, central_dp | all, pooled | none; DP-SGD by a trusted server |
| federated, federated_dp | all, where it is | secure aggregation; and noise inside the sum |

All take the same number of steps at the same sampling probability, so that every step uses as many
records in total, and epsilon is the same for every unit.

Shapes: D coordinates of the trainable vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from arion.corpus import Corpus
from arion.evaluation import Evaluator, Losses, with_means
from arion.federation import FEDERATION, build_homes
from arion.mechanism import budget_of
from arion.run_federation import final_vector, run_federation
from arion.run_file import RunFile
from client.training import LocalTrainer, UnitRows, unit_rows
from coordinator.outcome import Observer
from models.folders import open_model
from models.optimiser import OptimiserState, adam_step
from models.recipe import prepare
from models.training_settings import Recipe
from models.vector import read_vector, write_vector
from privacy.dp.keystream import derive_seeded_key
from privacy.dp.lattice import release_variance
from privacy.dp.noise import SeededGaussian
from privacy.dp.plan import PrivateStep
from privacy.dp.sampling import PoissonSampler, SeededUniform
from privacy.units import INSTITUTION

POOLED = "all"

Vectors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What all arms share.

    Attributes:
        run: rounds, budget.
        corpus: the text.
        base: model folder that every arm starts from.
        recipe: local training.
        step: of federated_dp; the others' steps derive from it.

    """

    run: RunFile
    corpus: Corpus
    base: Path
    recipe: Recipe
    step: PrivateStep


@dataclass(frozen=True)
class Job:
    """One training: an arm at one learning rate and seed."""

    arm: str
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Name of the job's folder."""
        return f"{self.arm}-{self.learning_rate:g}-seed{self.seed}"

    @property
    def is_private(self) -> bool:
        """Whether there is noise."""
        return self.arm.endswith("_dp")


def train(
    job: Job, setting: Setting, home: Path, observer: Observer = lambda outcome, state: None
) -> Vectors:
    """Train an arm; returns trained parameters, fp32 [D], by institution or under `POOLED`.

    Args:
        job: which arm, rate and seed.
        setting: what all arms share.
        home: folder for a federation's homes.
        observer: called after every round of a federated arm.

    """
    if job.arm.startswith("federated"):
        return {POOLED: _train_federated(job, setting, home, observer)}
    units = units_of(setting)
    if job.arm.startswith("central"):
        # Units of two nodes are two units, whatever their keys.
        pooled = UnitRows(tuple(rows for own in units.values() for rows in own.rows))
        return {POOLED: _train_alone(job, setting, pooled, POOLED)}
    return {name: _train_alone(job, setting, own, name) for name, own in units.items()}


def arm_losses(evaluator: Evaluator, vectors: Vectors, part: str, limit: int) -> Losses:
    """Losses of an arm: of one model for all, or of each institution's own.

    Local models are each evaluated at home, and on the unseen institutions on average.
    """
    if POOLED in vectors:
        return evaluator.losses(vectors[POOLED], part, limit)
    found, away = {}, []
    unseen = evaluator.unseen if part == "heldout" else ()
    for name, vector_D in vectors.items():
        losses = evaluator.losses_of(vector_D, (name, *unseen), part, limit)
        found[name] = losses.pop(name)
        away.append(losses)
    for name in unseen:
        found[name] = sum(losses[name] for losses in away) / len(away)
    return with_means(found, unseen)


def units_of(setting: Setting) -> dict[str, UnitRows]:
    """The training units of each institution: one, where it is the unit itself."""
    _, tokenizer = open_model(setting.base)
    units = {
        name: unit_rows(split.train, tokenizer, setting.recipe)
        for name, split in setting.corpus.splits.items()
    }
    if setting.step.unit == INSTITUTION:
        return {name: own.as_one() for name, own in units.items()}
    return units


def _train_alone(job: Job, setting: Setting, units: UnitRows, label: str) -> Tensor:
    """SGD by whoever holds all of these units; with noise, plain central DP-SGD."""
    model, _ = open_model(setting.base)
    prepare(model, setting.recipe)
    trainer = LocalTrainer(model, units, setting.recipe, pad_draws=False)
    step = _step_alone(job, setting.step, units)
    optimiser = setting.run.training.optimiser(job.learning_rate)
    state, rounds = OptimiserState.start(read_vector(model)), setting.run.training.rounds
    for number in range(1, rounds + 1):
        sum_D = _noised_sum(trainer, step, (job.seed, label, number))
        variance = release_variance(step, 1)
        state = adam_step(
            state, sum_D, step.expected_batch, optimiser, rounds, noise_variance=variance
        )
        write_vector(model, state.vector_D)
    return state.average_D


def _step_alone(job: Job, step: PrivateStep, units: UnitRows) -> PrivateStep:
    changes: dict[str, float | int] = {
        "expected_batch": step.sampling_probability * len(units),
        "honest_survivors": 1,
    }
    if not job.is_private:
        changes |= {"noise_multiplier": 0.0, "ring_bits": 32}
    return PrivateStep(**{**step.model_dump(), **changes})


def _noised_sum(trainer: LocalTrainer, step: PrivateStep, place: tuple[int, str, int]) -> Tensor:
    """One release of central DP-SGD: a Poisson draw, clipped, plus N(0, (z 1.001 C)^2)."""
    seed, label, number = place
    uniform = SeededUniform(derive_seeded_key(seed, "alone-sample", label, number))
    drawn = PoissonSampler(step.sampling_probability, uniform).draw(trainer.unit_count)
    sum_D = torch.from_numpy(trainer.clipped_sum(drawn, step)).double()
    if step.is_private:
        gaussian = SeededGaussian(derive_seeded_key(seed, "alone-noise", label, number))
        sum_D += (
            step.noise_multiplier * step.sensitivity * torch.from_numpy(gaussian.normal(len(sum_D)))
        )
    return sum_D


def _train_federated(job: Job, setting: Setting, home: Path, observer: Observer) -> Tensor:
    """The ServerApp and ClientApp of every runtime, in one process."""
    run, step = setting.run, setting.step
    if not job.is_private:
        without = {**step.model_dump(), "noise_multiplier": 0.0, "ring_bits": 32}
        step = PrivateStep(**without)
        run = run.model_copy(update={"privacy": run.privacy.model_copy(update={"enabled": False})})
    colluders = run.federation.colluders
    homes = build_homes(
        home,
        setting.corpus.shares,
        {
            "federation": FEDERATION,
            "run": job.name,
            "n_min": step.honest_survivors + colluders,
            "colluders": colluders,
            "rounds": run.training.rounds,
            "step": step,
            "recipe": setting.recipe,
            "optimiser": run.training.optimiser(job.learning_rate),
            "base_model": setting.base,
            "groups": run.federation.groups,
            "plausible_batches": run.federation.plausible_batches,
            "runtime": "simulate",
            "seeded": True,
        },
        budget=budget_of(run),
        vector_length=_vector_length(setting),
        seed=job.seed,
        node_options={"heldout": run.data.heldout, "validation": run.data.validation},
    )
    run_federation(homes, observer, drop=run.federation.drop, seed=job.seed)
    return final_vector(homes.coordinator)


def _vector_length(setting: Setting) -> int:
    model, _ = open_model(setting.base)
    prepare(model, setting.recipe)
    return len(read_vector(model))
