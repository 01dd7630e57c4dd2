"""What a lattice and float64 sampling cost in privacy; docs/privacy.md has the proofs.

Symbols: s the noise in units of the lattice's spacing, d the vector's length, T releases, n nodes,
kappa the slack.
"""

import math

from privacy.dp.plan import SMALLEST_LATTICE_NOISE

RADIAL_ERROR = 2.0**-48
"""Distance of a pair from its exact counterpart, relative to its radius; derived in docs/privacy.md
from errors of at most 4 ulp in log, log1p, tan, sin and cos."""

RADIUS_LIMIT = 19.0
"""Radius up to which RADIAL_ERROR holds: the uniform keeps 52 bits down to 2^-268 (19.2 sigma)."""

_TAIL_EXPONENT = 180.0
_ADDITION_ERROR = 2.0**-54


class LatticeError(ValueError):
    """A vector that cannot be encoded or decoded; nothing may be released."""


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


def _check_counts(vector_length: int, releases: int, contributors: int) -> None:
    if vector_length < 0 or releases < 1 or contributors < 1:
        raise LatticeError(
            "Expected vector_length >= 0, releases >= 1 and contributors >= 1, got "
            f"{vector_length}, {releases}, {contributors}."
        )
