"""The embedding's sum: clipped, exact, noised at the plan's scale, and never divided."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.dp.domain_embedding import clipped_embedding_sum, release_embedding
from privacy.dp.lattice import noised_sum, release_variance
from privacy.dp.lattice_bounds import LatticeError
from privacy.dp.noise import SeededGaussian
from privacy.dp.plan import PlanError, PrivateStep

LENGTH = 40_000
CLIP = 0.7
STEP = PrivateStep(
    clipping_norm=CLIP,
    noise_multiplier=3.0,
    sampling_probability=1.0,
    expected_batch=1.0,
    honest_survivors=1,
    releases=1,
    unit="patient",
    ring_bits=32,
)


def units(count=30, scale=1.0):
    generator = torch.Generator().manual_seed(5)
    sizes = torch.linspace(0.1, 3.0, count)[:, None] * scale
    x = torch.randn(count, 64, generator=generator)
    return list(sizes * x / x.norm(dim=1, keepdim=True))


def brute_force(embeddings):
    total = np.zeros(64)
    for x in (e.double().numpy() for e in embeddings):
        total += x / max(1.0, math.sqrt(float((x * x).sum())) / CLIP)
    return total


def test_the_sum_is_that_of_the_clipped_embeddings():
    found = clipped_embedding_sum(units(), CLIP, 64)
    np.testing.assert_allclose(found, brute_force(units()), atol=30 * CLIP * 2.0**-33)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_dropping_a_unit_moves_the_sum_by_at_most_its_clip(scale):
    everyone = units(scale=scale)
    whole = clipped_embedding_sum(everyone, CLIP, 64)
    for gone, embedding in enumerate(everyone):
        rest = clipped_embedding_sum(everyone[:gone] + everyone[gone + 1 :], CLIP, 64)
        moved = np.linalg.norm(whole - rest)
        assert moved <= CLIP * (1 + 1e-8)
        assert moved == pytest.approx(min(CLIP, float(embedding.norm())), rel=1e-5)


def test_the_order_of_units_changes_nothing():
    many = units(500)
    one, other = (clipped_embedding_sum(u, CLIP, 64) for u in (many, many[::-1]))
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_embedding_that_is_not_finite_contributes_zero(bad):
    foul = torch.zeros(64)
    foul[3] = bad
    honest = clipped_embedding_sum(units(), CLIP, 64)
    assert clipped_embedding_sum([foul, *units()], CLIP, 64).tobytes() == honest.tobytes()


def test_embeddings_of_another_length_are_refused():
    with pytest.raises(PlanError, match="of 65 elements, got 64"):
        clipped_embedding_sum(units(), CLIP, 65)


def has_the_plans_noise(released, mean):
    """Chi-square of the lattice points' exact law, at a significance of 1e-6; mean is constant."""
    points, s = np.rint(released / STEP.lattice_scale), STEP.noise_in_lattice_units
    edges = np.arange(-2.5 * s, 2.5 * s + 1) + 0.5
    inner = np.concatenate(([-np.inf], edges, [np.inf]))
    expected = np.diff(stats.norm.cdf(inner, mean / STEP.lattice_scale, s)) * len(points)
    seen = np.histogram(points, inner)[0]
    return stats.chisquare(seen, expected).pvalue > 1e-6


def release(count=3, factor=1.0):
    class Scaled(SeededGaussian):
        def normal(self, count):
            return factor * super().normal(count)

    x = itertools.repeat(torch.full((LENGTH,), 1.0), count)
    return release_embedding(x, STEP, LENGTH, Scaled(b"\1" * 32))


def test_the_noise_is_that_of_the_event():
    mean = 3 * CLIP / math.sqrt(LENGTH)
    assert math.sqrt(release_variance(STEP, 1)) == pytest.approx(3.0 * 1.001 * CLIP, rel=3e-3)
    assert has_the_plans_noise(release(), mean)
    for wrong in (0.1, 0.95, 1.05):
        assert not has_the_plans_noise(release(factor=wrong), mean)


def test_the_sum_is_not_divided_by_the_number_of_units():
    """With the same noise, ten times the units move the release by nine tenths of the sum."""
    moved = (release(3000) - release(300)).mean()
    assert moved == pytest.approx(2700 * CLIP / math.sqrt(LENGTH), rel=1e-3)


def test_no_units_still_give_noise():
    assert has_the_plans_noise(release(0), 0.0)


@pytest.mark.parametrize("change", [{"sampling_probability": 0.5}, {"releases": 2}], ids=str)
def test_a_step_of_another_kind_is_refused(change):
    step = PrivateStep(**{**dict(STEP), **change})
    with pytest.raises(PlanError, match="one release over all units"):
        release_embedding(units(), step, 64, SeededGaussian(b"\1" * 32))


@pytest.mark.parametrize("change", [{"honest_survivors": 2}, {"noise_multiplier": 0.0}], ids=str)
def test_a_sum_that_others_would_have_to_complete_is_refused(change):
    step = PrivateStep(**{**dict(STEP), **change})
    with pytest.raises(LatticeError, match="honest_survivors = 1"):
        noised_sum(np.zeros(4), step, SeededGaussian(b"\1" * 32))
