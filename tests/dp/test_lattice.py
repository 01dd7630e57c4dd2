"""Encoding, the released noise, and the lemma on sums of rounded Gaussian shares."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.dp.lattice import (
    _round_with_noise,
    count_near_edge,
    count_wraps,
    decode,
    encode,
    release_variance,
)
from privacy.dp.lattice_bounds import (
    LatticeError,
    lattice_slack,
    relative_error_bound,
    sampler_tail,
)
from privacy.dp.noise import SecureGaussian
from privacy.dp.plan import PrivateStep

STEP = PrivateStep(
    clipping_norm=1.0,
    noise_multiplier=1.0,
    sampling_probability=0.1,
    expected_batch=8.0,
    honest_survivors=2,
    releases=10,
    unit="record",
)


class Scaled:
    """A broken source: right shape, wrong scale."""

    seeded = True

    def __init__(self, source, factor):
        self._source, self._factor = source, factor

    def normal(self, count):
        return self._source.normal(count) * self._factor


class Silent:
    """No noise at all, to see what encoding does to values."""

    seeded = True

    def normal(self, count):
        return np.zeros(count)


def released_noise(step, source, survivors=5, length=40_000):
    """Decoded sum of `survivors` encodings minus the true sum."""
    rng = np.random.default_rng(3)
    parts = rng.normal(0, 0.3, (survivors, length)).astype(np.float32)
    words = np.zeros(length, dtype=np.uint16)
    for part in parts:
        words += encode(part, step, source)
    return decode(words, step) - parts.astype(np.float64).sum(axis=0)


def has_variance(noise, variance):
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], len(noise))
    return low <= (noise**2).sum() / variance <= high


@pytest.mark.parametrize("ring_bits", [16, 32])
def test_released_noise_has_the_stated_variance(make_step, gaussian, ring_bits):
    step = make_step(ring_bits=ring_bits)
    words = sum(
        encode(np.full(40_000, 0.7, np.float32), step, gaussian(i)).astype(np.uint64)
        for i in range(5)
    )
    noise = decode(words.astype(f"uint{ring_bits}"), step) - 5 * np.float64(np.float32(0.7))
    assert has_variance(noise, release_variance(step, 5))
    assert abs(noise.mean()) < 5 * math.sqrt(release_variance(step, 5) / len(noise))


@pytest.mark.parametrize("factor", [0.1, 0.97, 1.03])
def test_the_variance_check_rejects_a_wrong_scale(make_step, gaussian, factor):
    step = make_step()
    assert has_variance(released_noise(step, gaussian("v")), release_variance(step, 5))
    wrong = released_noise(step, Scaled(gaussian("v"), factor))
    assert not has_variance(wrong, release_variance(step, 5))


def test_survivors_hold_at_least_the_noise_of_the_event(make_step):
    step = make_step(honest_survivors=3)
    accounted = (step.noise_multiplier * step.sensitivity) ** 2
    assert release_variance(step, 3) > accounted
    assert release_variance(step, 3) < accounted * (1 + 1 / (12 * 3**2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_within_half_a_lattice_point(make_step, dtype):
    step = make_step(ring_bits=32)
    x = np.random.default_rng(0).normal(0, 2, 70_001).astype(dtype)
    error = decode(encode(x, step, Silent()), step) - x
    assert np.abs(error).max() <= step.lattice_scale * 0.50001  # decoding rounds to float32


@pytest.mark.parametrize("ring_bits", [8, 12])
def test_a_narrow_ring_keeps_the_low_bits(make_step, gaussian, ring_bits):
    step, wide = make_step(ring_bits=ring_bits), make_step()
    x = np.random.default_rng(0).normal(0, 0.2, 40_000)
    sums = [
        sum(encode(x, used, gaussian(node)) for node in range(3)).astype(np.uint16)
        for used in (step, wide)
    ]
    np.testing.assert_array_equal(decode(sums[0], step), decode(sums[1], wide))
    edge = np.array([2 ** (ring_bits - 1) - 1, 2 ** (ring_bits - 1)], np.uint16)
    scale = np.float32(step.lattice_scale)
    assert decode(edge, step).tolist() == [edge[0] * scale, -float(edge[1]) * scale]


@pytest.mark.parametrize("ring_bits", [16, 32])
def test_points_near_the_limit_are_reduced_exactly(ring_bits):
    rng = np.random.default_rng(5)
    point = np.concatenate([rng.uniform(-(2.0**50), 2.0**50, 500), rng.uniform(-9, 9, 500)])
    point[:3] = 2.0**50, -(2.0**50), 2.5
    noise = rng.normal(size=1000)
    noise[2] = 0.0
    found = _round_with_noise(point.copy(), noise, 1024.0, np.empty(len(point)))
    for p, g, word in zip(point.tolist(), noise.tolist(), found, strict=True):
        exact = round(p) + round(p - round(p) + 1024.0 * g)  # Python's integers do not wrap
        assert int(word) % 2**ring_bits == exact % 2**ring_bits
    still = _round_with_noise(point.copy(), None, 1024.0, np.empty(len(point)))
    assert [int(w) % 2**ring_bits for w in still] == [round(p) % 2**ring_bits for p in point]


def test_bf16_is_read_from_its_bits(make_step, gaussian):
    x = torch.randn(70_001, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[:5] = torch.tensor([0.0, -0.0, 1e-40, -3.0, 256.0])
    step = make_step()
    words = encode(x.view(torch.uint16).numpy(), step, gaussian("bf16"))
    np.testing.assert_array_equal(words, encode(x.float().numpy(), step, gaussian("bf16")))
    x[3] = math.nan
    with pytest.raises(LatticeError, match="not finite"):
        encode(x.view(torch.uint16).numpy(), step, gaussian("bf16"))


@pytest.mark.parametrize("ring_bits", [16, 32])
def test_a_decoded_sum_is_float32_of_the_exact_one(make_step, ring_bits):
    step = make_step(ring_bits=ring_bits)
    half = 2 ** (ring_bits - 1)
    points = np.array([-half, half - 1, 0, 1, -1, half // 3])
    decoded = decode((points % 2**ring_bits).astype(f"uint{ring_bits}"), step)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, points * step.lattice_scale, rtol=2.0**-22)


def test_words_have_the_rings_width_and_are_native(make_step):
    x = np.array([-1.0, 0.0, 1.0])
    for bits, dtype in ((16, np.uint16), (32, np.uint32)):
        words = encode(x, make_step(ring_bits=bits), Silent())
        assert words.dtype == np.dtype(dtype)
        assert words[0] > 2 ** (bits - 1) > words[2]


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=6))
def test_sums_wrap_around_modulo_the_ring(points):
    gamma = STEP.lattice_scale
    words = [encode(np.array([p * gamma]), STEP, Silent()) for p in points]
    total = np.add.reduce(np.stack(words), dtype=np.uint16)
    expected = (sum(points) + 32768) % 65536 - 32768
    assert decode(total, STEP)[0] == pytest.approx(expected * gamma)


def test_wraps_are_counted(make_step):
    step = make_step()
    edge = 32768 * step.lattice_scale
    total = np.array([0.0, edge * 0.999, edge * 1.001, -edge * 0.999, -edge * 1.001])
    assert count_wraps(total, step) == 2


def test_coordinates_near_the_edge_are_counted(make_step):
    step = make_step()
    edge = 7 / 8 * 32768 * step.lattice_scale
    inside = np.array([0.0, 0.999 * edge, -0.999 * edge], np.float32)
    assert count_near_edge(inside, step) == 0
    for beyond in (1.001 * edge, -1.001 * edge):
        assert count_near_edge(np.append(inside, np.float32(beyond)), step) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_stop_the_release(make_step, bad):
    x = np.zeros(100_000, np.float32)
    x[99_999] = bad
    with pytest.raises(LatticeError, match="not finite"):
        encode(x, make_step(), SecureGaussian())


def test_an_error_never_shows_a_private_value(make_step):
    with pytest.raises(LatticeError) as caught:
        encode(np.array([1.2345e300]), make_step(), SecureGaussian())
    assert "1.2345" not in str(caught.value)


def test_without_noise_values_are_exact_to_the_lattice_and_bounded(make_step):
    step = make_step(noise_multiplier=0.0, ring_bits=32)
    x = np.array([-128.0, 127.99999, 0.0, 1e-3])
    sum_words = np.add.reduce([encode(x, step, None)] * 50, dtype=np.uint32)
    np.testing.assert_allclose(decode(sum_words, step), 50 * x, atol=50 * 2.0**-19)
    with pytest.raises(LatticeError, match=r"<= 128\.0 in a run without noise, got 128\.5"):
        encode(np.array([128.5]), step, None)


def test_misuse_is_refused(make_step):
    step = make_step()
    with pytest.raises(LatticeError, match="noise source"):
        encode(np.zeros(3), step, None)
    with pytest.raises(LatticeError, match="flat"):
        encode(np.zeros((3, 1)), step, Silent())
    with pytest.raises(LatticeError, match="words of uint16"):
        decode(np.zeros(3, np.uint32), step)
    with pytest.raises(LatticeError, match="survivors"):
        release_variance(step, 0)


# The lemma: the exact law of sum_i round(X_i) against that of round(sum_i X_i + sum of U_j).


def rounded_sum_pmf(shifts, s, reach):
    """P: convolution of the exact laws of round(N(shift, s^2)), on -n*reach..n*reach."""
    k = np.arange(-reach, reach + 1)
    law = np.array([1.0])
    for shift in shifts:
        upper, lower = stats.norm.sf(k - 0.5, shift, s), stats.norm.sf(k + 0.5, shift, s)
        below = stats.norm.cdf(k + 0.5, shift, s) - stats.norm.cdf(k - 0.5, shift, s)
        law = np.convolve(law, np.where(k > shift, upper - lower, below))
    return law


def smoothed_gaussian(shifts, s, reach):
    """Q: density of N(sum, n s^2) plus n uniforms, at the integers, by Fourier inversion.

    Its characteristic function is exp(i t c - n s^2 t^2/2) sinc(t/2)^n; the trapezoidal rule is
    exact to exp(-(distance to the next alias)^2) for so smooth an integrand.
    """
    n = len(shifts)
    k = np.arange(-n * reach, n * reach + 1)
    t = np.linspace(-40 / (s * math.sqrt(n)), 40 / (s * math.sqrt(n)), 200_001)
    weight = np.exp(-n * s * s * t * t / 2) * np.sinc(t / (2 * math.pi)) ** n
    return np.array([(weight * np.cos(t * (j - sum(shifts)))).sum() for j in k]) * (
        (t[1] - t[0]) / (2 * math.pi)
    )


@pytest.mark.parametrize(
    ("shifts", "s"),
    [
        ((0.3, -0.45), 3.0),
        ((0.5,) * 8, 1.0),
        ((0.0,) * 8, 1.0),
        ((0.1, -1.7, 2.5, 0.49), 0.5),
        ((0.5, 0.5), 0.4),
    ],
)
def test_the_lemma_bounds_the_ratio_of_exact_laws(shifts, s):
    reach = math.ceil(6 * s + 4)
    exact, smooth = rounded_sum_pmf(shifts, s, reach), smoothed_gaussian(shifts, s, reach)
    body = smooth > 1e-6
    ratio = np.abs(exact[body] / smooth[body] - 1).max()
    assert ratio <= relative_error_bound(s, len(shifts)) + 1e-8


def test_the_lemma_is_not_vacuous():
    # At s = 0.4 the two laws differ visibly, so a bound of zero would be noticed.
    exact, smooth = rounded_sum_pmf((0.5, 0.5), 0.4, 8), smoothed_gaussian((0.5, 0.5), 0.4, 8)
    body = smooth > 1e-6
    assert np.abs(exact[body] / smooth[body] - 1).max() > 0.05
    assert relative_error_bound(3.0, 2) < 1.1e-38
    assert relative_error_bound(1.0, 8) == pytest.approx(8.28e-4, rel=1e-2)


@pytest.mark.parametrize(
    ("shifts", "s", "bound"), [((0.3, -0.45), 3.0, 1.1e-38), ((0.5,) * 8, 1.0, 8.3e-4)]
)
def test_the_lemma_holds_at_full_precision(shifts, s, bound):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        worst = max(abs(exact_ratio(mpmath, shifts, s, k) - 1) for k in (0, 2))
    assert 0 < worst <= bound
    assert worst <= relative_error_bound(s, len(shifts)) * (1 + 1e-9)


def exact_ratio(mp, shifts, s, k):
    """P(k) / Q(k) in high precision; Q by the trapezoidal rule over its Fourier integral."""
    s, n = mp.mpf(s), len(shifts)
    reach = int(15 * s) + 3
    points = range(-reach, reach + 1)
    law = {0: mp.mpf(1)}
    for shift in map(mp.mpf, shifts):
        one = {
            j: mp.ncdf((j + mp.mpf("0.5") - shift) / s) - mp.ncdf((j - mp.mpf("0.5") - shift) / s)
            for j in points
        }
        law = convolve_sparse(law, one)
    step, total = mp.mpf("0.35") / (s * mp.sqrt(n)) / 2, mp.mpf(0)
    for i in range(-80, 81):
        t = i * step
        sinc = mp.sin(t / 2) / (t / 2) if t else mp.mpf(1)
        total += mp.exp(-n * s * s * t * t / 2) * sinc**n * mp.cos(t * (k - mp.fsum(shifts)))
    return law[k] / (total * step / (2 * mp.pi))


def convolve_sparse(a, b):
    out = {}
    for i, p in a.items():
        for j, q in b.items():
            out[i + j] = out.get(i + j, 0) + p * q
    return out


def test_slack_refuses_too_little_noise_per_lattice_point():
    with pytest.raises(LatticeError, match=r">= 3\.0"):
        lattice_slack(10, 1, 2, 2.99)
    with pytest.raises(LatticeError, match="contributors"):
        lattice_slack(10, 1, 0, 4.0)


def test_slack_is_small_and_grows_with_every_argument():
    base = lattice_slack(10**6, 1000, 4, 4.0)
    assert 1e-5 < base < 1e-3
    assert lattice_slack(2 * 10**6, 1000, 4, 4.0) > base
    assert lattice_slack(10**6, 2000, 4, 4.0) > base
    assert lattice_slack(10**6, 1000, 8, 4.0) > 1.9 * base
    assert lattice_slack(0, 1000, 4, 4.0) == 0
    assert sampler_tail(10**6, 1000, 4) < 1e-60


def test_slack_exceeds_the_change_that_a_displaced_boundary_makes():
    # One coordinate, s = 4: move both ends of a cell outwards by the sampler's largest error.
    s, radius = 4.0, 5.0
    displacement = (2.0**-48 + 2.0**-52) * radius + 2.0**-54 / s
    edge = stats.norm.pdf(4.0) + stats.norm.pdf(4.25)
    cell = stats.norm.sf(4.0) - stats.norm.sf(4.25)
    relative = displacement * edge / cell
    rho = radius + 0.5
    assert relative < 4 * 1.1 * ((2.0**-48 + 2.0**-52) * rho + 2.0**-54 / s) * (s + rho) / 2
