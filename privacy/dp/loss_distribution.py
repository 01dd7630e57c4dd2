"""Epsilon of the continuous mechanism, by privacy loss distributions (PLD).

The arithmetic is dp_accounting's, with pessimistic discretisation, in the add-or-remove-one
relation. What would not fit the memory of the node that checks it is refused before it is computed.
"""

import json
import math
from functools import lru_cache

from dp_accounting import NeighboringRelation
from dp_accounting.dp_event import (
    DpEvent,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
)
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
    identity,
)
from dp_accounting.rdp import RdpAccountant

from privacy.dp.events import event_from_json
from privacy.dp.releases import AccountantError, count_releases, leaf_events, noise_of

_INTERVALS = (1e-4, 1e-3, 1e-2, 1e-1)
_LARGEST_GRID = 2e6
_MOST_RELEASES = 1_000_000
_RDP_ORDERS = (*range(2, 33), 48, 64, 128, 256, 512)
_RELATION = NeighboringRelation.ADD_OR_REMOVE_ONE


class LossOverflowError(AccountantError):
    """Noise so small, or a schedule so long, that the loss does not fit the accountant's grid."""


@lru_cache(maxsize=4096)
def pld_epsilon(written: str, delta: float, interval: float | None) -> float:
    """Upper bound on epsilon of an event at delta, without rounding and finite precision.

    Args:
        written: the event's JSON text (`event_json`), the key under which the result is kept.
        delta: in (0, 1).
        interval: of the discretisation; None for the finest whose grid fits.

    Raises:
        AccountantError: unknown kind of event, or LossOverflowError.

    """
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
