"""The audit's arithmetic against closed forms and simulation; planted faults against the audit."""

import math

import numpy as np
import pytest
from scipy.stats import beta, binom

import client.release
from arion.audit_canaries import CanaryAudit, Claim
from arion.audit_mechanism import audit_mechanism
from client.entropy import Entropy
from privacy.audit.one_run import (
    AuditError,
    Guesses,
    audit_scores,
    epsilon_lower_bound,
    most_that_can_show,
    p_value,
)
from privacy.dp.accountant import epsilon
from privacy.dp.plan import PrivateStep

DELTA = 1e-5
STEP = PrivateStep(
    clipping_norm=1.0, noise_multiplier=3.0, sampling_probability=1.0, expected_batch=8.0,
    honest_survivors=3, releases=4, unit="record",
)  # fmt: skip


@pytest.mark.parametrize("right", [400, 500, 700, 1000])
def test_without_delta_the_bound_is_the_binomials(right: int) -> None:
    """P[X >= v] = 5% in closed form: Clopper and Pearson's lower limit."""
    low = beta.ppf(0.05, right, 1001 - right)
    expected = max(0.0, math.log(low / (1 - low)))
    found = epsilon_lower_bound(Guesses(1000, 1000, right), 0.0, 0.95)
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_p_value_is_the_theorems_sum() -> None:
    """Brute force over the definition, term by term."""
    guesses, eps, delta = Guesses(50, 20, 17), 1.2, 1e-3
    right = math.exp(eps) / (1 + math.exp(eps))
    mass = [binom.pmf(k, 20, right) for k in range(21)]
    alpha = max(sum(mass[max(0, 17 - i) : 17]) / i for i in range(1, 51))
    assert p_value(guesses, eps, delta) == pytest.approx(sum(mass[17:]) + 2 * 50 * delta * alpha)


def test_randomised_response_is_never_refuted_and_nearly_reached() -> None:
    """The tight case: answers right with chance e^eps / (1 + e^eps)."""
    generator, eps, found = np.random.default_rng(5), 2.0, []
    for _ in range(60):
        included = generator.random(2000) < 0.5
        truthful = generator.random(2000) < math.exp(eps) / (1 + math.exp(eps))
        found.append(
            audit_scores(np.where(truthful, included, ~included) + 0.0, included, 0.0, 0.95)[0]
        )
    assert sum(bound > eps for bound in found) <= 7  # 60 audits at 95%: 3 expected
    assert np.median(found) > 1.6


def test_guesses_in_the_dark_show_nothing() -> None:
    generator = np.random.default_rng(6)
    bounds = [
        audit_scores(generator.random(1000), generator.random(1000) < 0.5, DELTA, 0.95)[0]
        for _ in range(20)
    ]
    assert max(bounds) < 0.3


def test_more_canaries_can_show_more_until_delta_takes_over() -> None:
    assert most_that_can_show(1000, 0.0, 0.95) < most_that_can_show(10_000, 0.0, 0.95)
    assert most_that_can_show(10_000, 1e-4, 0.95) < most_that_can_show(10_000, 1e-6, 0.95)


def audited(step: PrivateStep, claimed: PrivateStep | None = None) -> CanaryAudit:
    claim = Claim(epsilon((claimed or step).schedule_event(), DELTA), DELTA, "the step")
    bound = audit_mechanism(step, DELTA, canaries=4000, confidence=0.95, entropy=Entropy(seed=11))
    return CanaryAudit(claim, 0.95, (bound,))


def test_the_releases_keep_their_claim_and_come_near_it() -> None:
    found = audited(STEP)
    claim = found.claim.epsilon
    assert not found.is_refuted
    assert 0.35 * claim < found.bound < claim < found.bounds[0].most


def test_a_tenth_of_the_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Weak:
        def __init__(self, source) -> None:
            self.seeded, self._source = source.seeded, source

        def normal(self, count: int) -> np.ndarray:
            return self._source.normal(count) / 10

    honest = client.release.encode
    monkeypatch.setattr(
        client.release, "encode", lambda x, step, source: honest(x, step, Weak(source))
    )
    assert audited(STEP).is_refuted


@pytest.mark.parametrize(
    "actual",
    [{"releases": 40}, {"noise_multiplier": 0.6}],
    ids=["more releases", "less noise"],
)
def test_another_mechanism_than_the_claimed_one_is_caught(actual: dict[str, float]) -> None:
    step = PrivateStep(**{**STEP.model_dump(), **actual})
    assert audited(step, STEP).is_refuted
    assert not audited(step).is_refuted


def test_drawing_everybody_under_a_sampled_claim_is_caught() -> None:
    sampled = PrivateStep(**{**STEP.model_dump(), "sampling_probability": 0.05})
    assert audited(STEP, sampled).is_refuted
    assert not audited(sampled).is_refuted


@pytest.mark.parametrize(
    ("scores", "included"),
    [
        (np.zeros(5), np.zeros(5, bool)),
        (np.zeros(20), np.zeros(19, bool)),
        (np.full(20, np.nan), np.zeros(20, bool)),
    ],
    ids=["few", "shapes", "nan"],
)
def test_a_void_audit_is_an_error(scores: np.ndarray, included: np.ndarray) -> None:
    with pytest.raises(AuditError):
        audit_scores(scores, included, DELTA, 0.95)
    with pytest.raises(AuditError):
        Guesses(10, 5, 6)
