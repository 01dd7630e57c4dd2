"""Audit of a run's releases: does what leaves the nodes hide one unit as well as is claimed.

White-box Dirac canaries (Nasr et al. 2023, arXiv 2302.07956): each is a unit whose clipped gradient
is C in a coordinate of its own. They pass the sampler, the noise, the lattice and the ring that
updates pass, in every release of the schedule, and the attacker sees every opened sum.

Training itself takes no part: `arion.audit_training` goes through it.

Shapes: M canaries, each a coordinate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arion.audit_canaries import (
    Bound,
    bound_of,
    dealt,
    draw_included,
    log_likelihood_ratio,
    opened_sum,
)
from client.entropy import Entropy
from privacy.dp.plan import PrivateStep


@dataclass(frozen=True)
class _Diracs:
    """A member whose units' clipped gradients are known: C in their own coordinate."""

    own: NDArray[np.int64]
    canaries: int

    @property
    def unit_count(self) -> int:
        return len(self.own)

    def clipped_sum(self, drawn: NDArray[np.int64], step: PrivateStep) -> NDArray[np.float32]:
        vector_M = np.zeros(self.canaries, np.float32)
        vector_M[self.own[drawn]] = step.clipping_norm
        return vector_M


def audit_mechanism(
    step: PrivateStep, delta: float, *, canaries: int, confidence: float, entropy: Entropy
) -> Bound:
    """Run a whole schedule over canaries alone, and attack it.

    Args:
        step: the mechanism, with noise. delta: of the claim.
        canaries: m >= 10. confidence: of the bound.
        entropy: where canaries, samples and noise come from.

    Raises:
        AuditError: too few canaries. LatticeError: a step without noise.

    """
    included_M = draw_included(canaries, entropy, "mechanism")
    members = [_Diracs(own, canaries) for own in dealt(included_M, step.honest_survivors)]
    score_M = np.zeros(canaries)
    for release in range(step.releases):
        sum_M = opened_sum(members, step, entropy, ("mechanism", release))
        score_M += log_likelihood_ratio(sum_M, step.clipping_norm, step)
    return bound_of("mechanism", score_M, included_M, delta, confidence)
