"""What a run costs: epsilon of composed events by privacy loss distributions (PLD).

The arithmetic is dp_accounting's, with pessimistic discretisation, in the add-or-remove-one
relation. This module adds what belongs to our release (rounding, finite precision), refuses what
it cannot bound, and never rounds in favour of a smaller figure. PLD composition holds for
parameters fixed before the first release: a run's whole schedule is charged at its start.
"""

import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache

from dp_accounting import NeighboringRelation
from dp_accounting.dp_event import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
    identity,
)
from dp_accounting.rdp import RdpAccountant

from privacy.dp.lattice import lattice_slack, sampler_tail
from privacy.dp.plan import MOST_SURVIVORS, PrivateStep, event_from_json, event_json

_INTERVALS = (1e-4, 1e-3, 1e-2, 1e-1)
_SEARCH_INTERVAL = 1e-3
_LARGEST_GRID = 2e6
_MOST_RELEASES = 1_000_000
_RDP_ORDERS = (*range(2, 33), 48, 64, 128, 256, 512)
_SMALLEST_DELTA = 1e-10
_SMALLEST_NOISE, _LARGEST_NOISE = 1e-3, 1e6
_TAIL_SHARE = 1e-6
_RELATION = NeighboringRelation.ADD_OR_REMOVE_ONE


class AccountantError(ValueError):
    """An event or a target that cannot be bounded; nothing may be released on it."""


class LossOverflowError(AccountantError):
    """Noise so small, or a schedule so long, that the loss does not fit the accountant's grid."""


def epsilon(
    event: DpEvent,
    delta: float,
    *,
    vector_length: int = 0,
    contributors: int = 1,
    noise_in_lattice_units: float = 4.0,
) -> float:
    """Upper bound on epsilon of an event at delta, for one (unit, node), add or remove one.

    Args:
        event: one release, a schedule, or a composition of schedules fixed in advance.
        delta: in [1e-10, 1); below, the accountant's Fourier transforms lose their precision.
        vector_length: coordinates of a release; 0 leaves rounding and finite precision out.
        contributors: upper bound on the honest nodes in one sum, >= 1.
        noise_in_lattice_units: s >= 3.

    Returns:
        Epsilon >= 0; infinity for an event without noise, or if delta cannot absorb the tail.

    Raises:
        AccountantError: unknown kind of event, a value out of range, or LossOverflowError.

    Formal guarantee: with kappa = lattice_slack and p = sampler_tail, if the continuous mechanism
    is (e, d)-DP then the release is (e + 2 kappa, e^kappa d + p (1 + e^(kappa + e)))-DP.

    | event | epsilon |
    |---|---|
    | NoOpDpEvent | 0 |
    | NonPrivateDpEvent, anywhere | infinity |
    | noise_multiplier <= 0, NaN, unknown class | AccountantError |

    Source: Koskela, Jälkö, Honkela 2020 (arXiv 1906.03049); Doroshenko et al. 2022 (arXiv
    2207.04380); docs/privacy.md.

    """
    return _epsilon(
        event,
        delta,
        interval=None,
        vector_length=vector_length,
        contributors=contributors,
        noise_in_lattice_units=noise_in_lattice_units,
    )


def epsilon_after(
    step: PrivateStep,
    rounds: int,
    delta: float,
    *,
    vector_length: int = 0,
    contributors: int = MOST_SURVIVORS,
) -> float:
    """Epsilon of the first `rounds` releases of a step's schedule; to show, not to charge.

    Args:
        step: the mechanism; `step.releases` is what a node charges at the start.
        rounds: 0 <= rounds <= step.releases.
        delta: see `epsilon`.
        vector_length: see `epsilon`.
        contributors: see `epsilon`; the default is the largest cohort.

    Raises:
        AccountantError: rounds beyond the schedule, or as `epsilon`.

    """
    if not 0 <= rounds <= step.releases:
        raise AccountantError(
            f"Expected 0 <= rounds <= {step.releases}, got {rounds}. A longer run needs a "
            "schedule of its own, reserved before it starts."
        )
    return epsilon(
        NoOpDpEvent() if rounds == 0 else SelfComposedDpEvent(step.event(), rounds),
        delta,
        vector_length=vector_length,
        contributors=contributors,
        noise_in_lattice_units=step.noise_in_lattice_units,
    )


def epsilon_if_all_others_collude(
    step: PrivateStep, delta: float, *, vector_length: int = 0
) -> float:
    """Epsilon of the whole schedule if every other member subtracts its noise: z / sqrt(h).

    Args:
        step: the mechanism.
        delta: see `epsilon`.
        vector_length: see `epsilon`.

    Formal guarantee: holds for an honest node whatever the coordinator and the others do, as long
    as they keep to the schedule's parameters, which the node itself enforces.

    """
    return epsilon(
        SelfComposedDpEvent(step.event_if_all_others_collude(), step.releases),
        delta,
        vector_length=vector_length,
        contributors=1,
        noise_in_lattice_units=step.noise_in_lattice_units,
    )


def calibrate_noise_multiplier(
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    releases: int,
    *,
    beside: DpEvent | None = None,
    vector_length: int = 0,
    contributors: int = 1,
    noise_in_lattice_units: float = 4.0,
) -> float:
    """The smallest noise multiplier found that keeps a schedule within epsilon: always safe.

    Args:
        target_epsilon: > 0.
        delta: see `epsilon`.
        sampling_probability: q in (0, 1].
        releases: T >= 1.
        beside: what else is released under the same epsilon, with its own noise; None for nothing.
        vector_length: see `epsilon`.
        contributors: see `epsilon`.
        noise_in_lattice_units: see `epsilon`.

    Returns:
        z, a multiple of 1e-4, with epsilon(z) <= target_epsilon at the finest discretisation, and
        within about 0.3% of the smallest such z.

    Raises:
        AccountantError: a value out of range, or a target below what rounding alone costs.

    """
    if not 0 < target_epsilon < math.inf:
        raise AccountantError(f"Expected 0 < epsilon < infinity, got {target_epsilon!r}.")

    def fits(noise_multiplier: float, interval: float | None) -> bool:
        step = PoissonSampledDpEvent(sampling_probability, GaussianDpEvent(noise_multiplier))
        steps = SelfComposedDpEvent(step, releases)
        try:
            reached = _epsilon(
                steps if beside is None else ComposedDpEvent([beside, steps]),
                delta,
                interval=interval,
                vector_length=vector_length,
                contributors=contributors,
                noise_in_lattice_units=noise_in_lattice_units,
            )
        except LossOverflowError:
            return False
        return reached <= target_epsilon

    return _smallest_fitting(fits)


def epsilon_microunits(epsilon_value: float) -> int:
    """Epsilon as an integer number of millionths, rounded up: what a ledger stores.

    Raises:
        AccountantError: a negative, infinite or undefined epsilon.

    """
    if not 0 <= epsilon_value < math.inf:
        raise AccountantError(
            f"Expected a finite epsilon >= 0, got {epsilon_value!r}. A run without a finite "
            "epsilon cannot be charged to a budget."
        )
    return math.ceil(Fraction(epsilon_value) * 1_000_000)


def count_releases(event: DpEvent) -> int:
    """How many noisy vectors an event stands for; NoOpDpEvent counts zero."""
    return sum(count for leaf, count in leaf_events(event) if not isinstance(leaf, NoOpDpEvent))


def _epsilon(
    event: DpEvent,
    delta: float,
    *,
    interval: float | None,
    vector_length: int,
    contributors: int,
    noise_in_lattice_units: float,
) -> float:
    """`epsilon` at a given discretisation, or at the finest that fits (None)."""
    if not _SMALLEST_DELTA <= delta < 1:
        raise AccountantError(f"Expected delta in [{_SMALLEST_DELTA}, 1), got {delta!r}.")
    written = json.dumps(event_json(event), sort_keys=True)
    releases = count_releases(event)
    if vector_length == 0 or releases == 0:
        return _pld_epsilon(written, delta, interval)
    kappa = lattice_slack(vector_length, releases, contributors, noise_in_lattice_units)
    tail = sampler_tail(vector_length, releases, contributors)
    inner = _pld_epsilon(written, delta * math.exp(-kappa) * (1 - _TAIL_SHARE), interval)
    if math.log(tail) + kappa + inner + math.log(2) > math.log(_TAIL_SHARE * delta):
        return math.inf
    return math.nextafter(inner + 2 * kappa, math.inf)


@lru_cache(maxsize=4096)
def _pld_epsilon(written: str, delta: float, interval: float | None) -> float:
    """Epsilon of the continuous mechanism, from the event's JSON text."""
    event = event_from_json(json.loads(written))
    if count_releases(event) > _MOST_RELEASES:
        raise LossOverflowError(
            f"Expected at most {_MOST_RELEASES} releases, got {count_releases(event)}. Split the "
            "work into fewer, larger rounds."
        )
    leaves = [leaf for leaf, _ in leaf_events(event)]
    if any(isinstance(leaf, NonPrivateDpEvent) for leaf in leaves):
        return math.inf
    noise = min((noise_of(leaf) for leaf in leaves), default=math.inf)
    if noise == math.inf:
        return 0.0
    finest = _finest_interval(event, delta, noise)
    value = float(_composed(event, max(finest, interval or finest)).get_epsilon_for_delta(delta))
    if not value >= 0:
        raise AccountantError(f"Expected epsilon >= 0 from the accountant, got {value!r}.")
    return value


def _composed(event: DpEvent, interval: float) -> PrivacyLossDistribution:
    """The loss of all of an event's releases, as dp_accounting's PLDAccountant composes them."""
    loss = identity(interval)
    for leaf, count in leaf_events(event):
        if isinstance(leaf, PoissonSampledDpEvent) and leaf.sampling_probability < 1:
            release = _release_loss(noise_of(leaf), float(leaf.sampling_probability), interval)
            loss = loss.compose(release.self_compose(count))
        elif not isinstance(leaf, NoOpDpEvent):
            # Nothing is sampled: Gaussians add up to one with less noise, exactly.
            loss = loss.compose(_release_loss(noise_of(leaf) / math.sqrt(count), 1.0, interval))
    return loss


@lru_cache(maxsize=8)
def _release_loss(
    noise_multiplier: float, sampling_probability: float, interval: float
) -> PrivacyLossDistribution:
    """The loss of one release: nearly all of the time, and the same whatever the schedule."""
    return from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=sampling_probability,
        neighboring_relation=_RELATION,
    )


def _finest_interval(event: DpEvent, delta: float, noise: float) -> float:
    """The finest discretisation whose grid stays below 2e6 cells.

    Without this limit a plan with little noise would exhaust the memory of the node that checks
    it. The range is at most about the RDP bound on epsilon plus one release's largest loss.
    """
    rdp = RdpAccountant(_RDP_ORDERS, _RELATION).compose(event)
    loss = float(rdp.get_epsilon(delta)) + 10 / noise + 0.5 / noise / noise
    for interval in _INTERVALS:
        if loss / interval <= _LARGEST_GRID:
            return interval
    raise LossOverflowError(
        f"Expected a privacy loss below {_LARGEST_GRID * _INTERVALS[-1]:g}, got about {loss:.3g} "
        f"from noise multiplier {noise:.3g}. Raise noise_multiplier or shorten the schedule."
    )


def leaf_events(event: DpEvent) -> Iterator[tuple[DpEvent, int]]:
    """The single releases of an event, each with the number of times it happens."""
    if isinstance(event, SelfComposedDpEvent):
        for leaf, count in leaf_events(event.event):
            yield leaf, count * int(event.count)
    elif isinstance(event, ComposedDpEvent):
        for part in event.events:
            yield from leaf_events(part)
    else:
        yield event, 1


def noise_of(leaf: DpEvent) -> float:
    """The noise multiplier of one release; infinity where nothing is released."""
    if isinstance(leaf, NoOpDpEvent):
        return math.inf
    gaussian = leaf.event if isinstance(leaf, PoissonSampledDpEvent) else leaf
    if not isinstance(gaussian, GaussianDpEvent):
        raise AccountantError(
            f"Expected a Gaussian or a Poisson-sampled Gaussian release, got {leaf}."
        )
    return float(gaussian.noise_multiplier)


def _smallest_fitting(fits: Callable[[float, float | None], bool]) -> float:
    """Bisect a monotone test of z: coarse grid to 2%, finest to 0.2%, rounded up to 1e-4."""
    high = 1.0
    while not fits(high, _SEARCH_INTERVAL):
        high *= 2
        if high > _LARGEST_NOISE:
            raise AccountantError(
                "Expected a target that noise can reach, got one below the cost of rounding. "
                "Raise epsilon or delta, or shorten the schedule."
            )
    low = high / 2
    while low > _SMALLEST_NOISE and fits(low, _SEARCH_INTERVAL):
        low, high = low / 2, low
    low, high = _bisect(fits, low, high, 1.02, _SEARCH_INTERVAL)
    # The coarse grid overstates epsilon, so `high` fits on the finest one and `low` may.
    while low > _SMALLEST_NOISE and fits(low, None):
        low, high = low / 1.02, low
    _, high = _bisect(fits, low, high, 1.002, None)
    noise_multiplier = math.ceil(high * 1e4) / 1e4
    while not fits(noise_multiplier, None):
        noise_multiplier = math.ceil(noise_multiplier * 1.002 * 1e4) / 1e4
    return noise_multiplier


def _bisect(
    fits: Callable[[float, float | None], bool],
    low: float,
    high: float,
    ratio: float,
    interval: float | None,
) -> tuple[float, float]:
    while high > low * ratio:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle, interval) else (middle, high)
    return low, high
