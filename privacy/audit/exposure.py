"""Exposure: how far a model has learned a random secret, by its rank among all it could have been.

A secret drawn uniformly from |R| candidates that the model never saw has a uniform rank, so
P[exposure >= b] <= 2^-b, whatever the model. That makes exposure a test, without further models.

Source: Carlini et al. 2019, "The Secret Sharer" (arXiv 1802.08232), definitions 4 to 6 and section
4.4.

Shapes: N candidates.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import skewnorm

from privacy.audit.one_run import AuditError

Floats = NDArray[np.float64]

_MOST_SKEWNESS = 0.99


@dataclass(frozen=True)
class Exposure:
    """One secret's exposure, in bits.

    Attributes:
        bits: log2 of |R| over the rank, exact or as far as the sample tells.
        limit: the most that `bits` can be: log2 |R|, or log2 (N + 1) of N sampled candidates.
        candidates: |R|. tried: how many were compared.
        extrapolated: by a skew-normal fit to the sampled candidates' log-perplexities, which is a
            guess beyond the sample; None where the rank is exact.

    """

    bits: float
    limit: float
    candidates: int
    tried: int
    extrapolated: float | None

    @property
    def p_value(self) -> float:
        """Bound on the chance of so much exposure for a secret that was never seen."""
        return float(2.0**-self.bits)


def exact_exposure(secret_nats: float, other_nats_N: Floats) -> Exposure:
    """Exposure by the rank among all candidates.

    Args:
        secret_nats: log-perplexity of the secret. other_nats_N: of every other candidate.

    Raises:
        AuditError: no other candidate, or NaN.

    """
    _check(secret_nats, other_nats_N)
    total = 1 + len(other_nats_N)
    bits = math.log2(total / _rank(secret_nats, other_nats_N))
    return Exposure(bits, math.log2(total), total, total, None)


def sampled_exposure(secret_nats: float, sample_nats_N: Floats, candidates: int) -> Exposure:
    """Exposure by the rank among candidates drawn uniformly, and by extrapolation.

    With the secret itself drawn like the N others, its rank among all N + 1 is uniform if the model
    never saw it, so the p-value is as valid as the exact one's; it only cannot fall below
    1 / (N + 1).

    Raises:
        AuditError: fewer than 10 drawn, or NaN.

    """
    _check(secret_nats, sample_nats_N)
    if len(sample_nats_N) < 10 or candidates <= len(sample_nats_N):
        raise AuditError(
            f"Expected 10 or more sampled out of more candidates, got {len(sample_nats_N)} out of "
            f"{candidates}. Try more, or all of them."
        )
    tried = 1 + len(sample_nats_N)
    bits = math.log2(tried / _rank(secret_nats, sample_nats_N))
    extrapolated = _extrapolated(secret_nats, sample_nats_N, candidates)
    return Exposure(bits, math.log2(tried), candidates, tried, extrapolated)


def expected_when_unseen(tried: int) -> float:
    """Mean exposure of a secret whose rank among `tried` is uniform: about 1 / ln 2 = 1.44 bits."""
    if tried < 1:
        raise AuditError(f"Expected candidates, got {tried}.")
    return (tried * math.log(tried) - math.lgamma(tried + 1)) / (tried * math.log(2))


def _rank(secret_nats: float, other_nats_N: Floats) -> int:
    """Rank from 1; an equal candidate counts as better, so that no tie flatters the attack."""
    return 1 + int((other_nats_N <= secret_nats).sum())


def _extrapolated(secret_nats: float, sample_nats_N: Floats, candidates: int) -> float:
    """-log2 of the fitted chance of a candidate at most as surprising, at most log2 |R|."""
    if float(sample_nats_N.std()) == 0:
        return 0.0
    chance = float(skewnorm.cdf(secret_nats, *fit_skew_normal(sample_nats_N)))
    return min(math.log2(candidates), -math.log2(max(chance, 1e-300)))


def fit_skew_normal(sample_N: Floats) -> tuple[float, float, float]:
    """Return (shape, location, scale) of the skew-normal with the sample's first three moments.

    A skewness beyond what the family has is cut to 0.99.

    """
    mean, spread = float(sample_N.mean()), float(sample_N.std())
    skewness = float((((sample_N - mean) / spread) ** 3).mean())
    skewness = math.copysign(min(abs(skewness), _MOST_SKEWNESS), skewness)
    part = abs(skewness) ** (2 / 3)
    delta_squared = math.pi / 2 * part / (part + ((4 - math.pi) / 2) ** (2 / 3))
    delta = math.copysign(math.sqrt(delta_squared), skewness)
    scale = spread / math.sqrt(1 - 2 * delta_squared / math.pi)
    shape = delta / math.sqrt(1 - delta_squared)
    return shape, mean - scale * delta * math.sqrt(2 / math.pi), scale


def _check(secret_nats: float, other_nats_N: Floats) -> None:
    if not len(other_nats_N) or math.isnan(secret_nats) or np.isnan(other_nats_N).any():
        raise AuditError("Expected log-perplexities of a secret and others, got none or NaN.")
