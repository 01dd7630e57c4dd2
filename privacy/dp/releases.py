"""The single releases that a DP event consists of, each with its noise and how often it happens."""

import math
from collections.abc import Iterator

from dp_accounting.dp_event import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)


class AccountantError(ValueError):
    """An event or a target that cannot be bounded; nothing may be released on it."""


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


def count_releases(event: DpEvent) -> int:
    """How many noisy vectors an event stands for; NoOpDpEvent counts zero."""
    return sum(count for leaf, count in leaf_events(event) if not isinstance(leaf, NoOpDpEvent))
