"""A module's plan binds its two mechanisms, and its epsilon is that of what runs."""

import json
import math

import pytest
from dp_accounting.dp_event import (
    ComposedDpEvent,
    GaussianDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from scipy import optimize, stats

from privacy.dp.accountant import AccountantError, epsilon
from privacy.dp.events import event_from_json
from privacy.dp.local_plan import LocalPlan, calibrate_local_plan
from privacy.dp.plan import PrivateStep

DELTA = 1e-6
STEP = {
    "clipping_norm": 0.5,
    "noise_multiplier": 1.5,
    "sampling_probability": 0.1,
    "expected_batch": 20.0,
    "honest_survivors": 1,
    "releases": 30,
    "unit": "patient",
    "ring_bits": 32,
}
EMBEDDING = STEP | {"noise_multiplier": 6.0, "sampling_probability": 1.0, "releases": 1}


def plan(step=None, embedding=None, lengths=(32, 12000)):
    return LocalPlan(
        embedding=PrivateStep(**EMBEDDING | (embedding or {})),
        step=PrivateStep(**STEP | (step or {})),
        embedding_length=lengths[0],
        vector_length=lengths[1],
    )


def gaussian_epsilon(mu, delta):
    """Exact epsilon of the Gaussian mechanism 1/mu (Balle and Wang 2018, eq. 6)."""

    def excess(eps):
        a, b = -eps / mu + mu / 2, -eps / mu - mu / 2
        return stats.norm.cdf(a) - math.exp(eps) * stats.norm.cdf(b) - delta

    return optimize.brentq(excess, 0, 100, xtol=1e-12)


def test_the_event_is_the_embedding_and_then_the_steps():
    assert plan().event() == ComposedDpEvent(
        [
            PoissonSampledDpEvent(1.0, GaussianDpEvent(6.0)),
            SelfComposedDpEvent(PoissonSampledDpEvent(0.1, GaussianDpEvent(1.5)), 30),
        ]
    )
    assert event_from_json(json.loads(json.dumps(plan().event_json()))) == plan().event()


@pytest.mark.parametrize(("noise", "steps"), [(8.0, 30), (3.0, 1), (40.0, 300)])
def test_epsilon_without_sampling_is_the_closed_form(noise, steps):
    """Gaussian mechanisms compose into one: 1/z^2 = 1/z_e^2 + T/z^2."""
    step = {"noise_multiplier": noise, "sampling_probability": 1.0, "releases": steps}
    exact = gaussian_epsilon(math.sqrt(1 / 6.0**2 + steps / noise**2), DELTA)
    ours = plan(step).epsilon(DELTA)
    assert exact <= ours <= exact * 1.002 + 1e-4


def test_a_module_is_never_for_the_institution_as_a_whole():
    """Its steps clip each unit alone."""
    whole = {"unit": "institution"}
    with pytest.raises(ValueError, match="unit within the institution"):
        plan(whole, whole)


def test_every_part_costs():
    whole = plan().epsilon(DELTA)
    steps = epsilon(plan().step.schedule_event(), DELTA)
    embedding = epsilon(plan().embedding.event(), DELTA)
    assert max(steps, embedding) < whole < steps + embedding
    for cheaper in (
        plan(embedding={"noise_multiplier": 6.6}),
        plan({"noise_multiplier": 1.65}),
        plan({"releases": 25}),
        plan({"sampling_probability": 0.09}),
    ):
        assert cheaper.epsilon(DELTA) < whole - 1e-3


def test_finite_precision_is_charged_for_the_longer_vector():
    small, large = plan(lengths=(32, 100)), plan(lengths=(32, 10**8))
    other = plan(lengths=(10**8, 32))
    assert small.epsilon(DELTA) < large.epsilon(DELTA) == other.epsilon(DELTA)


@pytest.mark.parametrize("target", [0.5, 3.0])
def test_calibration_stays_within_its_target_and_wastes_little(target):
    found = calibrate_local_plan(
        target,
        DELTA,
        steps=30,
        sampling_probability=0.1,
        expected_batch=20.0,
        unit="patient",
        vector_length=12000,
        embedding_length=32,
    )
    assert 0.98 * target < found.epsilon(DELTA) <= target
    assert epsilon(found.embedding.event(), DELTA) <= 0.2 * target
    assert (found.step.expected_batch, found.step.unit) == (20.0, "patient")


def test_a_target_below_the_cost_of_rounding_is_refused():
    with pytest.raises(AccountantError):
        calibrate_local_plan(
            1e-7, DELTA, steps=9, sampling_probability=0.1, expected_batch=20.0, unit="record",
            vector_length=10**9, embedding_length=32,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": {"noise_multiplier": 0.0}}, "noise_multiplier > 0"),
        ({"embedding": {"noise_multiplier": 0.0}}, "noise_multiplier > 0"),
        ({"step": {"honest_survivors": 2}}, "honest_survivors = 1"),
        ({"embedding": {"sampling_probability": 0.5}}, "over all units"),
        ({"embedding": {"clipping": "automatic"}}, 'clipping = "fixed"'),
        ({"embedding": {"releases": 2}}, "one release of the embedding"),
        ({"embedding": {"unit": "record"}}, "one unit"),
        ({"embedding": {"noise_in_lattice_units": 8.0}}, "one noise_in_lattice_units"),
        ({"lengths": (0, 5)}, "greater than or equal to 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(**changes)
