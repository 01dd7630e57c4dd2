"""Poisson sampling of privacy units, and the fixed chunks in which a draw is processed."""

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.dp.keystream import Keystream

_BLOCK = 65536


class SamplingError(ValueError):
    """A rate or a draw that cannot be processed as the accounting assumes."""


class UniformSource(Protocol):
    """Where the sampler's randomness comes from."""

    seeded: bool

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` independent words, uniform on [0, 2^64), shape [count]."""
        ...


class SecureUniform(Keystream):
    """Words under a fresh key of the operating system: the only source of a private draw."""

    def __init__(self) -> None:
        super().__init__()


class SeededUniform(Keystream):
    """The same stream from a given key, for tests and simulations; not private.

    Args:
        key: 32 bytes, see `privacy.dp.keystream.derive_seeded_key`.

    """

    def __init__(self, key: bytes) -> None:
        super().__init__(key)


class PoissonSampler:
    """Draws every unit independently with the same probability; there is no capacity limit.

    Formal guarantee: the set drawn is what `PoissonSampledDpEvent(q, ...)` assumes: each unit is
    in it with probability floor(q 2^64) / 2^64 <= q, independently of all others, of earlier
    draws and of the data. Shuffled or fixed-size batches do not have this property.

    Args:
        probability: q in (0, 1].
        source: words nobody else knows; the adversary must not learn which units were drawn.

    Source: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530), section 3.

    """

    def __init__(self, probability: float, source: UniformSource) -> None:
        if not 0 < probability <= 1:
            raise SamplingError(
                f"Expected sampling probability in (0, 1], got {probability!r}. "
                "Set sampling_probability in the run file."
            )
        self._source = source
        numerator, denominator = float(probability).as_integer_ratio()
        # Rounding down keeps the true rate at or below the rate that is accounted.
        self._threshold = (numerator << 64) // denominator

    def draw(self, units: int) -> NDArray[np.int64]:
        """Draw from units 0..units-1.

        Args:
            units: how many units the node holds; 0 gives an empty draw.

        Returns:
            Sorted indices of the drawn units, int64, of any length from 0 to `units`.

        """
        if units < 0:
            raise SamplingError(f"Expected units >= 0, got {units}. Count the node's units.")
        if self._threshold == 1 << 64:
            return np.arange(units, dtype=np.int64)
        limit = np.uint64(self._threshold)
        hits = [
            start + np.flatnonzero(self._source.words(min(_BLOCK, units - start)) < limit)
            for start in range(0, units, _BLOCK)
        ]
        return np.concatenate(hits).astype(np.int64) if hits else np.empty(0, dtype=np.int64)


def physical_chunks(
    indices: NDArray[np.int64], chunk_units: int, chunks: int
) -> list[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Lay a draw out in a fixed number of chunks of a fixed size, so that time tells no size.

    A draw that needs more than `chunks` chunks gets them all: a unit is never dropped, because a
    capacity limit would break the sampling that is accounted. `chunks_for` makes that rare.

    Args:
        indices: drawn units, shape [n].
        chunk_units: units per chunk, >= 1.
        chunks: chunks to fill in any case, >= 0.

    Returns:
        Pairs of (indices, mask), each of shape [chunk_units]; where mask is False the index is 0
        and the unit's contribution must be multiplied by zero.

    """
    if chunk_units < 1 or chunks < 0:
        raise SamplingError(
            f"Expected chunk_units >= 1 and chunks >= 0, got {chunk_units} and {chunks}."
        )
    count = max(chunks, math.ceil(len(indices) / chunk_units))
    padded = np.zeros(count * chunk_units, dtype=np.int64)
    mask = np.zeros(count * chunk_units, dtype=np.bool_)
    padded[: len(indices)] = indices
    mask[: len(indices)] = True
    return list(
        zip(padded.reshape(count, chunk_units), mask.reshape(count, chunk_units), strict=True)
    )


def chunks_for(
    units: int, probability: float, chunk_units: int, overflow_probability: float = 1e-9
) -> int:
    """Chunks that hold a draw, except with a small probability.

    Args:
        units: units of the node.
        probability: q in (0, 1].
        chunk_units: units per chunk.
        overflow_probability: upper bound on the chance that one draw needs more chunks.

    Returns:
        ceil(k / chunk_units), k the smaller of `units` and qN + sqrt(2 qN t) + t with
        t = log(1 / overflow_probability).

    Source: Bernstein's inequality: P(X >= mean + sqrt(2 mean t) + t) <= e^-t for a binomial X.

    """
    if not 0 < overflow_probability < 1:
        raise SamplingError(
            f"Expected overflow_probability in (0, 1), got {overflow_probability!r}."
        )
    mean, t = units * probability, -math.log(overflow_probability)
    return math.ceil(min(units, mean + math.sqrt(2 * mean * t) + t) / chunk_units)
