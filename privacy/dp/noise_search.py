"""The search for the smallest noise multiplier that keeps within a target."""

import math
from collections.abc import Callable

from privacy.dp.releases import AccountantError

Fits = Callable[[float, float | None], bool]
"""(noise multiplier, discretisation or None for the finest) -> whether it keeps the target."""

_SEARCH_INTERVAL = 1e-3
_SMALLEST_NOISE, _LARGEST_NOISE = 1e-3, 1e6


def smallest_fitting(fits: Fits) -> float:
    """Bisect a monotone test of z: coarse grid to 2%, finest to 0.2%, rounded up to 1e-4.

    Raises:
        AccountantError: no noise reaches the target.

    """
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
    fits: Fits,
    low: float,
    high: float,
    ratio: float,
    interval: float | None,
) -> tuple[float, float]:
    while high > low * ratio:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle, interval) else (middle, high)
    return low, high
