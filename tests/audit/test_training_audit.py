"""Canaries through the real trainer: planted faults are caught, the right run is not.

How often, over seeds, is in docs/audit.md.
"""

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import norm

import client.release
import client.training
from arion.audit_canaries import (
    CanaryAudit,
    Claim,
    dealt,
    draw_included,
    log_likelihood_ratio,
    share_of_confidence,
)
from arion.audit_training import AuditedTraining, _Attacker, audit_training, canary_units
from client.entropy import Entropy
from models.config import ModelConfig
from models.decoder import Decoder
from models.recipe import prepare
from models.training_settings import OptimiserSettings, Recipe
from privacy.audit.one_run import AuditError
from privacy.dp.accountant import epsilon
from privacy.dp.lattice import encode, release_variance
from privacy.dp.plan import PrivateStep

DELTA, SEED, CANARIES = 1e-5, 5, 1000
CONFIG = ModelConfig(
    vocab_size=320, hidden_size=24, layers=1, heads=2, kv_heads=1, head_dim=12, experts=3,
    experts_per_token=2, expert_hidden_size=24, max_positions=16,
)  # fmt: skip
STEP = PrivateStep(
    clipping_norm=0.1, noise_multiplier=3.0, sampling_probability=1.0, expected_batch=500.0,
    honest_survivors=3, releases=4, unit="record",
)  # fmt: skip
SAMPLED = PrivateStep(
    **{**STEP.model_dump(), "sampling_probability": 0.5, "noise_multiplier": 2.5, "releases": 8}
)


def training(step: PrivateStep, kind: str = "full") -> AuditedTraining:
    model = Decoder(CONFIG, torch.Generator().manual_seed(3))
    recipe = Recipe(kind=kind, sequence_length=8)
    prepare(model, recipe)
    return AuditedTraining(model, step, recipe, OptimiserSettings())


def audited(step: PrivateStep, seed: int = SEED, kind: str = "full") -> CanaryAudit:
    claim = Claim(epsilon(step.schedule_event(), DELTA), DELTA, "the step")
    bounds = audit_training(
        training(step, kind), DELTA, canaries=CANARIES, confidence=share_of_confidence(0.95, 2),
        entropy=Entropy(seed),
    )  # fmt: skip
    return CanaryAudit(claim, 0.95, bounds)


def plant_weak_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the noise that is claimed."""

    class Weak:
        def __init__(self, source) -> None:
            self.seeded, self._source = source.seeded, source

        def normal(self, count: int) -> np.ndarray:
            return self._source.normal(count) / 10

    monkeypatch.setattr(
        client.release, "encode", lambda x, step, source: encode(x, step, Weak(source))
    )


def plant_no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients enter the node's sum as long as they are."""
    honest = client.training.add_clipped_gradients
    monkeypatch.setattr(
        client.training,
        "add_clipped_gradients",
        lambda model, chunk, clip, sums, **options: honest(model, chunk, 1e6, sums, **options),
    )


@pytest.mark.parametrize("step", [STEP, SAMPLED], ids=["everybody", "sampled"])
def test_the_right_run_keeps_its_claim(step: PrivateStep) -> None:
    found = audited(step)
    assert 0.02 < found.bound < found.claim.epsilon
    assert not found.is_refuted
    assert found.claim.epsilon < found.bounds[0].most  # a fault could have been shown


@pytest.mark.parametrize(
    ("step", "plant"),
    [(STEP, plant_weak_noise), (SAMPLED, plant_weak_noise), (SAMPLED, plant_no_clip)],
    ids=["a tenth of the noise", "a tenth of the noise, sampled", "no clip, sampled"],
)
def test_a_planted_fault_is_caught(
    step: PrivateStep,
    plant: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    assert audited(step).is_refuted


def test_training_by_adapters_is_audited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_weak_noise(monkeypatch)
    few = PrivateStep(**{**STEP.model_dump(), "releases": 2})
    weak = audit_training(
        training(few, "lora"), DELTA, canaries=300, confidence=0.95, entropy=Entropy(SEED)
    )
    assert weak[0].epsilon > 1.0


@pytest.mark.parametrize("rule", ["fixed", "automatic"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_the_attacker_reads_is_of_single_gradients(kind: str, rule: str) -> None:
    """Against one backward pass per canary in float64, with a sum of noise's size."""
    trained = training(STEP, kind)
    units = canary_units(12, trained, Entropy(1))
    model = copy.deepcopy(trained.model).double()
    own_MD = []
    for (row,) in units.rows:
        ids = torch.tensor([row.ids])
        model.zero_grad()
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        (loss.total_B / loss.tokens_B).sum().backward()
        own_MD.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    own_MD = torch.stack(own_MD)
    length_M = own_MD.norm(dim=1)
    clipped_M = length_M.clamp(max=STEP.clipping_norm)
    if rule == "automatic":
        clipped_M = STEP.clipping_norm * length_M / (length_M + 0.01)
    generator = torch.Generator().manual_seed(2)
    sum_D = 0.3 * torch.randn(own_MD.shape[1], generator=generator, dtype=torch.float64)
    unit_MD = own_MD / length_M[:, None]
    rest_D = sum_D - 0.5 * (clipped_M[:, None] * unit_MD).sum(0)  # half of all: q is 1
    along_M = unit_MD @ rest_D + 0.5 * clipped_M
    expected = log_likelihood_ratio(along_M.numpy(), clipped_M.numpy(), STEP)
    step = STEP.model_copy(update={"clipping": rule})
    found = _Attacker(trained.model, units, step).read(sum_D)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_canaries_are_fixed_before_and_seldom_alike() -> None:
    trained = training(STEP)
    first, again = (canary_units(500, trained, Entropy(7)) for _ in range(2))
    assert first == again != canary_units(500, trained, Entropy(8))
    assert len({unit[0].ids for unit in first.rows}) == 500
    included = draw_included(4000, Entropy(7), "training")
    assert 0.46 < included.mean() < 0.54


def test_every_canary_that_is_in_has_one_member() -> None:
    included = draw_included(100, Entropy(1))
    together = np.concatenate(dealt(included, 3))
    assert sorted(together) == list(np.flatnonzero(included))


def test_the_ratio_is_that_of_two_densities() -> None:
    """A quarter drawn, three quarters noise alone, against noise alone."""
    step = PrivateStep(**{**STEP.model_dump(), "sampling_probability": 0.25})
    spread = math.sqrt(release_variance(step, step.honest_survivors))
    at, length = np.array([-0.4, 0.0, 0.7]), 0.06
    within = 0.25 * norm.pdf(at, length, spread) + 0.75 * norm.pdf(at, 0, spread)
    expected = np.log(within / norm.pdf(at, 0, spread))
    np.testing.assert_allclose(log_likelihood_ratio(at, length, step), expected, rtol=1e-9)


def test_the_confidence_is_shared_out() -> None:
    assert share_of_confidence(0.95, 1) == pytest.approx(0.95)
    assert share_of_confidence(0.95, 5) == pytest.approx(0.99)
    for void in (0.0, 1.0, math.nan):
        with pytest.raises(AuditError):
            share_of_confidence(void, 2)


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(AuditError, match="at least 10"):
        audit_training(training(STEP), DELTA, canaries=9, confidence=0.95, entropy=Entropy(1))
