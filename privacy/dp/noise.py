"""Gaussian noise whose finite precision is bounded: Box-Muller on full-precision uniforms.

A textbook Box-Muller in float64 has holes in its tail and, near zero, a radius of few bits
(Mironov, CCS 2012). Here the uniform of the radius keeps 52 significant bits at both ends: it is
split into its distance from the nearer end of (0, 1), refined with more words where that distance
is small. Every sample then lies within RADIAL_ERROR * r of the sample that real arithmetic would
have made, r the pair's radius; `privacy.dp.lattice_bounds` turns that into a privacy loss.
"""

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.dp.keystream import Keystream, derive_seeded_key
from privacy.dp.vector_math import log, log1p_in_place, on_circles

__all__ = [
    "GaussianSource",
    "SecureGaussian",
    "SeededGaussian",
    "derive_seeded_key",
]

_PAIRS_PER_CHUNK = 32768
_PRECISE = np.uint64(1 << 52)
_LOW_63 = np.uint64((1 << 63) - 1)
_WORD = 2.0**-64


class GaussianSource(Protocol):
    """Where noise comes from; the gate refuses a seeded source outside simulations."""

    seeded: bool

    def normal(self, count: int) -> NDArray[np.float64]:
        """The next `count` independent N(0, 1) samples, shape [count]."""
        ...


class _KeystreamGaussian:
    """Box-Muller over a keystream; see the module's text for the precision."""

    def __init__(self, stream: Keystream) -> None:
        self.seeded = stream.seeded
        self._stream = stream

    @property
    def secure(self) -> bool:
        """Whether nobody can reproduce the samples."""
        return not self.seeded

    def normal(self, count: int) -> NDArray[np.float64]:
        """The next `count` independent N(0, 1) samples, shape [count].

        An odd sample that a pair leaves over is dropped, so two calls need not equal one.
        """
        if count < 0:
            raise ValueError(f"Expected count >= 0, got {count}. Ask for a vector's length.")
        out = np.empty(count, dtype=np.float64)
        for start in range(0, count, 2 * _PAIRS_PER_CHUNK):
            part = out[start : start + 2 * _PAIRS_PER_CHUNK]
            _fill(part, self._stream)
        return out


class SecureGaussian(_KeystreamGaussian):
    """Noise under a fresh key of the operating system: the only source of a private release."""

    def __init__(self) -> None:
        super().__init__(Keystream())


class SeededGaussian(_KeystreamGaussian):
    """The same stream from a given key, for tests and simulations; not private.

    Args:
        key: 32 bytes, see `derive_seeded_key`.

    """

    def __init__(self, key: bytes) -> None:
        super().__init__(Keystream(key))


def _fill(out: NDArray[np.float64], stream: Keystream) -> None:
    """Fill `out` with samples: cosines of the pairs first, then their sines."""
    pairs = (len(out) + 1) // 2
    words = stream.words(2 * pairs)
    radius = _radius(words[:pairs], stream)
    angle = words[pairs:].view(np.int64).astype(np.float64)
    angle += 0.5
    angle *= 2.0 * math.pi * _WORD
    cosines, sines = on_circles(radius, angle)
    out[:pairs] = cosines
    out[pairs:] = sines[: len(out) - pairs]


def _radius(words: NDArray[np.uint64], stream: Keystream) -> NDArray[np.float64]:
    """sqrt(-2 ln u), where the top bit of a word tells which end of (0, 1) u lies near."""
    near_one = words.view(np.int64) >> 63  # all bits of a word, or none
    head = words & _LOW_63
    distance = head.view(np.int64).astype(np.float64)
    distance += 0.5
    distance *= _WORD
    _refine(distance, head, stream)
    logarithm = log(distance)
    np.negative(distance, out=distance)
    log1p_in_place(distance)
    # Both logarithms everywhere, then a choice by bits: `where` calls log1p run by run.
    chosen, other = logarithm.view(np.int64), distance.view(np.int64)
    other ^= chosen
    other &= near_one
    chosen ^= other
    logarithm *= -2.0
    return np.sqrt(logarithm, out=logarithm)


def _refine(distance: NDArray[np.float64], head: NDArray[np.uint64], stream: Keystream) -> None:
    """Append words to the uniforms that have fewer than 52 significant bits, at most four times."""
    index = np.flatnonzero(head < _PRECISE)
    lead = head[index]
    scale = _WORD
    for _ in range(4):
        if index.size == 0:
            return
        tail = stream.words(index.size)
        fraction = (tail.astype(np.float64) + 0.5) * _WORD
        distance[index] = (lead.astype(np.float64) + fraction) * scale
        unresolved = (lead == 0) & (tail < _PRECISE)
        index, lead = index[unresolved], tail[unresolved]
        scale *= _WORD
