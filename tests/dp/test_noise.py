"""The noise is N(0, 1), to its tails, and the checks notice a wrong scale."""

import copy
import math
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from privacy.dp import vector_math
from privacy.dp.keystream import Keystream, derive_seeded_key
from privacy.dp.lattice_bounds import RADIAL_ERROR
from privacy.dp.noise import SecureGaussian, SeededGaussian, _fill, _radius

KEY = bytes(range(32))
COUNT = 400_000
FROZEN = [
    0.05942834456483094,
    -0.003681546899577001,
    -0.814161705164227,
    0.8677201558291555,
    -0.060224048550193365,
]


@pytest.fixture(params=[True, False], ids=["numpy", "torch"])
def functions(request, monkeypatch):
    """Each processor takes one of both."""
    monkeypatch.setattr(vector_math, "NUMPY_IS_FAST", request.param)


def is_standard_normal(sample):
    """Kolmogorov-Smirnov, mean and variance, each at a significance of 1e-6."""
    n, limit = len(sample), stats.norm.isf(5e-7)
    mean = abs(sample.mean()) * math.sqrt(n)
    variance = abs(sample.var() - 1) * math.sqrt(n / 2)
    return stats.kstest(sample, "norm").pvalue > 1e-6 and max(mean, variance) < limit


def test_known_answers(functions):
    # Frozen from this generator; the keystream itself is checked against the block cipher.
    block = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor().update(bytes(16))
    assert Keystream(KEY).words(2).tobytes() == block
    np.testing.assert_allclose(SeededGaussian(KEY).normal(5), FROZEN, rtol=1e-12)


def test_samples_follow_the_formula(functions):
    words = Keystream(KEY).words(4)
    u = [((int(w) & (2**63 - 1)) + 0.5) / 2**64 for w in words[:2]]
    u = [1 - v if int(w) >> 63 else v for v, w in zip(u, words[:2], strict=True)]
    angle = [2 * math.pi * (int(w.view(np.int64)) + 0.5) / 2**64 for w in words[2:]]
    radius = [math.sqrt(-2 * math.log(v)) for v in u]
    expected = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
    expected += [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
    np.testing.assert_allclose(SeededGaussian(KEY).normal(4), expected, rtol=1e-12)


def test_secure_noise_is_standard_normal():
    # Deterministic in outcome: each of three checks errs with probability 1e-6.
    assert is_standard_normal(SecureGaussian().normal(COUNT))


@pytest.mark.parametrize("factor", [0.1, 1.05, 0.95])
def test_the_check_rejects_a_wrong_scale(gaussian, factor):
    assert is_standard_normal(gaussian("scale").normal(COUNT))
    assert not is_standard_normal(gaussian("scale").normal(COUNT) * factor)


def test_third_and_fourth_moment(gaussian):
    sample = gaussian("moments").normal(COUNT)
    assert abs((sample**3).mean()) < 5 * math.sqrt(15 / COUNT)
    assert abs((sample**4).mean() - 3) < 5 * math.sqrt(96 / COUNT)


def test_halves_of_pairs_are_uncorrelated(gaussian):
    sample = gaussian("pairs").normal(12 * 32768).reshape(-1, 2, 16384)
    cosine, sine = sample[:, 0].ravel(), sample[:, 1].ravel()
    for a, b in ((cosine, sine), (cosine**2, sine**2)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(len(a))


class Scripted:
    """A keystream of given words, for branches that chance never takes."""

    seeded = True

    def __init__(self, *words):
        self._words = list(words)

    def words(self, count):
        taken, self._words = self._words[:count], self._words[count:]
        return np.array(taken, dtype=np.uint64)


@pytest.mark.parametrize(
    ("words", "bits"),
    [((1, 2**63), -64 + math.log2(1.5)), ((0, 2**40, 2**63), -88), ((0, 0, 0, 0, 0), -321)],
)
def test_small_uniforms_are_refined_to_full_precision(words, bits):
    first = np.array(words[:1], dtype=np.uint64)
    radius = _radius(first, Scripted(*words[1:]))
    assert radius[0] == pytest.approx(math.sqrt(-2 * math.log(2) * bits), rel=1e-11)


def test_near_one_the_radius_keeps_its_precision():
    first = np.array([2**63], dtype=np.uint64)
    radius = _radius(first, Scripted(1, 2**63))
    assert radius[0] == pytest.approx(math.sqrt(2 * 2.0**-128 * 1.5), rel=1e-12)


def test_refinement_takes_the_words_of_its_own_positions():
    words = np.array([2**62, 5, 2**62, 2**63 + 7], dtype=np.uint64)
    radius = _radius(words, Scripted(2**62, 2**61))
    tail, near_one = (5 + 0.25) * 2.0**-64, (7 + 0.125) * 2.0**-64
    expected = [math.log(0.25), math.log(tail), math.log(0.25), math.log1p(-near_one)]
    np.testing.assert_allclose(radius, np.sqrt(-2 * np.array(expected)), rtol=1e-12)


def assert_exact(words, sample):
    """Hold samples against 60 digits: radii's words, then the angles'; samples likewise."""
    mpmath = pytest.importorskip("mpmath")
    pairs = len(words) // 2
    with mpmath.workdps(60):
        for i in range(pairs):
            head = mpmath.mpf(int(words[i]) & (2**63 - 1)) + mpmath.mpf("0.5")
            u = head / 2**64
            u = 1 - u if int(words[i]) >> 63 else u
            radius = mpmath.sqrt(-2 * mpmath.log(u))
            turn = int(words[pairs + i].view(np.int64)) + mpmath.mpf("0.5")
            angle = 2 * mpmath.pi * turn / 2**64
            error_x = mpmath.mpf(float(sample[i])) - radius * mpmath.cos(angle)
            error_y = mpmath.mpf(float(sample[pairs + i])) - radius * mpmath.sin(angle)
            assert mpmath.hypot(error_x, error_y) < radius * RADIAL_ERROR / 2


def test_the_error_of_samples_stays_within_the_stated_bound(functions):
    assert_exact(Keystream(KEY).words(4000), SeededGaussian(KEY).normal(4000))


def test_the_error_at_the_ends_and_quarters_of_a_turn(functions):
    """Where a tangent is zero, one, or as large as it gets."""
    near = (0, 1, 2, 3, 2**10, 2**12 + 1, 2**30)
    turns = [(at + step) % 2**64 for at in range(0, 2**64, 2**61) for each in near
             for step in (each, -each)]  # fmt: skip
    words = np.array([2**62] * len(turns) + turns, dtype=np.uint64)
    sample = np.empty(len(words))
    _fill(sample, Scripted(*words))
    assert_exact(words, sample)


@pytest.mark.parametrize(
    ("found", "is_fast"),
    [({"tan": {"dd": {"current": "X86_V4"}}}, True),
     ({"tan": {"dd": {"current": "baseline(X86_V2)"}}}, False), ({}, False)],
)  # fmt: skip
def test_numpys_functions_are_taken_where_they_are_vectors(monkeypatch, found, is_fast):
    monkeypatch.setattr(np.lib.introspect, "opt_func_info", lambda **_: found)
    assert vector_math._numpy_is_fast() is is_fast


def test_streams_never_repeat():
    first, second = SecureGaussian(), SecureGaussian()
    assert not np.array_equal(first.normal(100), second.normal(100))
    assert not np.array_equal(first.normal(100), first.normal(100))
    with pytest.raises(TypeError):
        copy.deepcopy(first)


def test_a_forked_child_draws_other_noise():
    source = Keystream()
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, source.words(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 32) != source.words(4).tobytes()


def test_a_long_stream_is_one_stream():
    whole = Keystream(KEY).words(200_000)
    stream = Keystream(KEY)
    parts = [stream.words(n) for n in (1, 0, 65_537, 70_000, 64_462)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(np.unique(whole)) == len(whole)


def test_seeded_sources_say_so():
    assert SeededGaussian(KEY).seeded
    assert not SeededGaussian(KEY).secure
    assert SecureGaussian().secure
    np.testing.assert_array_equal(SeededGaussian(KEY).normal(9), SeededGaussian(KEY).normal(9))


def test_labels_separate_streams():
    keys = [("a", "b"), ("ab",), ("a", 1), ("a", "1"), ("a",), ()]
    assert len({derive_seeded_key(1, *labels) for labels in keys}) == len(keys)
    assert derive_seeded_key(1, "a") != derive_seeded_key(2, "a")


@pytest.mark.parametrize(
    "call",
    [
        lambda: SecureGaussian().normal(-1),
        lambda: SeededGaussian(b"short"),
        lambda: derive_seeded_key(-1),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match="Expected"):
        call()
