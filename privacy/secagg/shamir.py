"""Shamir's secret sharing over p = 2^256 - 189, the largest prime below 2^256.

Symbols: t threshold, x point of a share (1 to 65,535; a member's position in the cohort, from 1),
f the polynomial of degree t - 1 with f(0) = secret, w_i Lagrange's weights at a point.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import mul

PRIME = 2**256 - 189
SHARE_BYTES = 32
_LARGEST_POINT = 65_535
_FACTOR_BITS = 128


class ShamirError(ValueError):
    """Parameters or shares that no polynomial of this field fits."""


def random_secret() -> bytes:
    """Draw a uniform field element from the system's CSPRNG, 32 bytes."""
    return secrets.randbelow(PRIME).to_bytes(SHARE_BYTES, "big")


def reduce_to_field(key: bytes) -> bytes:
    """Map 32 uniform bytes to a field element; the bias is below 2^-247."""
    return (int.from_bytes(key, "big") % PRIME).to_bytes(SHARE_BYTES, "big")


def split(secret: bytes, threshold: int, shares: int) -> list[bytes]:
    """Share a secret among the points 1 to `shares`.

    Args:
        secret: a field element, 32 bytes big-endian.
        threshold: t, shares needed; 1 <= t <= shares.
        shares: number of points, up to 65,535.

    Returns:
        Share of point i + 1 at index i, 32 bytes each.

    Raises:
        ShamirError: a secret outside the field, or a threshold out of range.

    Formal guarantee: t - 1 shares are independent of the secret.

    Source: Shamir 1979 (doi 10.1145/359168.359176).

    """
    if not 1 <= threshold <= shares <= _LARGEST_POINT:
        raise ShamirError(
            f"Expected 1 <= threshold <= shares <= {_LARGEST_POINT}, got {threshold} and {shares}."
        )
    # Highest power first; small points make Horner's products grow so slowly that one reduction
    # at the end is cheaper than one per step.
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients.append(_element(secret))
    return [_horner(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, shares + 1)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Recover the secret from at least `threshold` shares; further shares are not looked at.

    Args:
        shares: share by point, 32 bytes each.
        threshold: t.

    Returns:
        The secret, 32 bytes; another field element if a share is wrong.

    Raises:
        ShamirError: too few shares, a point out of range, or a share outside the field.

    """
    return evaluate(shares, threshold, 0)


def evaluate(shares: Mapping[int, bytes], threshold: int, at: int) -> bytes:
    """Return f(at) for the polynomial through the first `threshold` shares, 32 bytes.

    Raises:
        ShamirError: as `combine`.

    """
    points = tuple(list(shares)[:threshold])
    if len(points) < threshold or not all(1 <= x <= _LARGEST_POINT for x in points):
        raise ShamirError(
            f"Expected {threshold} shares at points from 1 to {_LARGEST_POINT}, got {len(shares)}."
        )
    weights = _weights(points, at)
    value = sum(w * _element(shares[x]) for w, x in zip(weights, points, strict=True)) % PRIME
    return value.to_bytes(SHARE_BYTES, "big")


def wrong_shares(shares: Mapping[int, bytes], trusted: Sequence[int], threshold: int) -> list[int]:
    """Name the points whose shares lie off the polynomial through trusted ones.

    Args:
        shares: share by point.
        trusted: `threshold` points whose combination was verified, e.g. by a commitment.
        threshold: t.

    Returns:
        Points of wrong shares, sorted; a share outside the field is wrong too.

    """
    basis = {x: shares[x] for x in trusted}
    others = sorted(set(shares) - set(trusted))
    return [x for x in others if shares[x] != evaluate(basis, threshold, x)]


def suspect_points(
    many: Sequence[Mapping[int, bytes]], trusted: Sequence[int], threshold: int
) -> list[int]:
    """Name the points at which a share of any of many secrets is wrong, at the price of one.

    The shares of each point are added up, each secret times a random factor of 128 bits; sums off
    the polynomial of sums name their point. A wrong share is overlooked with probability 2^-128.

    Args:
        many: shares by point, the same points for each secret.
        trusted: `threshold` points whose combination was verified for each secret.
        threshold: t.

    Returns:
        Points, sorted; `wrong_shares` tells of which secrets.

    """
    factors = [secrets.randbits(_FACTOR_BITS) for _ in many]
    columns = {x: [int.from_bytes(shares[x], "big") for shares in many] for x in many[0]}
    sums = {
        x: (sum(map(mul, factors, values)) % PRIME).to_bytes(SHARE_BYTES, "big")
        for x, values in columns.items()
    }
    outside = {x for x, values in columns.items() if max(values) >= PRIME}
    return sorted(outside.union(wrong_shares(sums, trusted, threshold)))


@lru_cache(maxsize=1024)
def _weights(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Lagrange's weights of `points` for the value at `at`; one quorum serves many secrets."""
    weights = []
    for i, x_i in enumerate(points):
        numerator = denominator = 1
        for j, x_j in enumerate(points):
            if i != j:
                numerator = numerator * (at - x_j) % PRIME
                denominator = denominator * (x_i - x_j) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(weights)


def _horner(coefficients: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value % PRIME


def _element(data: bytes) -> int:
    value = int.from_bytes(data, "big")
    if len(data) != SHARE_BYTES or value >= PRIME:
        raise ShamirError(
            f"Expected a field element of {SHARE_BYTES} bytes below 2^256 - 189, got {len(data)} "
            "bytes. Ask its sender again."
        )
    return value
