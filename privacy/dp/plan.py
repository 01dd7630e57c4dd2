"""One round's mechanism: the single object that binds sampler, clip, noise, lattice and DP event.

Sampling, clipping, noise and accounting all read the same frozen `PrivateStep`, so they cannot
disagree. The coordinator signs it inside the round plan; every node recomputes the event from it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from dp_accounting.dp_event import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NonPrivateDpEvent,
    NoOpDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

from privacy.units import INSTITUTION

CLIPPING_SLACK = 1.001
"""Float sums of clipped gradients exceed C by up to 3.7e-5 relative; noise is scaled for 1e-3."""

SMALLEST_CLIPPING_NORM = 1e-9
"""Lower limit of C: squares of fp32 gradients that C is compared with do not vanish above it."""

LARGEST_COHORT = 64
"""Sums of up to this many members fit the ring of a run without noise (which allows 50)."""

MOST_SURVIVORS = 1_000

VALUE_BOUND = 128.0
"""Largest magnitude of a coordinate in a run without noise; see `privacy.dp.lattice.encode`."""

SMALLEST_LATTICE_NOISE, LARGEST_LATTICE_NOISE = 3.0, 1024.0
"""Limits of s, the noise of one node in lattice units: the lemma of docs/privacy.md, the ring."""

RingBits = Literal[8, 12, 16, 32]
"""Widths w of the ring: below 16 an upload is smaller, and the ring holds less beside the noise."""

Clipping = Literal["fixed", "automatic"]
"""The rule by which a unit's gradient is scaled; see `privacy.dp.coefficients`."""

_RING_TAIL = 10

_EVENT_MODULE = "dp_accounting.dp_event"


class PlanError(ValueError):
    """A step or a DP event that no node may act on."""


class PrivateStep(BaseModel):
    """The mechanism of one optimiser step, and the length of the schedule it belongs to.

    Formal guarantee: if at least `honest_survivors` nodes follow the step, the published sum is
    the Poisson-subsampled Gaussian mechanism `event()` on the pooled units, in the add-or-remove-
    one relation per (unit, node), up to the factor that `privacy.dp.lattice.lattice_slack` gives.

    Attributes:
        clipping_norm: C >= 1e-9, the l2 bound of one unit's contribution.
        clipping: how contributions are brought within C; the bound is C for every rule.
        noise_multiplier: z >= 0, noise of the honest survivors' sum over the sensitivity;
            0 means no noise and no guarantee.
        sampling_probability: q in (0, 1], independently for every unit and every round.
        expected_batch: B > 0, the divisor of the sum; a run constant, never the drawn size.
        honest_survivors: h = n_min - c >= 1, members whose noise is surely in the sum.
        releases: T >= 1, rounds of the schedule, charged as a whole at its start.
        unit: "record", the name of the field that identifies the privacy unit, or "institution":
            the whole member, of which nothing is sampled (q = 1 in the event, whatever q says).
        noise_in_lattice_units: s >= 3, one node's noise divided by the lattice scale.
        ring_bits: width w of the ring Z/2^w; 32 for runs without noise. Sums beyond half of it, in
            lattice units, wrap: the release stays private and is wrong in that coordinate.

    Source: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1; docs/privacy.md for the shares.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    clipping_norm: float = Field(ge=SMALLEST_CLIPPING_NORM)
    noise_multiplier: float = Field(ge=0)
    sampling_probability: float = Field(gt=0, le=1)
    expected_batch: float = Field(gt=0)
    honest_survivors: int = Field(ge=1, le=MOST_SURVIVORS)
    releases: int = Field(ge=1)
    unit: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    noise_in_lattice_units: float = 4.0
    ring_bits: RingBits = 16
    clipping: Clipping = "fixed"

    @field_validator("noise_in_lattice_units")
    @classmethod
    def _lattice_is_fine_enough(cls, value: float) -> float:
        if not SMALLEST_LATTICE_NOISE <= value <= LARGEST_LATTICE_NOISE:
            raise PlanError(
                f"Expected noise_in_lattice_units from {SMALLEST_LATTICE_NOISE:g} to "
                f"{LARGEST_LATTICE_NOISE:g}, got {value:g}. Below, a sum of rounded shares is too "
                "far from Gaussian noise to be accounted as such; above, the ring holds too little "
                "beside the noise. Keep the default 4: the lattice follows the noise, so that "
                "every noise multiplier can have it."
            )
        return value

    @model_validator(mode="after")
    def _noise_fits_the_ring(self) -> Self:
        if not self.is_private and self.ring_bits != 32:
            raise PlanError(
                f"A step without noise needs ring_bits = 32, got {self.ring_bits}. "
                "Set ring_bits = 32 or noise_multiplier > 0."
            )
        noise = self.noise_in_lattice_units * math.sqrt(self.honest_survivors)
        if self.ring_bits < 16 and 2 ** (self.ring_bits - 1) < _RING_TAIL * noise:
            raise PlanError(
                f"Expected a ring that holds {_RING_TAIL} standard deviations of "
                f"{self.honest_survivors} members' noise, {noise:.4g} lattice units each, got "
                f"ring_bits = {self.ring_bits}. Set ring_bits = 16."
            )
        if not (self.lattice_scale > 0 and math.isfinite(self.lattice_scale)):
            raise PlanError(
                f"Expected a positive finite lattice scale, got {self.lattice_scale!r} from "
                f"noise_multiplier {self.noise_multiplier!r} and clipping_norm "
                f"{self.clipping_norm!r}. Choose values that float64 can multiply."
            )
        return self

    @property
    def is_private(self) -> bool:
        """Whether the step adds noise; without noise there is no differential privacy."""
        return self.noise_multiplier > 0

    @property
    def sensitivity(self) -> float:
        """The l2 sensitivity that the noise is scaled for: 1.001 C."""
        return CLIPPING_SLACK * self.clipping_norm

    @property
    def node_noise_std(self) -> float:
        """sigma_i = z * sensitivity / sqrt(h): one node's share of the noise, per coordinate."""
        return self.noise_multiplier * self.sensitivity / math.sqrt(self.honest_survivors)

    @property
    def lattice_scale(self) -> float:
        """gamma, the lattice's spacing: sigma_i / s; 2^-18 for a step without noise."""
        if self.is_private:
            return self.node_noise_std / self.noise_in_lattice_units
        return float(2 * LARGEST_COHORT * VALUE_BOUND / 2**32)

    def event(self) -> DpEvent:
        """The DP event of one release, for a unit of an honest node."""
        return self._release_event(self.noise_multiplier)

    def schedule_event(self) -> DpEvent:
        """The DP event of the whole schedule: `releases` times `event()`."""
        return SelfComposedDpEvent(self.event(), self.releases)

    def event_if_all_others_collude(self) -> DpEvent:
        """The event of one release if every other member subtracts its own noise: z / sqrt(h)."""
        return self._release_event(self.noise_multiplier / math.sqrt(self.honest_survivors))

    def event_json(self) -> JsonValue:
        """`event()` in the exact to_named_tuple form, as JSON."""
        return event_json(self.event())

    def _release_event(self, noise_multiplier: float) -> DpEvent:
        if not self.is_private:
            return NonPrivateDpEvent()
        q = 1.0 if self.unit == INSTITUTION else self.sampling_probability
        return PoissonSampledDpEvent(q, GaussianDpEvent(noise_multiplier))


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
