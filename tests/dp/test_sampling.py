"""Poisson draws are binomial and independent; other samplers fail the same checks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.dp.keystream import derive_seeded_key
from privacy.dp.sampling import (
    PoissonSampler,
    SamplingError,
    SecureUniform,
    SeededUniform,
    chunks_for,
    physical_chunks,
)

UNITS, DRAWS, RATE = 500, 2000, 0.04


class Shuffler:
    """The forbidden sampler: batches of a fixed size from a permutation."""

    def __init__(self, rate):
        self._rng, self._rate = np.random.default_rng(0), rate

    def draw(self, units):
        return np.sort(self._rng.permutation(units)[: round(units * self._rate)])


def poisson(rate, label="draws"):
    return PoissonSampler(rate, SeededUniform(derive_seeded_key(5, label)))


def membership(sampler):
    drawn = np.zeros((DRAWS, UNITS), dtype=bool)
    for row in drawn:
        row[sampler.draw(UNITS)] = True
    return drawn


def is_poisson(drawn, rate):
    """Total count, variance of the sizes and each unit's rate, significance about 1e-6 each."""
    total = stats.binom.interval(1 - 1e-6, drawn.size, rate)
    sizes = drawn.sum(axis=1)
    spread = ((sizes - UNITS * rate) ** 2).sum() / (UNITS * rate * (1 - rate))
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], DRAWS)
    each = stats.binom.interval(1 - 1e-6 / UNITS, DRAWS, rate)
    counts = drawn.sum(axis=0)
    return (
        total[0] <= drawn.sum() <= total[1]
        and low * 0.95 <= spread <= high * 1.05
        and each[0] <= counts.min()
        and counts.max() <= each[1]
    )


def test_draws_are_binomial():
    assert is_poisson(membership(poisson(RATE)), RATE)
    assert is_poisson(membership(PoissonSampler(RATE, SecureUniform())), RATE)


def test_the_check_rejects_a_rate_ten_percent_too_high():
    assert not is_poisson(membership(poisson(RATE * 1.1)), RATE)


def test_the_check_rejects_shuffled_batches():
    drawn = membership(Shuffler(RATE))
    assert drawn.sum(axis=1).var() == 0
    assert not is_poisson(drawn, RATE)


def test_units_and_draws_are_independent():
    drawn = membership(poisson(0.3)).astype(float) - 0.3
    scale = 5.5 * 0.3 * 0.7 / math.sqrt(DRAWS)
    between_units = drawn.T @ drawn / DRAWS
    np.fill_diagonal(between_units, 0)
    assert np.abs(between_units).max() < scale
    assert np.abs((drawn[1:] * drawn[:-1]).mean(axis=0)).max() < scale


def test_the_rate_is_exact_to_64_bits_and_never_rounded_up():
    class Edge:
        seeded = True

        def words(self, count):
            return np.array([0, 2**63 - 1, 2**63, 2**64 - 1], dtype=np.uint64)[:count]

    np.testing.assert_array_equal(PoissonSampler(0.5, Edge()).draw(4), [0, 1])
    assert len(PoissonSampler(2.0**-70, Edge()).draw(4)) == 0
    assert len(PoissonSampler(1.0, Edge()).draw(4)) == 4
    np.testing.assert_array_equal(PoissonSampler(1 - 2.0**-53, Edge()).draw(4), [0, 1, 2])


def test_large_draws_are_sorted_and_in_range():
    drawn = poisson(0.5).draw(150_000)
    assert (np.diff(drawn) > 0).all()
    assert 0 <= drawn[0] < 10
    assert 149_990 < drawn[-1] < 150_000
    assert drawn.dtype == np.int64
    assert abs(len(drawn) - 75_000) < 6 * math.sqrt(37_500)


def test_no_units_give_an_empty_draw():
    assert len(poisson(0.5).draw(0)) == 0


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0001, math.nan])
def test_bad_rates_are_refused(rate):
    with pytest.raises(SamplingError, match="probability"):
        PoissonSampler(rate, SecureUniform())


@given(st.sets(st.integers(0, 999), max_size=60), st.integers(1, 9), st.integers(0, 8))
def test_chunks_hold_every_unit_once(units, chunk_units, chunks):
    indices = np.array(sorted(units), dtype=np.int64)
    parts = physical_chunks(indices, chunk_units, chunks)
    assert len(parts) == max(chunks, math.ceil(len(units) / chunk_units))
    assert all(index.shape == mask.shape == (chunk_units,) for index, mask in parts)
    kept = [index[mask] for index, mask in parts]
    np.testing.assert_array_equal(np.concatenate([*kept, np.empty(0, np.int64)]), indices)


def test_the_number_of_chunks_rarely_tells_the_draws_size():
    chunks = chunks_for(UNITS, RATE, 4)
    assert stats.binom.sf(4 * chunks, UNITS, RATE) < 1e-9
    sizes = {len(physical_chunks(poisson(RATE).draw(UNITS), 4, chunks)) for _ in range(50)}
    assert sizes == {chunks}
    assert chunks_for(10, 1.0, 4) == 3
