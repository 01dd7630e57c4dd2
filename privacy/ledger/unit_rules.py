"""What a run's reservation must say of the unit that it is charged for."""

from collections.abc import Iterator, Mapping

from privacy.canonical import JsonLike
from privacy.ledger.entries import RunReserved
from privacy.units import INSTITUTION, RECORD


def unit_faults(body: RunReserved, first: RunReserved) -> Iterator[str]:
    """Say in words what is wrong with a reservation.

    1. An institution is charged for releases in which nothing is sampled. 2. All runs of a ledger
    are charged for one unit: an epsilon per record adds up to none per patient. 3. Only a run of
    rounds whose units have keys is kept apart.

    Args:
        body: the reservation. first: the ledger's first one.

    """
    if body.unit == INSTITUTION and is_sampled(body.event):
        yield f"run {body.run!r} is charged as if the institution were sampled"
    if body.unit != first.unit:
        yield (
            f"run {body.run!r} is charged for the unit {body.unit!r} in a ledger charged for "
            f"{first.unit!r}: they do not add up"
        )
    if body.kept_apart and (body.job is not None or body.unit in {RECORD, INSTITUTION}):
        yield f"run {body.run!r} is kept apart, and has no unit keys to tell by"


def is_sampled(event: JsonLike) -> bool:
    """Tell whether a DP event, as JSON, claims that some of its releases draw units at random."""
    if isinstance(event, Mapping):
        q = event.get("sampling_probability", 1)
        return q != 1 or any(is_sampled(part) for part in event.values())
    return isinstance(event, list | tuple) and any(is_sampled(part) for part in event)
