"""What a run costs: epsilon of composed events by privacy loss distributions (PLD).

`privacy.dp.loss_distribution` bounds the continuous mechanism, in the add-or-remove-one relation.
This module adds what belongs to our release (rounding, finite precision), refuses what it cannot
bound, and never rounds in favour of a smaller figure. PLD composition holds for
parameters fixed before the first release: a run's whole schedule is charged at its start.
"""

import json
import math
from fractions import Fraction

from dp_accounting.dp_event import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)

from privacy.dp.events import event_json
from privacy.dp.lattice_bounds import lattice_slack, sampler_tail
from privacy.dp.loss_distribution import LossOverflowError, pld_epsilon
from privacy.dp.noise_search import smallest_fitting
from privacy.dp.plan import MOST_SURVIVORS, SMALLEST_DELTA, PrivateStep
from privacy.dp.releases import AccountantError, count_releases

__all__ = [
    "AccountantError",
    "LossOverflowError",
    "calibrate_noise_multiplier",
    "count_releases",
    "epsilon",
    "epsilon_after",
    "epsilon_if_all_others_collude",
    "epsilon_microunits",
]

_TAIL_SHARE = 1e-6


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

    return smallest_fitting(fits)


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
    if not SMALLEST_DELTA <= delta < 1:
        raise AccountantError(f"Expected delta in [{SMALLEST_DELTA}, 1), got {delta!r}.")
    written = json.dumps(event_json(event), sort_keys=True)
    releases = count_releases(event)
    if vector_length == 0 or releases == 0:
        return pld_epsilon(written, delta, interval)
    kappa = lattice_slack(vector_length, releases, contributors, noise_in_lattice_units)
    tail = sampler_tail(vector_length, releases, contributors)
    inner = pld_epsilon(written, delta * math.exp(-kappa) * (1 - _TAIL_SHARE), interval)
    if math.log(tail) + kappa + inner + math.log(2) > math.log(_TAIL_SHARE * delta):
        return math.inf
    return math.nextafter(inner + 2 * kappa, math.inf)
