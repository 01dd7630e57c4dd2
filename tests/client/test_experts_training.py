"""Training of owned experts: what runs is what the plan's event says, step by step.

What is replaced: nothing but, where a test says so, the clipped sum (by zeros, for speed) or the
source of noise (by a wrong one, which the test must reject).
"""

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
from client.experts_training import STATE_FILE, ExpertsTraining
from client.training import LocalTrainer, UnitRows
from models.checkpoint import model_digest
from models.config import ModelConfig
from models.decoder import Decoder
from models.optimiser import OptimiserSettings, OptimiserState, adam_step
from models.owned import public_inputs, router_inputs, router_rows
from models.recipe import Recipe
from models.tokenizer import Row, stack_rows
from models.vector import read_vector, views_by_name
from privacy.dp.domain_embedding import release_embedding
from privacy.dp.lattice import release_variance
from privacy.dp.local_plan import LocalPlan
from privacy.dp.noise import SeededGaussian, derive_seeded_key
from privacy.dp.plan import PrivateStep
from privacy.dp.sampling import PoissonSampler, SeededUniform
from privacy.experts_job import ExpertsJob
from privacy.round_plan import PlanRefused

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


def test_the_steps_are_clipped_sums_with_the_plans_noise(start: Start) -> None:
    watched = start().train()
    assert len(watched.sums) == 4
    assert release_variance(STEP, 1) == pytest.approx((0.8 * 1.001 * CLIP) ** 2, rel=0.01)
    assert has_the_plans_noise(watched)


@pytest.mark.parametrize("factor", [0.1, 0.9, 1.1])
def test_noise_of_another_scale_is_noticed(
    start: Start, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    right = SeededGaussian.normal
    monkeypatch.setattr(SeededGaussian, "normal", lambda self, n: factor * right(self, n))
    assert not has_the_plans_noise(start().train())


def test_a_skipped_clip_is_noticed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = start()
    clipped_sum = watched.trainer.clipped_sum
    loose = PrivateStep(**{**dict(STEP), "clipping_norm": 1e6})
    monkeypatch.setattr(watched.trainer, "clipped_sum", lambda drawn, _: clipped_sum(drawn, loose))
    assert not has_the_plans_noise(watched.train())


def test_system_noise_is_the_plans_too(start: Start) -> None:
    """Deterministic in outcome: each of two checks errs with probability 1e-6."""
    assert has_the_plans_noise(start(seed=None, seeded=False).train())


def zeros(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Let every draw sum to zero without training, and still be watched."""
    size = watched.job.plan.vector_length

    def nothing(drawn: np.ndarray, step: PrivateStep) -> np.ndarray:
        watched.drawn.append(drawn)
        return np.zeros(size, np.float32)

    monkeypatch.setattr(watched.trainer, "clipped_sum", nothing)
    return watched


def is_sampled_at(rate: float, drawn: list[np.ndarray]) -> bool:
    low, high = stats.binom.interval(1 - 1e-6, len(drawn) * UNITS, rate)
    return bool(low <= sum(map(len, drawn)) <= high)


def test_units_are_drawn_at_the_plans_rate(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = zeros(start(step={"releases": 150}), monkeypatch).train()
    assert is_sampled_at(0.4, watched.drawn)
    assert not is_sampled_at(0.48, watched.drawn)
    assert not is_sampled_at(0.32, watched.drawn)
    assert len({tuple(drawn) for drawn in watched.drawn}) == 150  # no two draws alike


def test_the_divisor_is_the_plans_whatever_was_drawn(start: Start) -> None:
    watched = start().train()
    assert len({len(drawn) for drawn in watched.drawn}) > 1
    assert watched.batches == [9.0] * 4


@pytest.mark.parametrize("average_decay", [0.0, 0.5])
def test_draw_and_noise_come_from_the_plan_and_the_place_alone(
    start: Start, average_decay: float
) -> None:
    """The whole chain is computed again from its parts; its average is what leaves."""
    optimiser = ADAM.model_copy(update={"average_decay": average_decay})
    watched = start(optimiser=optimiser).train()
    job, variance = watched.job, release_variance(STEP, 1)
    place = ("north", "experts", job.digest().hex())
    for number, drawn in enumerate(watched.drawn, start=1):
        uniform = SeededUniform(derive_seeded_key(SEED, "sample", *place, number))
        assert np.array_equal(PoissonSampler(0.4, uniform).draw(UNITS), drawn)
    state = OptimiserState.start(watched.before[0])
    for sums in watched.sums:
        sum_D = torch.from_numpy(sums)
        state = adam_step(state, sum_D, 9.0, optimiser, 4, noise_variance=variance)
    released = read_vector(watched.trainer.model)
    assert torch.equal(released, state.average_D)
    assert torch.equal(released, state.vector_D) is (average_decay == 0)


def test_an_empty_draw_still_noises_and_steps(start: Start) -> None:
    watched = start(step={"sampling_probability": 1e-12}).train()
    assert [len(drawn) for drawn in watched.drawn] == [0] * 4
    assert has_the_plans_noise(watched)
    assert not torch.equal(watched.before[0], watched.before[-1])


def test_experts_that_no_token_uses_get_noise(start: Start) -> None:
    """One unit of one token leaves experts without any: every coordinate of theirs is noised."""
    unit = UnitRows(((Row((5, 6), 1),),))
    watched = start(unit, step={"sampling_probability": 1.0}).train()
    unused = 0
    for number, sums in enumerate(watched.sums):
        clipped = brute_force_sum(watched, number)
        for part, exact in zip(np.split(sums, 12), np.split(clipped, 12), strict=True):
            if not exact.any():
                unused += 1
                deviation = part.std() / math.sqrt(release_variance(STEP, 1))
                assert abs(deviation - 1) < 5 / math.sqrt(2 * len(part))
    assert unused > 0


def test_a_unit_that_is_not_finite_contributes_zero(start: Start) -> None:
    """Token 63 has no finite embedding; one unit holds it, and is drawn in every step."""
    base = Decoder(CONFIG, torch.Generator().manual_seed(1))
    base.embedding.data[63] = math.nan
    honest = unit_rows_of(5)
    foul = UnitRows((*honest.rows, (Row((63, 1, 2, 63, 4), 5),)))
    everyone = {"sampling_probability": 1.0, "releases": 1}
    watched = start(foul, base=base, step=everyone).train()
    assert watched.drawn[0].tolist() == [0, 1, 2, 3, 4, 5]
    watched.drawn[0] = np.arange(5)
    assert has_the_plans_noise(watched)
    assert all(torch.isfinite(tensor).all() for tensor in watched.tensors.values())


def test_rows_come_from_the_noised_sum_of_clipped_unit_embeddings(start: Start) -> None:
    watched = start()
    base = Decoder(CONFIG, torch.Generator().manual_seed(1))
    centre = router_inputs(base, PUBLIC).flatten(1, 2).mean(1)
    embeddings = []
    for rows in unit_rows_of().rows:
        x_LD = torch.zeros(2, 32)
        for row in rows:
            inputs = router_inputs(base, torch.tensor([row.ids[:-1]]))[:, 0]
            x_LD += inputs.mean(1) - centre
        embeddings.append(x_LD)
    place = ("north", "experts", watched.job.digest().hex(), 0)
    source = SeededGaussian(derive_seeded_key(SEED, "noise", *place))
    total = release_embedding(embeddings, EMBEDDING, 64, source)
    rows = router_rows(
        base, torch.from_numpy(total).float().view(2, 32), (1, 3), public_inputs(base, PUBLIC),
        gain=1.0, margin=0.0,
    )  # fmt: skip
    watched.train()
    for layer in (0, 1):
        found = watched.tensors[f"model.layers.{layer}.mlp.gate.weight"]
        torch.testing.assert_close(found, rows[layer], rtol=1e-4, atol=1e-5)


def test_the_frozen_model_does_not_change(start: Start) -> None:
    base = Decoder(CONFIG, torch.Generator().manual_seed(1))
    before = {name: p.clone() for name, p in base.named_parameters()}
    start(base=base).train()
    after = dict(base.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("train_rows", [True, False])
def test_rows_move_only_where_the_job_says_so(start: Start, train_rows: bool) -> None:
    layout = job_of(STEP).trainable
    if train_rows:
        routers = [(f"blocks.{layer}.experts.owned.router.weight", 64) for layer in (0, 1)]
        layout = (routers[0], *layout[:2], routers[1], *layout[2:])
    size = sum(count for _, count in layout)
    plan = LocalPlan(embedding=EMBEDDING, step=STEP, embedding_length=64, vector_length=size)
    watched = start(train_rows=train_rows, trainable=layout, plan=plan).train()
    first = watched.before[0]
    moved = {name: not torch.equal(a, b) for (name, a), (_, b) in zip(
        views_by_name(watched.trainer.model, first).items(),
        views_by_name(watched.trainer.model, read_vector(watched.trainer.model)).items(),
        strict=True,
    )}  # fmt: skip
    assert all(moved.values())
    assert any("router" in name for name in moved) is train_rows


SHORT = LocalPlan(embedding=EMBEDDING, step=STEP, embedding_length=32, vector_length=9216)


@pytest.mark.parametrize(
    "change",
    [
        {"sources": (1,)},
        {"train_rows": True},
        {"base_digest": "0" * 64},
        {
            "plan": LocalPlan(
                embedding=EMBEDDING, step=STEP, embedding_length=32, vector_length=9216
            )
        },
    ],
    ids=["fewer experts", "rows too", "another base", "shorter embedding"],
)
def test_another_model_than_was_charged_is_refused(start: Start, change: dict[str, Any]) -> None:
    """Refused before a reservation: the gate opens the training first."""
    with pytest.raises(PlanRefused, match="base, bank and embedding that the job names"):
        start(**{"trainable": job_of(STEP).trainable} | change)


class Stopped(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_training_goes_on_from_its_durable_state(
    start: Start, tmp_path: Path, steps: int
) -> None:
    """With seeded streams an interrupted training comes to the same module, bit for bit."""
    whole = start().train().tensors
    for path in tmp_path.iterdir():
        path.unlink()
    first = start()

    def stop(what: str, done: int, total: int) -> None:
        if (what, done, total) == ("steps", steps, 4):
            raise Stopped

    first.training._watch = stop
    with pytest.raises(Stopped):
        first.train()
    assert (tmp_path / STATE_FILE).exists() is (steps >= 2)
    second = start().train()
    assert len(second.drawn) == 4 - 2 * (steps // 2)
    assert all(torch.equal(whole[name], tensor) for name, tensor in second.tensors.items())


def test_what_is_drawn_anew_gets_new_noise(start: Start) -> None:
    """Under the system's entropy no two drawings of one step share noise or sample."""
    first = start(seed=None, seeded=False)

    def stop(what: str, done: int, total: int) -> None:
        if what == "steps":
            raise Stopped

    first.training._watch = stop
    with pytest.raises(Stopped):
        first.train()
    second = start(seed=None, seeded=False).train()
    assert len(second.sums) == 4
    one, other = (w.sums[0] - brute_force_sum(w, 0) for w in (first, second))
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(len(one))


def test_a_state_without_its_rows_is_not_used(start: Start, tmp_path: Path) -> None:
    """Else noise of two embedding releases would be in one module."""
    whole = start().train()
    assert (tmp_path / STATE_FILE).exists()
    (tmp_path / client.experts_training.ROWS_FILE).unlink()
    again = start().train()
    assert len(again.drawn) == len(whole.drawn) == 4
