"""Training of owned experts: what runs is what the plan's event says, step by step.

What is replaced: nothing but, where a test says so, the clipped sum (by zeros, for speed) or the
source of noise (by a wrong one, which the test must reject).
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from client.training import UnitRows
from models.decoder import Decoder
from models.optimiser import OptimiserState, adam_step
from models.owned import public_inputs, router_inputs, router_rows
from models.tokenizer import Row
from models.vector import read_vector, views_by_name
from privacy.dp.domain_embedding import release_embedding
from privacy.dp.lattice import release_variance
from privacy.dp.local_plan import LocalPlan
from privacy.dp.noise import SeededGaussian, derive_seeded_key
from privacy.dp.plan import PrivateStep
from privacy.dp.sampling import PoissonSampler, SeededUniform
from privacy.round_plan import PlanRefused
from tests.client.watched_experts import (
    ADAM,
    CLIP,
    CONFIG,
    EMBEDDING,
    PUBLIC,
    SEED,
    STEP,
    UNITS,
    Start,
    Watched,
    brute_force_sum,
    has_the_plans_noise,
    job_of,
    start,
    unit_rows_of,
)

__all__ = ["start"]  # a fixture


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
