"""The Rényi filter against integrals, closed forms, the shared tables and exact deltas."""

import json
import math
from fractions import Fraction
from functools import cache
from statistics import NormalDist

import numpy as np
import pytest
from dp_accounting.dp_event import (
    ComposedDpEvent,
    GaussianDpEvent,
    LaplaceDpEvent,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)

from privacy.dp.accountant import AccountantError
from privacy.dp.lattice_bounds import lattice_slack, sampler_tail
from privacy.dp.plan import PlanError
from privacy.dp.rdp_filter import ORDERS, Charge, charge_of, open_filter, sampled_gaussian_rdp

LIBRARY_ORDERS = (*range(2, 64), 128, 256, 512, 1024)


def exact_delta(mu, epsilon):
    """Delta of a Gaussian mechanism with sensitivity / noise = mu (Balle and Wang 2018)."""
    phi = NormalDist().cdf
    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


def integrals(q, z, order):
    """Both directions of the divergence by Riemann sums."""
    x = np.linspace(-40 * z, order + 40 * z, 400_001)
    log_n = -(x**2) / (2 * z * z) - math.log(z * math.sqrt(2 * math.pi))
    log_mix = log_n + np.log(1 - q + q * np.exp((2 * x - 1) / (2 * z * z)))
    width = x[1] - x[0]

    def divergence(p, r):
        return math.log(np.exp(order * p - (order - 1) * r).sum() * width) / (order - 1)

    return divergence(log_mix, log_n), divergence(log_n, log_mix)


@pytest.mark.parametrize("order", [2, 3, 8, 16])
@pytest.mark.parametrize(("q", "z"), [(0.01, 0.8), (0.2, 1.5), (0.5, 3.0), (0.9, 2.0)])
def test_the_divergence_is_the_integral_and_the_larger_direction(q, z, order):
    adding, removing = integrals(q, z, order)
    ours = sampled_gaussian_rdp(q, z, order)
    assert ours == pytest.approx(adding, rel=1e-6)
    assert removing <= ours * (1 + 1e-6)


def test_without_sampling_it_is_the_closed_form():
    for order in ORDERS:
        assert sampled_gaussian_rdp(1.0, 1.7, order) == order / (2 * 1.7**2)
        assert sampled_gaussian_rdp(1 - 1e-12, 1.7, order) == pytest.approx(order / (2 * 1.7**2))


def test_small_divergences_keep_their_precision():
    """Order 2 is log(1 + q^2 (e^(1/z^2) - 1)), which a sum of terms near 1 would lose."""
    exact = 1e-16 * math.expm1(1e-4)
    assert sampled_gaussian_rdp(1e-8, 100.0, 2) == pytest.approx(exact, rel=1e-12)


def test_the_shared_curves(shared_dir):
    rows = json.loads((shared_dir / "vectors/dp/rdp_curve.json").read_text())["rows"]
    for row in rows:
        q, z = row["sampling_probability"], row["noise_multiplier"]
        for order, rdp in zip(row["orders"], row["rdp"], strict=True):
            if order == int(order):
                ours = row["steps"] * sampled_gaussian_rdp(q, z, int(order))
                assert ours == pytest.approx(rdp, rel=1e-9)


def test_all_432_settings_of_the_shared_table(shared_dir):
    """Never below the table, whose orders hold ours; equal where its best order is one of ours."""
    rows = json.loads((shared_dir / "vectors/dp/epsilon_table.json").read_text())["rows"]
    assert len(rows) == 432
    curve = cache(sampled_gaussian_rdp)
    equal = 0
    for row in rows:
        q, z, delta = row["sampling_probability"], row["noise_multiplier"], row["delta"]
        ours = min(
            row["steps"] * curve(q, z, a)
            + math.log1p(-1 / a)
            - (math.log(delta) + math.log(a)) / (a - 1)
            for a in LIBRARY_ORDERS
        )
        ours = max(0.0, ours)
        assert ours >= row["epsilon_rdp"] * (1 - 1e-9)
        equal += ours == pytest.approx(row["epsilon_rdp"], rel=1e-6)
    assert equal >= 160


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-6), (3.0, 1e-5), (8.0, 1e-6), (20, 1e-9)])
def test_what_the_filter_admits_is_within_the_budget_by_the_exact_delta(epsilon, delta):
    """Gaussians of unlike noise are one Gaussian; the filter stops before delta is over."""
    limits = open_filter(epsilon, delta)
    spent, mu_squared, admitted = Charge(), 0.0, 0
    noises = [30.0 + number % 7 for number in range(100_000)]
    for z in noises:
        wanted = spent + charge_of(GaussianDpEvent(z))
        if not limits.admits(wanted):
            break
        spent, mu_squared, admitted = wanted, mu_squared + 1 / z**2, admitted + 1
    assert 0 < admitted < len(noises)
    assert exact_delta(math.sqrt(mu_squared), epsilon) <= delta
    # Twice as many would not be: the filter is not far from what is true.
    assert exact_delta(math.sqrt(2.5 * mu_squared), epsilon) > delta


def test_delta_is_split_over_the_orders():
    """An undivided delta at every order would leave more than the proof allows."""
    epsilon, delta = 8.0, 1e-6
    for order, limit in zip(ORDERS, open_filter(epsilon, delta).limits, strict=True):
        undivided = 0.98 * epsilon - math.log1p(-1 / order)
        undivided += (math.log(delta) + math.log(order)) / (order - 1)
        split = undivided - (math.log(len(ORDERS)) + 0.01 * epsilon) / (order - 1)
        assert limit / 1e12 == pytest.approx(split, rel=1e-5)
        assert limit / 1e12 < split


def test_a_charge_is_never_rounded_down():
    for z in (0.7, 3.3, 1e5):
        for order, charged in zip(ORDERS, charge_of(GaussianDpEvent(z)).rdp, strict=True):
            exact = Fraction(order) / (2 * Fraction(z) ** 2)
            assert exact <= Fraction(charged, 10**12)
            assert Fraction(charged, 10**12) <= exact * (1 + Fraction(2, 10**9)) + Fraction(
                1, 10**12
            )
    assert min(charge_of(GaussianDpEvent(1e6)).rdp) >= 1


def test_releases_left_is_the_last_that_is_admitted():
    limits = open_filter(3.0, 1e-5)
    each = charge_of(PoissonSampledDpEvent(0.05, GaussianDpEvent(1.0)))
    spent = charge_of(GaussianDpEvent(10.0))
    left = limits.releases_left(spent, each)
    assert left > 1
    assert limits.admits(spent + each.times(left))
    assert not limits.admits(spent + each.times(left + 1))
    assert limits.releases_left(spent + each.times(left + 1), each) == 0
    with pytest.raises(AccountantError, match="costs something"):
        limits.releases_left(spent, Charge())


def test_a_charge_is_the_sum_of_its_releases():
    sampled = PoissonSampledDpEvent(0.1, GaussianDpEvent(1.2))
    both = ComposedDpEvent([GaussianDpEvent(3.0), SelfComposedDpEvent(sampled, 7)])
    expected = charge_of(GaussianDpEvent(3.0)) + charge_of(sampled).times(7)
    assert charge_of(both) == expected
    assert charge_of(NoOpDpEvent()) == Charge()


def test_the_lattice_is_charged_and_stops_a_run_by_itself():
    event = GaussianDpEvent(1e5)
    each = charge_of(event, vector_length=10**7, contributors=8)
    assert each.slack >= Fraction(lattice_slack(10**7, 1, 8, 4.0)) * 10**12
    assert each.tail >= Fraction(sampler_tail(10**7, 1, 8)) * 10**100 > 0
    limits = open_filter(1.0, 1e-6)
    left = limits.releases_left(Charge(), each)
    assert 0 < left < limits.releases_left(Charge(), charge_of(event))
    assert not limits.admits(each.times(left + 1))
    assert not open_filter(300.0, 1e-6).admits(each)  # e^300 times the tail is more than delta


@pytest.mark.parametrize(
    "event", [NonPrivateDpEvent(), SelfComposedDpEvent(NonPrivateDpEvent(), 2)]
)
def test_a_release_without_noise_has_no_charge(event):
    with pytest.raises(AccountantError, match="got one without"):
        charge_of(event)


def test_unknown_events_and_overflow_are_refused():
    with pytest.raises(PlanError):
        charge_of(LaplaceDpEvent(1.0))
    with pytest.raises(AccountantError, match="noise multiplier"):
        charge_of(GaussianDpEvent(1e-200))


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-6), (-1, 1e-6), (math.inf, 1e-6), (math.nan, 0.1), (1, 0), (1, 1)]
)
def test_budgets_out_of_range_are_refused(epsilon, delta):
    with pytest.raises(AccountantError, match="Expected a finite epsilon"):
        open_filter(epsilon, delta)


def test_a_budget_that_no_order_can_keep_is_refused():
    with pytest.raises(AccountantError, match="Raise either"):
        open_filter(0.01, 1e-9)
