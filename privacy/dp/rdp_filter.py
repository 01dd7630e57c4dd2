"""A budget kept by a filter on Rényi divergences (RDP): what runs chosen after results may spend.

Each release is charged when it is made; its parameters may depend on all that was released before
it, and whoever trains may stop when they like. PLD composition does not allow that. The filter is
opened on (epsilon, delta) before the first release and says before each release whether it still
fits. Charges and limits are integers: charges are rounded up, limits down.

Symbols: a an order; q sampling probability; z noise multiplier; kappa lattice slack.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from dp_accounting.dp_event import DpEvent, NonPrivateDpEvent, PoissonSampledDpEvent

from privacy.dp.events import event_json
from privacy.dp.lattice_bounds import lattice_slack, sampler_tail
from privacy.dp.releases import AccountantError, leaf_events, noise_of

ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_UNITS = 10**12
_TAIL_UNITS = 10**100  # tails are about 1e-70
_SLACK_SHARE = 0.02
_TAIL_SHARE = 1e-6
_ARITHMETIC = 1 + 1e-9
_SMALLEST_NOISE = 1e-3


@dataclass(frozen=True)
class Charge:
    """What releases cost a filter; charges add up.

    Attributes:
        rdp: Rényi divergence at each of ORDERS, in units of 1e-12, rounded up.
        slack: kappa of the lattice, in units of 1e-12, rounded up.
        tail: probability that kappa leaves out, in units of 1e-100, rounded up.

    """

    rdp: tuple[int, ...] = (0,) * len(ORDERS)
    slack: int = 0
    tail: int = 0

    def __add__(self, other: Self) -> "Charge":
        """Return what both cost together."""
        rdp = tuple(a + b for a, b in zip(self.rdp, other.rdp, strict=True))
        return Charge(rdp, self.slack + other.slack, self.tail + other.tail)

    def times(self, count: int) -> "Charge":
        """Return what `count` such releases cost."""
        return Charge(tuple(a * count for a in self.rdp), self.slack * count, self.tail * count)


@dataclass(frozen=True)
class RdpFilter:
    """The limits of a budget, fixed before its first release.

    Attributes:
        limits: of the sum of charges at each of ORDERS; below 0 where an order is of no use.
        slack: limit of the sum of kappa.
        tail: limit of the sum of tails.

    Formal guarantee: if every release is made only after `admits` returned True for the sum of all
    charges with its own, then all releases together are (epsilon, delta)-DP per unit, add or remove
    one, whatever each release's parameters depended on and whenever the releases end.
    docs/privacy.md, "A filter", has the proof.

    Source: Feldman and Zrnic 2021 (arXiv 2008.11193), Lécuyer 2021 (arXiv 2103.01379).

    """

    limits: tuple[int, ...]
    slack: int
    tail: int

    def admits(self, charged: Charge) -> bool:
        """Tell whether the sum of all charges, the next one among them, is within the limits."""
        return (
            charged.slack <= self.slack
            and charged.tail <= self.tail
            and any(a <= limit for a, limit in zip(charged.rdp, self.limits, strict=True))
        )

    def releases_left(self, spent: Charge, each: Charge) -> int:
        """Return how many more releases at cost `each` fit on top of `spent`; at least 0.

        Raises:
            AccountantError: a release that costs nothing, of which there is no greatest number.

        """
        if not all(each.rdp):
            raise AccountantError("Expected a release that costs something, got none.")
        pairs = zip(self.limits, spent.rdp, each.rdp, strict=True)
        left = max((limit - a) // b for limit, a, b in pairs)
        if each.slack:
            left = min(left, (self.slack - spent.slack) // each.slack)
        if each.tail:
            left = min(left, (self.tail - spent.tail) // each.tail)
        return max(0, left)


def open_filter(epsilon: float, delta: float) -> RdpFilter:
    """Fix the limits for a budget.

    Delta is split evenly over ORDERS, since which order lasts longest may depend on results.
    Two hundredths of epsilon and a millionth of delta are kept for the lattice.

    Args:
        epsilon: > 0, finite.
        delta: in (0, 1).

    Raises:
        AccountantError: out of range, or so small that no order leaves anything to spend.

    Source: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), proposition 12, for one order.

    """
    if not (0 < epsilon < math.inf and 0 < delta < 1):
        raise AccountantError(
            f"Expected a finite epsilon > 0 and 0 < delta < 1, got {epsilon!r} and {delta!r}."
        )
    kappa = epsilon * _SLACK_SHARE / 2
    each = math.log(delta / len(ORDERS)) - kappa + math.log1p(-_TAIL_SHARE)
    limits = tuple(
        epsilon - 2 * kappa - math.log1p(-1 / a) + (each + math.log(a)) / (a - 1) for a in ORDERS
    )
    if max(limits) <= 0:
        raise AccountantError(
            f"Expected a budget that an order up to {ORDERS[-1]} can keep, got epsilon "
            f"{epsilon:g} at delta {delta:g}. Raise either."
        )
    # epsilon bounds kappa + the continuous mechanism's epsilon, the exponent of the tail's factor.
    tail = _TAIL_SHARE * math.exp(math.log(delta) - epsilon) / 2
    return RdpFilter(tuple(_down(a) for a in limits), _down(kappa), _down(tail, _TAIL_UNITS))


def charge_of(
    event: DpEvent,
    *,
    vector_length: int = 0,
    contributors: int = 1,
    noise_in_lattice_units: float = 4.0,
) -> Charge:
    """Return what an event costs a filter.

    Args:
        event: one release, or several whose parameters are fixed.
        vector_length: coordinates of a release; 0 leaves rounding and finite precision out.
        contributors: upper bound on the honest nodes in one sum, >= 1.
        noise_in_lattice_units: s >= 3.

    Raises:
        AccountantError: an event without noise, or of a kind that cannot be bounded.

    """
    event_json(event)  # refuses what cannot be accounted
    charge = Charge()
    for leaf, count in leaf_events(event):
        charge += _leaf_charge(leaf, vector_length, contributors, noise_in_lattice_units).times(
            count
        )
    return charge


def sampled_gaussian_rdp(sampling_probability: float, noise_multiplier: float, order: int) -> float:
    """Rényi divergence of one Poisson-sampled Gaussian release, add or remove one unit.

    log(1 + S) / (a - 1), S = sum over k = 2..a of C(a,k) (1-q)^(a-k) q^k (e^(k(k-1)/(2 z^2)) - 1):
    every term is positive, so that nothing cancels. Adding bounds removing (theorem 5 there).

    Args:
        sampling_probability: q in (0, 1]; 1 is the plain Gaussian.
        noise_multiplier: z > 0.
        order: a >= 2, an integer.

    Source: Mironov, Talwar, Zhang 2019 (arXiv 1908.10530), section 3.3.

    """
    q, z = sampling_probability, noise_multiplier
    if q == 1:
        return order / (2 * z * z)
    terms = [_log_term(q, z, order, k) for k in range(2, order + 1)]
    top = max(terms)
    log_sum = top + math.log(math.fsum(math.exp(term - top) for term in terms))
    return (max(log_sum, 0.0) + math.log1p(math.exp(-abs(log_sum)))) / (order - 1)


def _log_term(q: float, z: float, order: int, k: int) -> float:
    exponent = k * (k - 1) / (2 * z * z)
    growth = (
        math.log(math.expm1(exponent))
        if exponent < 1
        else exponent + math.log(-math.expm1(-exponent))
    )
    choices = math.log(math.comb(order, k))
    return choices + (order - k) * math.log1p(-q) + k * math.log(q) + growth


def _leaf_charge(leaf: DpEvent, vector_length: int, contributors: int, s: float) -> Charge:
    if isinstance(leaf, NonPrivateDpEvent):
        raise AccountantError(
            "Expected a release with noise, got one without. A filter has no budget for it."
        )
    noise = noise_of(leaf)
    if noise == math.inf:
        return Charge()
    if noise < _SMALLEST_NOISE:
        raise AccountantError(
            f"Expected a noise multiplier >= {_SMALLEST_NOISE:g}, got {noise:g}. Raise it."
        )
    q = float(leaf.sampling_probability) if isinstance(leaf, PoissonSampledDpEvent) else 1.0
    rdp = tuple(_up(sampled_gaussian_rdp(q, noise, a)) for a in ORDERS)
    if vector_length == 0:
        return Charge(rdp)
    slack = lattice_slack(vector_length, 1, contributors, s)
    return Charge(rdp, _up(slack), _up(sampler_tail(vector_length, 1, contributors), _TAIL_UNITS))


def _up(value: float, units: int = _UNITS) -> int:
    if not math.isfinite(value):
        raise AccountantError("Expected a finite privacy loss, got none. Raise noise_multiplier.")
    return math.ceil(Fraction(value * _ARITHMETIC) * units)


def _down(value: float, units: int = _UNITS) -> int:
    """A limit, less what its floating-point arithmetic may have got wrong."""
    return math.floor((Fraction(value) - Fraction(abs(value)) / 10**9) * units)
