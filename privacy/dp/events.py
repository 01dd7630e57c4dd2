"""DP events of a mechanism, and their written form: what ledgers hold and accountants compose."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from dp_accounting.dp_event import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from pydantic import JsonValue

from privacy.dp.plan import PlanError

_EVENT_MODULE = "dp_accounting.dp_event"


def sampled_gaussian(sampling_probability: float, noise_multiplier: float) -> DpEvent:
    """The Gaussian mechanism on a Poisson sample."""
    return PoissonSampledDpEvent(sampling_probability, GaussianDpEvent(noise_multiplier))


def without_noise() -> DpEvent:
    """A release that nothing protects."""
    return NonPrivateDpEvent()


def repeated(event: DpEvent, count: int) -> DpEvent:
    """An event, so many times."""
    return SelfComposedDpEvent(event, count)


def event_json(event: DpEvent) -> JsonValue:
    """Write a DP event as JSON: the fields of its to_named_tuple(), nested tuples as objects.

    Args:
        event: an event made of the kinds that the accountant accepts.

    Returns:
        {"module_name", "class_name", fields...}; `event_from_json` restores an equal event.

    Raises:
        PlanError: an event of a kind that is not listed, or a field out of its range.

    """
    written = _written(event)
    event_from_json(written)
    return written


def event_from_json(value: JsonValue) -> DpEvent:
    """Read a DP event written by `event_json`; fails closed on anything it does not know.

    Only the listed event classes are ever built: the module's name is compared, never imported.

    Raises:
        PlanError: unknown module, class or field; a number out of range or not finite.

    """
    if not isinstance(value, dict):
        raise PlanError(f"Expected a DP event as an object, got {type(value).__name__}.")
    class_name = value.get("class_name")
    if value.get("module_name") != _EVENT_MODULE or class_name not in _FIELDS:
        raise PlanError(
            f"Expected a DP event of {_EVENT_MODULE} among {sorted(_FIELDS)}, got "
            f"{value.get('module_name')!r}, {class_name!r}. Update this node or refuse the plan."
        )
    cls, fields = _FIELDS[str(class_name)]
    if set(value) != {"module_name", "class_name", *fields}:
        raise PlanError(f"Expected the fields {sorted(fields)} in {class_name}, got {list(value)}.")
    return cls(**{name: read(value[name]) for name, read in fields.items()})


def _written(value: Any) -> JsonValue:
    """Write what `event_from_json` reads; to_named_tuple itself makes a new class each time."""
    if isinstance(value, DpEvent):
        kind = type(value)
        _, fields = _FIELDS.get(kind.__name__, (kind, {}))
        names = {"module_name": kind.__module__, "class_name": kind.__name__}
        return names | {name: _written(getattr(value, name)) for name in fields}
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    if isinstance(value, int | float | str):
        return value
    raise PlanError(f"Expected numbers and events in a DP event, got {type(value).__name__}.")


def _number(value: JsonValue) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PlanError(f"Expected a finite number in a DP event, got {value!r}.")
    return float(value)


def _noise_multiplier(value: JsonValue) -> float:
    number = _number(value)
    if number <= 0:
        raise PlanError(f"Expected noise_multiplier > 0 in a DP event, got {number!r}.")
    return number


def _probability(value: JsonValue) -> float:
    number = _number(value)
    if not 0 < number <= 1:
        raise PlanError(f"Expected sampling_probability in (0, 1] in a DP event, got {number!r}.")
    return number


def _count(value: JsonValue) -> int:
    number = _number(value)
    if number < 1 or number != int(number):
        raise PlanError(f"Expected a whole count >= 1 in a DP event, got {number!r}.")
    return int(number)


def _events(value: JsonValue) -> list[DpEvent]:
    if not isinstance(value, list):
        raise PlanError(f"Expected a list of DP events, got {type(value).__name__}.")
    return [event_from_json(item) for item in value]


_FIELDS: Mapping[str, tuple[type[DpEvent], Mapping[str, Callable[[JsonValue], object]]]] = {
    "ComposedDpEvent": (ComposedDpEvent, {"events": _events}),
    "GaussianDpEvent": (GaussianDpEvent, {"noise_multiplier": _noise_multiplier}),
    "NoOpDpEvent": (NoOpDpEvent, {}),
    "NonPrivateDpEvent": (NonPrivateDpEvent, {}),
    "PoissonSampledDpEvent": (
        PoissonSampledDpEvent,
        {"sampling_probability": _probability, "event": event_from_json},
    ),
    "SelfComposedDpEvent": (SelfComposedDpEvent, {"event": event_from_json, "count": _count}),
}
