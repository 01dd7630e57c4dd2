"""The mechanism of a module that one node trains and releases alone: all of its noise is its own.

An institution trains experts of its own against the frozen shared model. What leaves is one module,
made of one noised sum of per-unit embeddings (for the router's rows) and T steps of DP-SGD.
"""

from typing import Literal, Self

from dp_accounting.dp_event import ComposedDpEvent, DpEvent
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from privacy.dp.accountant import calibrate_noise_multiplier, epsilon
from privacy.dp.events import event_json
from privacy.dp.plan import PlanError, PrivateStep
from privacy.units import INSTITUTION

LOCAL_RING_BITS: Literal[32] = 32
"""No ring is shared with others, so the wide one is taken: its words hold 2^29 sigma at s = 4."""

EMBEDDING_SHARE = 0.2
"""Part of epsilon that the embedding may use up on its own; composition makes it cost less."""


class LocalPlan(BaseModel):
    """Sampler, clip, noise and DP event of a module's whole training, bound in one frozen object.

    Formal guarantee: the module is a post-processing of `event()` on the node's units, in the add-
    or-remove-one relation per unit, whatever anyone else does: no other party's noise is counted.

    Attributes:
        embedding: the one release of the sum of clipped embeddings, over all units (q = 1).
        step: the T optimiser steps (`step.releases`).
        embedding_length: coordinates of the embedding release.
        vector_length: coordinates of a step's release: the trainable parameters.

    Raises:
        PlanError: a part without noise of its own, or parts that disagree.

    Source: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1; docs/privacy.md, "Owned experts".

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    embedding: PrivateStep
    step: PrivateStep
    embedding_length: int = Field(ge=1)
    vector_length: int = Field(ge=1)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for name, part in (("embedding", self.embedding), ("step", self.step)):
            if not part.is_private or part.honest_survivors != 1:
                raise PlanError(
                    f"Expected noise_multiplier > 0 and honest_survivors = 1 for {name}, got "
                    f"{part.noise_multiplier!r} and {part.honest_survivors}. A module that leaves "
                    "alone carries all of its noise itself."
                )
        if INSTITUTION in {self.embedding.unit, self.step.unit}:
            raise PlanError(
                f"Expected a unit within the institution, got {INSTITUTION!r}: a module's owner "
                "clips each unit alone. Set the unit to a field of the data, or to record."
            )
        if (self.embedding.sampling_probability, self.embedding.releases) != (1.0, 1):
            raise PlanError(
                "Expected one release of the embedding over all units, got sampling_probability "
                f"{self.embedding.sampling_probability!r} and {self.embedding.releases} releases. "
                "Set both to 1."
            )
        if self.embedding.clipping != "fixed":
            raise PlanError(
                f'Expected clipping = "fixed" for embedding, got {self.embedding.clipping!r}: its '
                "sum knows no other rule. Set it to fixed."
            )
        for name in ("unit", "noise_in_lattice_units", "ring_bits"):
            ours, theirs = getattr(self.embedding, name), getattr(self.step, name)
            if ours != theirs:
                raise PlanError(
                    f"Expected one {name} for the whole plan, got {ours!r} for embedding and "
                    f"{theirs!r} for step. Set both to the same."
                )
        return self

    def event(self) -> DpEvent:
        """The DP event of the module: the embedding, then T steps."""
        return ComposedDpEvent([self.embedding.event(), self.step.schedule_event()])

    def event_json(self) -> JsonValue:
        """`event()` in the exact to_named_tuple form, as JSON: what the ledger keeps."""
        return event_json(self.event())

    @property
    def longest(self) -> int:
        """Coordinates of the longer of the two vectors, whose slack every release is charged."""
        return max(self.embedding_length, self.vector_length)

    def epsilon(self, delta: float) -> float:
        """Upper bound on the module's epsilon at delta, rounding and finite precision included.

        Args:
            delta: see `privacy.dp.accountant.epsilon`.

        Formal guarantee: the slack of the longer of the two vectors is charged for every release.

        """
        return epsilon(
            self.event(),
            delta,
            vector_length=self.longest,
            contributors=1,
            noise_in_lattice_units=self.step.noise_in_lattice_units,
        )


def calibrate_local_plan(
    target_epsilon: float,
    delta: float,
    *,
    steps: int,
    sampling_probability: float,
    expected_batch: float,
    unit: str,
    vector_length: int,
    embedding_length: int,
    clipping_norm: float = 1.0,
    embedding_clipping_norm: float = 1.0,
) -> LocalPlan:
    """The plan with the least noise found that keeps a module within epsilon at delta.

    Args:
        target_epsilon: > 0, for the whole module.
        delta: see `privacy.dp.accountant.epsilon`.
        steps: T >= 1 optimiser steps.
        sampling_probability: q in (0, 1], a constant that was not computed from the data.
        expected_batch: B > 0, likewise.
        unit: the consent's privacy unit.
        vector_length: trainable parameters.
        embedding_length: coordinates of the embedding release.
        clipping_norm: C of a unit's gradient.
        embedding_clipping_norm: C of a unit's embedding.

    Returns:
        A plan with `plan.epsilon(delta) <= target_epsilon`.

    Raises:
        AccountantError, PlanError: a target that cannot be reached, or a value out of range.

    """
    length = max(vector_length, embedding_length)

    def part(noise: float, clip: float, q: float, batch: float, releases: int) -> PrivateStep:
        return PrivateStep(
            clipping_norm=clip,
            noise_multiplier=noise,
            sampling_probability=q,
            expected_batch=batch,
            honest_survivors=1,
            releases=releases,
            unit=unit,
            ring_bits=LOCAL_RING_BITS,
        )

    share = EMBEDDING_SHARE * target_epsilon
    noise = calibrate_noise_multiplier(share, delta, 1.0, 1, vector_length=length)
    embedding = part(noise, embedding_clipping_norm, 1.0, 1.0, 1)
    noise = calibrate_noise_multiplier(
        target_epsilon,
        delta,
        sampling_probability,
        steps,
        beside=embedding.event(),
        vector_length=length,
    )
    return LocalPlan(
        embedding=embedding,
        step=part(noise, clipping_norm, sampling_probability, expected_batch, steps),
        embedding_length=embedding_length,
        vector_length=vector_length,
    )
