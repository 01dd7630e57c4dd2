"""Figures of privacy as people read them: rounded to the side that never flatters."""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

__all__ = ["at_least", "at_most"]


def at_most(value: float, places: int = 4) -> str:
    """Write an upper bound, such as a spent epsilon, rounded up.

    Args:
        value: finite or infinite.
        places: decimals.

    """
    return _rounded(value, places, ROUND_CEILING)


def at_least(value: float, places: int = 4) -> str:
    """Write what is left of a budget, or a lower bound, rounded down; see `at_most`."""
    return _rounded(value, places, ROUND_FLOOR)


def _rounded(value: float, places: int, rounding: str) -> str:
    # repr: 0.1 stays 0.1, although the float is a little above it.
    exact = Decimal(repr(float(value)))
    if not exact.is_finite():
        return str(float(value))
    return f"{exact.quantize(Decimal(1).scaleb(-places), rounding=rounding):f}"
