"""What a ledger under a Rényi filter was charged: recomputed from its debits, never remembered.

Node and verification read the same entries with this one class, so they cannot disagree. Three
filters are asked before each release: for the data's life, for the run, and for the run should
all others collude.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from dp_accounting.dp_event import DpEvent, GaussianDpEvent, PoissonSampledDpEvent
from pydantic import JsonValue

from privacy.canonical import canonical_bytes, parse_canonical
from privacy.dp.accountant import AccountantError
from privacy.dp.events import event_from_json
from privacy.dp.rdp_filter import Charge, RdpFilter, charge_of, open_filter
from privacy.ledger.entries import (
    DELTA_UNITS,
    EPSILON_UNITS,
    FilterBasis,
    FilterCharge,
    FilterOpened,
    ReleaseDebited,
)

CLAUSES = ("epsilon", "epsilon_per_run", "epsilon_if_all_others_collude")
_LARGEST_EPSILON = 100.0


@dataclass(frozen=True)
class Cost:
    """What one release costs: as it is, and if every other member subtracts its noise."""

    own: Charge
    colluding: Charge


def cost_of(event: JsonValue, basis: FilterBasis) -> Cost:
    """Compute what one release costs.

    Args:
        event: as `privacy.dp.events.event_json` writes it; a Poisson-sampled Gaussian.
        basis: what the cost depends on beside the event.

    Raises:
        ValueError: an event of another kind, or one that a filter cannot charge.

    """
    return _cost_of(canonical_bytes(event), basis)


@lru_cache(maxsize=256)
def _cost_of(event: bytes, basis: FilterBasis) -> Cost:
    release = event_from_json(parse_canonical(event))
    s = basis.noise_in_lattice_units
    length = basis.vector_length
    own = charge_of(
        release,
        vector_length=length,
        contributors=basis.contributors,
        noise_in_lattice_units=s,
    )
    alone = _if_all_others_collude(release, basis.honest_survivors)
    colluding = charge_of(alone, vector_length=length, contributors=1, noise_in_lattice_units=s)
    return Cost(own, colluding)


def charge_entry(event: JsonValue, basis: FilterBasis) -> FilterCharge:
    """Return the charge that a debit names."""
    own = cost_of(event, basis).own
    return FilterCharge(
        basis=basis,
        rdp=tuple(str(units) for units in own.rdp),
        slack=str(own.slack),
        tail=str(own.tail),
    )


class FilterState:
    """Three filters and what was charged to them.

    Args:
        opened: the budget, fixed before the first release.

    Raises:
        AccountantError: a budget that is too small for any order.

    Formal guarantee: if every debit was added only after `clause_against` returned None for it, all
    releases together are (epsilon, delta)-DP per unit, and those of one run (epsilon_per_run, its
    delta)-DP; see `privacy.dp.rdp_filter.RdpFilter`.

    """

    def __init__(self, opened: FilterOpened) -> None:
        run_delta = opened.run_delta_1e15
        self.opened = opened
        self._filters = (
            _open(opened.epsilon_micro, opened.delta_1e15),
            _open(opened.epsilon_per_run_micro, run_delta),
            _open(opened.epsilon_if_all_others_collude_micro, run_delta),
        )
        self._life = Charge()
        self._runs: dict[str, tuple[Charge, Charge]] = {}
        self._last: Cost | None = None

    def clause_against(self, run: str, cost: Cost) -> str | None:
        """Name the first clause that does not admit one more such release in a run, or None."""
        spent = (self._life, *self._of(run))
        each = (cost.own, cost.own, cost.colluding)
        for clause, limits, before, more in zip(CLAUSES, self._filters, spent, each, strict=True):
            if not limits.admits(before + more):
                return clause
        return None

    def add(self, body: ReleaseDebited) -> Cost:
        """Charge a debit by its event and basis, whatever charge it names; returns its cost.

        Raises:
            ValueError: a debit without a basis, or an event that a filter cannot charge.

        """
        if body.charge is None:
            raise AccountantError("Expected a debit that names its charge, got one without.")
        cost = cost_of(body.event, body.charge.basis)
        own, colluding = self._of(body.run)
        self._life += cost.own
        self._runs[body.run] = (own + cost.own, colluding + cost.colluding)
        self._last = cost
        return cost

    def releases_left(self, run: str, cost: Cost) -> tuple[int, int, int]:
        """Return how many more such releases each of CLAUSES admits in a run."""
        spent = (self._life, *self._of(run))
        each = (cost.own, cost.own, cost.colluding)
        life, own, colluding = (
            limits.releases_left(before, more)
            for limits, before, more in zip(self._filters, spent, each, strict=True)
        )
        return life, own, colluding

    @property
    def life_releases_left(self) -> int | None:
        """Releases like the last one that the life's filter still admits; None before the first."""
        if self._last is None:
            return None
        return self._filters[0].releases_left(self._life, self._last.own)

    @property
    def spent_share(self) -> float:
        """Part of the life's budget that was charged, 0 to 1, at the order that lasts longest."""
        limits, spent = self._filters[0], self._life
        pairs = zip(spent.rdp, limits.limits, strict=True)
        rdp = min(a / limit for a, limit in pairs if limit > 0)
        return max(rdp, _share(spent.slack, limits.slack), _share(spent.tail, limits.tail))

    def _of(self, run: str) -> tuple[Charge, Charge]:
        return self._runs.get(run, (Charge(), Charge()))


def _open(epsilon_micro: int, delta_1e15: int) -> RdpFilter:
    # Kept smaller, a budget holds all the more. Beyond, the sampler's tail, whose limit falls as
    # e^-epsilon, would leave room for no release.
    epsilon = min(epsilon_micro / EPSILON_UNITS, _LARGEST_EPSILON)
    return open_filter(epsilon, delta_1e15 / DELTA_UNITS)


def _if_all_others_collude(release: DpEvent, honest_survivors: int) -> DpEvent:
    if not (
        isinstance(release, PoissonSampledDpEvent) and isinstance(release.event, GaussianDpEvent)
    ):
        raise AccountantError(
            f"Expected one Poisson-sampled Gaussian release, got {type(release).__name__}."
        )
    noise = release.event.noise_multiplier / math.sqrt(honest_survivors)
    return PoissonSampledDpEvent(release.sampling_probability, GaussianDpEvent(noise))


def _share(spent: int, limit: int) -> float:
    return spent / limit if limit else float(spent > 0)
