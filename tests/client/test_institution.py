"""A whole institution as the unit: one clipped contribution, nothing sampled, nothing else let out.

Shapes: D coordinates of the trainable vector.
"""

import math
import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from arion.toml_file import write_toml
from client.config import CONSENT_FILE, NODE_FILE, NodeError
from client.node import Node
from client.training import LocalTrainer, UnitRows, unit_rows
from client.training_records import training_records
from models.checkpoint import load_model
from models.recipe import prepare
from models.tokenizer import stack_rows
from privacy.dp.accountant import epsilon
from privacy.dp.plan import PrivateStep
from privacy.dp.rdp_filter import ORDERS
from privacy.rounds import PlanCode, PlanRefused
from tests.small_federation import NAMES, NO_NOISE, RECIPE, STEP, Ground, SmallFederation
from tests.small_hands import Hands

WHOLE = {"unit": "institution", "sampling_probability": 1.0, "expected_batch": 4.0}
ALL = np.array([0], np.int64)


def step_with(**changes: Any) -> PrivateStep:
    return PrivateStep(**{**STEP.model_dump(), **WHOLE, **changes})


def trainer(ground: Ground, units: UnitRows, scale: float = 1.0, **options: Any) -> LocalTrainer:
    """A trainer; `scale` multiplies the head, and with it nearly all gradients."""
    model, _ = load_model(ground.base_model)
    prepare(model, RECIPE)
    with torch.no_grad():
        model.embedding.mul_(scale)
    return LocalTrainer(model, units, RECIPE, **options)


@pytest.fixture
def records(make_federation: Callable[..., SmallFederation], ground: Ground) -> UnitRows:
    """North's forty records, of twenty persons: a unit for each person."""
    home = make_federation(WHOLE).homes.nodes["north"]
    node = Node(home, "simulate")
    config = node.config
    node.close()
    _, tokenizer = load_model(ground.base_model)
    return unit_rows(training_records(config), tokenizer, RECIPE)


def brute_force(local: LocalTrainer, step: PrivateStep) -> torch.Tensor:
    """Plain autograd of the mean loss over all of the institution's tokens, then the clip, [D]."""
    rows = [row for unit in local.units.rows for row in unit]
    loss = local.model.loss(*stack_rows(rows, 24))
    parameters = [p for p in local.model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(loss.total_B.sum() / loss.tokens_B.sum(), parameters)
    gradient_D = torch.cat([part.flatten() for part in parts]).double()
    if not step.is_private:
        return gradient_D
    norm, bound = float(gradient_D.norm()), step.clipping_norm
    automatic = step.clipping == "automatic"
    return gradient_D * (bound / (norm + 0.01) if automatic else min(1.0, bound / norm))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{}, {"clipping_norm": 0.01}, {"clipping_norm": 50.0}, {"clipping": "automatic"}, NO_NOISE],
    ids=str,
)
def test_the_contribution_is_the_clipped_gradient_of_the_mean_loss(
    ground: Ground, records: UnitRows, chunk: int, pad: bool, changes: dict[str, Any]
) -> None:
    step = step_with(**changes)
    local = trainer(ground, records.as_one(), chunk_sequences=chunk, pad_draws=pad)
    assert local.unit_count == 1
    found_D = torch.from_numpy(local.clipped_sum(ALL, step)).double()
    expected_D = brute_force(local, step)
    assert float((found_D - expected_D).norm()) <= 1e-5 * float(expected_D.norm())


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("chunk", [4, 1000])
def test_no_gradient_is_large_enough_to_pass_the_bound(
    ground: Ground, records: UnitRows, scale: float, chunk: int
) -> None:
    """Clipped person by person, as under another unit, the same data would exceed it."""
    step = step_with(clipping_norm=0.5)
    whole = trainer(ground, records.as_one(), scale, chunk_sequences=chunk)
    assert np.linalg.norm(brute_force(whole, step_with(**NO_NOISE))) > step.clipping_norm
    assert np.linalg.norm(whole.clipped_sum(ALL, step).astype(float)) <= step.clipping_norm * 1.0001
    apart = trainer(ground, records, scale, chunk_sequences=chunk)
    everyone = np.arange(len(records))
    assert np.linalg.norm(apart.clipped_sum(everyone, step)) > 2 * step.clipping_norm


def test_a_gradient_that_is_not_finite_contributes_nothing(
    ground: Ground, records: UnitRows
) -> None:
    local = trainer(ground, records.as_one(), chunk_sequences=4)
    with torch.no_grad():
        local.model.embedding[:] = math.inf
    assert not local.clipped_sum(ALL, step_with()).any()


def test_one_record_may_move_more_than_the_bound_of_an_institution(
    ground: Ground, records: UnitRows
) -> None:
    """So an epsilon per institution is not one per record: those who add it move by up to 2 C."""
    step = step_with(clipping_norm=1e-3)
    rows = [row for unit in records.rows for row in unit]
    short = sorted(rows, key=lambda row: len(row.ids))
    moved = []
    for one in short[:3]:
        for other in short[-12:]:
            alone, both = UnitRows(((one,),)), UnitRows(((one, other),))
            sums = [trainer(ground, u).clipped_sum(ALL, step).astype(float) for u in (alone, both)]
            moved.append(float(np.linalg.norm(sums[0] - sums[1])) / step.clipping_norm)
    assert 1.0 < max(moved) <= 2.0


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Exact epsilon of a Gaussian mechanism of sensitivity mu (Balle and Wang 2018, eq. 6)."""

    def excess(eps: float) -> float:
        a, b = -eps / mu + mu / 2, -eps / mu - mu / 2
        return float(stats.norm.cdf(a) - math.exp(eps) * stats.norm.cdf(b) - delta)

    return float(optimize.brentq(excess, 0, 500, xtol=1e-12))


@pytest.mark.parametrize(("noise", "releases"), [(1.2, 6), (30.0, 300), (80.0, 1000), (5.0, 1)])
def test_epsilon_is_that_of_composed_gaussians(noise: float, releases: int) -> None:
    """Whatever rate a step names; sampling would have made it smaller."""
    exact = gaussian_epsilon(math.sqrt(releases) / noise, 1e-6)
    for q in (1.0, 0.01):
        step = step_with(noise_multiplier=noise, releases=releases, sampling_probability=q)
        assert exact <= epsilon(step.schedule_event(), 1e-6) <= exact * 1.001 + 2e-4
    record = PrivateStep(**{**step.model_dump(), "unit": "record"})
    assert epsilon(record.schedule_event(), 1e-6) < 0.5 * exact


def test_a_whole_run_is_charged_and_verified(
    make_federation: Callable[..., SmallFederation], opened: list[Any]
) -> None:
    """Four institutions: every node releases its clipped whole, and the sum is theirs."""
    federation = make_federation(WHOLE)
    federation.run()
    reports = federation.verified()
    exact = gaussian_epsilon(math.sqrt(6) / 1.2, 1e-5)
    for name in NAMES:
        assert exact <= reports[name].epsilon_micro / 1e6 <= exact * 1.001 + 2e-3
        (reserved,) = federation.bodies(name, "run-reserved")
        assert reserved["unit"] == "institution"
        assert reserved["event"]["sampling_probability"] == 1.0
    assert len(opened) == 3


def test_the_sum_is_that_of_whole_institutions(take: Callable[..., Hands]) -> None:
    """What the nodes really release: four clipped gradients of brute force, and seeded noise."""
    hands = take(step={**WHOLE, "clipping_norm": 0.5})
    plan, federation = hands.plan(), hands.federation
    words = hands.open(plan).words
    for node in hands.nodes.values():
        node.close()
    assert np.array_equal(words, sum(federation.encoding(name, plan) for name in NAMES))
    for name in NAMES:
        expected_D = brute_force(federation.trainer(name), plan.step)
        assert float(expected_D.norm()) == pytest.approx(plan.step.clipping_norm, rel=1e-6)
        found_D = torch.from_numpy(federation.clipped_sum(name, plan)).double()
        assert float((found_D - expected_D).norm()) <= 1e-5 * plan.step.clipping_norm


def change(hands: Hands, name: str, file: str, **values: Any) -> None:
    path = hands.federation.homes.nodes[name] / file
    write_toml(path, tomllib.loads(path.read_text()) | values)
    hands.reopen(name)


def refused(hands: Hands, **plan: Any) -> None:
    """North refuses by the clause `unit`, writes it down, and seals nothing."""
    with pytest.raises(PlanRefused) as caught:
        hands.release("north", hands.plan(**plan))
    assert (caught.value.code, caught.value.clause) == (PlanCode.WRONG_UNIT, "unit")
    assert hands.federation.bodies("north", "refusal")[-1]["clause"] == "unit"
    assert not hands.federation.bodies("north", "run-reserved")
    assert not hands.outbox("north")


@pytest.mark.parametrize("q", [0.999, 0.5])
def test_a_plan_that_samples_the_institution_is_refused(
    take: Callable[..., Hands], q: float
) -> None:
    refused(take(step=WHOLE), step={"sampling_probability": q})


@pytest.mark.parametrize("unit", ["record", "person"])
def test_a_finer_unit_is_refused_by_a_consent_for_the_institution(
    take: Callable[..., Hands], unit: str
) -> None:
    refused(take(step=WHOLE), step={"unit": unit})


def test_the_institution_is_refused_by_a_consent_for_a_finer_unit(hands: Hands) -> None:
    refused(hands, step=WHOLE)


def test_parts_that_were_clipped_apart_are_refused(
    take: Callable[..., Hands], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that forgot to join its units would move the sum by twenty times the bound."""
    monkeypatch.setattr(UnitRows, "as_one", lambda self: self)
    refused(take(step=WHOLE))


def test_a_part_of_an_institution_is_not_the_whole(take: Callable[..., Hands]) -> None:
    hands = take(step=WHOLE)
    with pytest.raises(NodeError, match="parts = 1"):
        change(hands, "north", NODE_FILE, parts=2)


def test_a_filter_charges_the_gaussian(take: Callable[..., Hands]) -> None:
    """At order a the divergence of an unsampled Gaussian is a / (2 z^2)."""
    hands = take(step=WHOLE)
    change(hands, "north", CONSENT_FILE, accountant="filter", epsilon_if_all_others_collude=100.0)
    hands.release("north", hands.plan())
    (debit,) = hands.federation.bodies("north", "release-debited")
    for order, units in zip(ORDERS, debit["charge"]["rdp"], strict=True):
        assert int(units) / 1e12 == pytest.approx(order / (2 * 1.2**2), rel=1e-8)
    assert hands.federation.verified()["north"].is_ok
