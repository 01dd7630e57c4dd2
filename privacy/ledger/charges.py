"""What a reserved schedule costs, computed again from what a ledger says of it."""

from functools import lru_cache

from dp_accounting.dp_event import NonPrivateDpEvent, SelfComposedDpEvent
from pydantic import JsonValue

from privacy.canonical import canonical_bytes, parse_canonical
from privacy.dp.accountant import epsilon, epsilon_microunits
from privacy.dp.events import event_from_json
from privacy.ledger.entries import DELTA_UNITS, ScheduleBasis
from privacy.secagg.parameters import FAILURE

_OFF = 1 - 1e-9


def schedule_epsilon_micro(
    event: JsonValue, releases: int, delta_1e15: int, basis: ScheduleBasis | None = None
) -> int | None:
    """Recompute the epsilon of `releases` times `event`, in millionths rounded up.

    Args:
        event: DP event of one release, as `privacy.dp.events.event_json` writes it.
        releases: length of the schedule.
        delta_1e15: delta in units of 1e-15.
        basis: what else it depends on; None leaves out the slack of lattice and floats, and what a
            graph may fail with.

    Returns:
        What had to be charged, but for 1e-9 of it, by which one machine's floats may be off
        another's; a lower limit where there is no basis; None where there is no finite epsilon.

    Raises:
        ValueError: an event of an unknown kind, or a delta that the basis leaves nothing of.

    """
    return _schedule_epsilon_micro(canonical_bytes(event), releases, delta_1e15, basis)


@lru_cache(maxsize=256)
def _schedule_epsilon_micro(
    event: bytes, releases: int, delta_1e15: int, basis: ScheduleBasis | None
) -> int | None:
    release = event_from_json(parse_canonical(event))
    if isinstance(release, NonPrivateDpEvent):
        return None
    schedule, delta = SelfComposedDpEvent(release, releases), delta_1e15 / DELTA_UNITS
    if basis is None:
        spent = epsilon(schedule, delta)
    else:
        spent = _OFF * epsilon(
            schedule,
            delta - (FAILURE if basis.is_sparse else 0.0),
            vector_length=basis.vector_length,
            contributors=basis.contributors,
            noise_in_lattice_units=basis.noise_in_lattice_units,
        )
    return None if spent == float("inf") else epsilon_microunits(spent)
