"""One round's mechanism: the single object that binds sampler, clip, noise, lattice and DP event.

Sampling, clipping, noise and accounting all read the same frozen `PrivateStep`, so they cannot
disagree. The coordinator signs it inside the round plan; every node recomputes the event from it.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal, Self

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

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent

CLIPPING_SLACK = 1.001
"""Float sums of clipped gradients exceed C by up to 3.7e-5 relative; noise is scaled for 1e-3."""

SMALLEST_CLIPPING_NORM = 1e-9
"""Lower limit of C: squares of fp32 gradients that C is compared with do not vanish above it."""

SMALLEST_DELTA = 1e-10
"""Below, the accountant's Fourier transforms, in float64, lose their precision."""

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


class PlanError(ValueError):
    """A step or a DP event that no node may act on."""


class PrivateStep(BaseModel):
    """The mechanism of one optimiser step, and the length of the schedule it belongs to.

    Formal guarantee: if at least `honest_survivors` nodes follow the step, the published sum is
    the Poisson-subsampled Gaussian mechanism `event()` on the pooled units, in the add-or-remove-
    one relation per (unit, node), up to the factor of `privacy.dp.lattice_bounds.lattice_slack`.

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

    def event(self) -> "DpEvent":
        """The DP event of one release, for a unit of an honest node."""
        return self._release_event(self.noise_multiplier)

    def schedule_event(self) -> "DpEvent":
        """The DP event of the whole schedule: `releases` times `event()`."""
        from privacy.dp.events import repeated  # noqa: PLC0415

        return repeated(self.event(), self.releases)

    def event_if_all_others_collude(self) -> "DpEvent":
        """The event of one release if every other member subtracts its own noise: z / sqrt(h)."""
        return self._release_event(self.noise_multiplier / math.sqrt(self.honest_survivors))

    def event_json(self) -> JsonValue:
        """`event()` in the exact to_named_tuple form, as JSON."""
        from privacy.dp.events import event_json  # noqa: PLC0415

        return event_json(self.event())

    def _release_event(self, noise_multiplier: float) -> "DpEvent":
        # the accountant's library takes a second to load, which who only reads plans does not need
        from privacy.dp.events import sampled_gaussian, without_noise  # noqa: PLC0415

        if not self.is_private:
            return without_noise()
        q = 1.0 if self.unit == INSTITUTION else self.sampling_probability
        return sampled_gaussian(q, noise_multiplier)
