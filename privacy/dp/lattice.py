"""The lattice of a release: noise, round, reduce modulo 2^w.

A node sends y = round(x / gamma + s g) mod 2^w with g ~ N(0, I). Sums of such words are, up to a
factor e^kappa, a post-processing of the continuous Gaussian mechanism; docs/privacy.md has the
proof, `privacy.dp.lattice_bounds` kappa. Symbols: gamma the lattice's spacing, s the noise in units
of gamma, w the ring's width.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.dp.lattice_bounds import LatticeError
from privacy.dp.noise import GaussianSource
from privacy.dp.plan import VALUE_BOUND, PrivateStep

Words = NDArray[np.uint16] | NDArray[np.uint32]
Floats = NDArray[np.float32] | NDArray[np.float64]
BFloats = NDArray[np.uint16]
"""bf16 numbers as their bits, for numpy has no such type: `tensor.view(torch.uint16).numpy()`."""

_CHUNK = 65536
_NEAR_EDGE = 7 / 8
_LARGEST_LATTICE_POINT = 2.0**50
_WHOLE = 1.5 * 2.0**52
"""A float64 this large plus a number below 2^51 is rounded to a whole one, whose low bits are then
the sum's low bits: rounding and reduction into the ring in one addition."""


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


def _word_type(step: PrivateStep) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    return np.dtype(np.uint32) if step.ring_bits == 32 else np.dtype(np.uint16)
