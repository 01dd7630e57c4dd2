"""The lattice of a release: noise, round, reduce modulo 2^w; and what that costs in privacy.

A node sends y = round(x / gamma + s g) mod 2^w with g ~ N(0, I). Sums of such words are, up to a
factor e^kappa, a post-processing of the continuous Gaussian mechanism; docs/privacy.md has the
proof. Symbols: gamma the lattice's spacing, s the noise in units of gamma, w the ring's width, d
the vector's length, T releases, n nodes.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.dp.noise import RADIAL_ERROR, RADIUS_LIMIT, GaussianSource
from privacy.dp.plan import SMALLEST_LATTICE_NOISE, VALUE_BOUND, PrivateStep

Words = NDArray[np.uint16] | NDArray[np.uint32]
Floats = NDArray[np.float32] | NDArray[np.float64]
BFloats = NDArray[np.uint16]
"""bf16 numbers as their bits, for numpy has no such type: `tensor.view(torch.uint16).numpy()`."""

_CHUNK = 32768
_NEAR_EDGE = 7 / 8
_LARGEST_LATTICE_POINT = 2.0**50
_WHOLE = 1.5 * 2.0**52
"""A float64 this large plus a number below 2^51 is rounded to a whole one, whose low bits are then
the sum's low bits: rounding and reduction into the ring in one addition."""
_TAIL_EXPONENT = 180.0
_ADDITION_ERROR = 2.0**-54


class LatticeError(ValueError):
    """A vector that cannot be encoded or decoded; nothing may be released."""


def encode(x: Floats | BFloats, step: PrivateStep, source: GaussianSource | None) -> Words:
    """Noise, round and reduce a node's clipped sum: the only form in which it leaves the node.

    Args:
        x: clipped sum over the drawn units, shape [d], in units of the gradient; bf16 as its bits.
        step: gives gamma, s and w.
        source: the noise; None only for a step without noise.

    Returns:
        Words modulo 2^w, shape [d], native byte order: uint16 or uint32. Of a ring narrower than
        16 bits the low w bits count.

    Raises:
        LatticeError: a value that is not finite, or too large for the lattice. The message
            never holds a value of a private step.

    Formal guarantee: the sum of at least `step.honest_survivors` encodings satisfies the (epsilon,
    delta) of `privacy.dp.accountant.epsilon` for `step.event()`. Without noise: none at all.

    """
    if x.ndim != 1:
        raise LatticeError(f"Expected a flat vector, got {x.ndim} dimensions. Flatten it first.")
    if step.is_private and source is None:
        raise LatticeError("A private step needs a noise source, got None. Pass SecureGaussian().")
    words = np.empty(len(x), dtype=_word_type(step))
    # One room for all chunks: memory from the system costs as much as the arithmetic.
    room_2D = np.empty((2, _CHUNK))
    for start in range(0, len(x), _CHUNK):
        part = _as_floats(x[start : start + _CHUNK])
        _check_range(part, step)
        noise = None if source is None or not step.is_private else source.normal(len(part))
        words[start : start + _CHUNK] = _points(part, step, noise, room_2D)  # keeps the low bits
    return words


def decode(sum_words: Words, step: PrivateStep) -> NDArray[np.float32]:
    """Read a sum of encodings: the centred representative times gamma, fp32 [d].

    Args:
        sum_words: shape [d]; bits above the ring's width are not looked at.
        step: gives gamma and w.

    Raises:
        LatticeError: words of another ring than the step's.

    """
    if sum_words.dtype != _word_type(step):
        raise LatticeError(
            f"Expected words of {_word_type(step)}, got {sum_words.dtype}. Sum in the plan's ring."
        )
    signed: NDArray[np.int16 | np.int32] = sum_words.view(
        np.int32 if step.ring_bits == 32 else np.int16
    )
    if step.ring_bits < 16:
        unused = 16 - step.ring_bits
        signed = signed << unused >> unused  # the ring's highest bit becomes the sign
    sum_D = np.empty(len(signed), np.float32)
    np.multiply(signed, np.float32(step.lattice_scale), out=sum_D, casting="same_kind")
    return sum_D


def noised_sum(x: Floats, step: PrivateStep, source: GaussianSource) -> NDArray[np.float32]:
    """Add all of a node's own noise to a sum that no other node's is added to.

    Args:
        x: clipped sum over the drawn units, shape [d].
        step: a private step for one node alone (h = 1).
        source: the noise.

    Returns:
        x plus noise of variance sigma^2 + gamma^2/12, in multiples of gamma, fp32 [d].

    Raises:
        LatticeError: noise that others would have to complete, or as `encode`.

    Formal guarantee: as `encode` for one node; decoding is a post-processing.

    """
    if step.honest_survivors != 1 or not step.is_private:
        raise LatticeError(
            f"Expected a private step with honest_survivors = 1, got {step.honest_survivors} and "
            f"noise_multiplier {step.noise_multiplier!r}. This sum has no other node's noise."
        )
    return decode(encode(x, step, source), step)


def count_wraps(true_sum: NDArray[np.float64], step: PrivateStep) -> int:
    """How many coordinates of a true sum lie outside the ring's range; for simulations only."""
    points = np.rint(true_sum / step.lattice_scale)
    half = 2.0 ** (step.ring_bits - 1)
    return int(np.count_nonzero((points < -half) | (points >= half)))


def count_near_edge(sum_D: NDArray[np.float32], step: PrivateStep) -> int:
    """How many coordinates of a decoded sum lie beyond 7/8 of the ring's range: it may soon wrap.

    Args:
        sum_D: decoded sum, fp32 [d], d >= 1.
        step: gives gamma and w.

    """
    edge = _NEAR_EDGE * 2.0 ** (step.ring_bits - 1) * step.lattice_scale
    if max(float(sum_D.max()), -float(sum_D.min())) <= edge:  # nearly always, and without a copy
        return 0
    return int(np.count_nonzero(np.abs(sum_D) > edge))


def release_variance(step: PrivateStep, survivors: int) -> float:
    """Variance of the noise in one coordinate of the decoded sum: |A| (sigma_i^2 + gamma^2/12).

    Args:
        step: the mechanism.
        survivors: |A| >= 1, members whose vectors are in the sum.

    """
    if survivors < 1:
        raise LatticeError(f"Expected survivors >= 1, got {survivors}. Nothing was released.")
    return survivors * (step.node_noise_std**2 + step.lattice_scale**2 / 12)


def relative_error_bound(noise_in_lattice_units: float, contributors: int) -> float:
    """Bound eta of the lemma: |P(k) / Q(k) - 1| <= eta for every value k of one coordinate.

    P is the law of a sum of n rounded Gaussian shares, Q that of the rounded sum of the shares
    and n-1 uniform variables. eta = theta^n - 1, theta = sum over m in Z of exp(-pi^2 s^2 m^2).

    Args:
        noise_in_lattice_units: s > 0, the smallest share's standard deviation.
        contributors: n >= 1 independent shares; n = 1 gives equality.

    Source: Poisson summation; docs/privacy.md, "Rounded Gaussian shares".

    """
    if not noise_in_lattice_units > 0 or contributors < 1:
        raise LatticeError(
            f"Expected noise_in_lattice_units > 0 and contributors >= 1, got "
            f"{noise_in_lattice_units!r} and {contributors!r}."
        )
    if contributors == 1:
        return 0.0
    exponent = (math.pi * noise_in_lattice_units) ** 2
    terms = 2 + math.ceil(27 / noise_in_lattice_units)
    excess = 2 * math.fsum(math.exp(-exponent * m * m) for m in range(1, terms))
    return math.expm1(contributors * math.log1p(excess))


def lattice_slack(
    vector_length: int,
    releases: int,
    contributors: int,
    noise_in_lattice_units: float,
) -> float:
    """kappa: rounding and float64 sampling turn (eps, delta) into (eps + 2 kappa, e^kappa delta).

    Args:
        vector_length: d >= 0, coordinates of one release.
        releases: T >= 1.
        contributors: n >= 1, an upper bound on the honest nodes in a sum (the cohort's size).
        noise_in_lattice_units: s >= 3.

    Returns:
        d T (-log(1 - eta)) of the lemma, plus n times the precision bound of one node.

    Raises:
        LatticeError: s < 3 or a count out of range.

    Formal guarantee: outside an event of probability `sampler_tail`, the law of all released sums
    and that of a post-processing of the continuous mechanism differ by at most e^kappa pointwise.
    Source: docs/privacy.md, "Rounded Gaussian shares" and "Finite precision".

    """
    _check_counts(vector_length, releases, contributors)
    if not noise_in_lattice_units >= SMALLEST_LATTICE_NOISE:
        raise LatticeError(
            f"Expected noise_in_lattice_units >= {SMALLEST_LATTICE_NOISE}, got "
            f"{noise_in_lattice_units!r}. The lemma's bound is only used from there on."
        )
    eta = relative_error_bound(noise_in_lattice_units, contributors)
    pairs = math.ceil(vector_length / 2) * releases
    rounding = vector_length * releases * -math.log1p(-eta)
    return rounding + contributors * _precision_slack(pairs, noise_in_lattice_units)


def sampler_tail(vector_length: int, releases: int, contributors: int) -> float:
    """Probability of the event that `lattice_slack` leaves out; it belongs to delta."""
    _check_counts(vector_length, releases, contributors)
    pairs = math.ceil(vector_length / 2) * releases
    if pairs == 0:
        return 0.0
    beyond = pairs * math.exp(-(RADIUS_LIMIT**2) / 2)
    return contributors * (math.exp(-_TAIL_EXPONENT) + beyond)


def _precision_slack(pairs: int, s: float) -> float:
    """Sum over all pairs of 4 A (e rho + c/s)(s + rho), with rho^2 bounded by chi-square's tail.

    rho <= r + 1/2 is the largest radius in a pair's cell, r^2 ~ chi-square with 2 degrees of
    freedom, sum of r^2 <= 2m + 2 sqrt(2 m t) + 2t but for e^-t (Laurent and Massart 2000,
    Lemma 1); rho <= 1 + rho^2/4 and rho^2 <= 1.25 (1 + r^2).
    """
    if pairs == 0:
        return 0.0
    edge = 4 * 1.1
    relative = RADIAL_ERROR + 2.0**-52
    t = _TAIL_EXPONENT
    radius_squares = 2 * pairs + 2 * math.sqrt(2 * pairs * t) + 2 * t
    rho_squares = 1.25 * (pairs + radius_squares)
    rhos = pairs + rho_squares / 4
    linear = (relative * s + _ADDITION_ERROR / s) * rhos
    return edge * (linear + relative * rho_squares + _ADDITION_ERROR * pairs)


def _as_floats(part: Floats | BFloats) -> Floats:
    """Widen bf16, the upper half of a float32; all else is as it was."""
    if part.dtype != np.uint16:
        return part  # type: ignore[return-value]
    return (part.astype(np.uint32) << 16).view(np.float32)


def _points(
    part: Floats, step: PrivateStep, noise: NDArray[np.float64] | None, room_2D: NDArray[np.float64]
) -> NDArray[np.int64]:
    """round(part / gamma + s * noise) modulo 2^51; lies in the room, until that is used again."""
    point, whole = room_2D[:, : len(part)]
    point[:] = part
    point *= 1 / step.lattice_scale
    return _round_with_noise(point, noise, step.noise_in_lattice_units, whole)


def _round_with_noise(
    point: NDArray[np.float64],
    noise: NDArray[np.float64] | None,
    s: float,
    whole: NDArray[np.float64],
) -> NDArray[np.int64]:
    """round(point + s * noise) modulo 2^51, in the memory of `whole`; overwrites the point.

    The integer part stays apart until the last addition, which rounds, so that no large sum rounds
    before it.
    """
    np.rint(point, out=whole)
    point -= whole
    if noise is not None:
        rest = torch.from_numpy(point)
        torch.add(rest, torch.from_numpy(noise), alpha=s, out=rest)  # one pass, numpy needs two
    whole += _WHOLE
    whole += point
    return whole.view(np.int64)


def _check_range(part: Floats, step: PrivateStep) -> None:
    largest = float(np.abs(part).max(initial=0.0))
    if not math.isfinite(largest):
        raise LatticeError(
            "Expected finite values, got a value that is not finite. Nothing was released; "
            "a unit whose gradient is not finite must contribute zero."
        )
    if not step.is_private and largest > VALUE_BOUND:
        raise LatticeError(
            f"Expected magnitudes <= {VALUE_BOUND} in a run without noise, got {largest:.6g}. "
            "Lower the clipping norm or the batch."
        )
    if largest / step.lattice_scale > _LARGEST_LATTICE_POINT:
        raise LatticeError(
            "Expected values below 2^50 lattice units, got a larger one. Raise clipping_norm or "
            "noise_multiplier."
        )


def _check_counts(vector_length: int, releases: int, contributors: int) -> None:
    if vector_length < 0 or releases < 1 or contributors < 1:
        raise LatticeError(
            "Expected vector_length >= 0, releases >= 1 and contributors >= 1, got "
            f"{vector_length}, {releases}, {contributors}."
        )


def _word_type(step: PrivateStep) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    return np.dtype(np.uint32) if step.ring_bits == 32 else np.dtype(np.uint16)
