"""Audit of a run's releases: does what leaves the nodes hide one unit as well as is claimed.

White-box Dirac canaries (Nasr et al. 2023, arXiv 2302.07956): each is a unit whose clipped gradient
is C in a coordinate of its own. They pass the sampler, the noise, the lattice and the ring that
updates pass, in every release of the schedule, and the attacker sees every opened sum. Only as many
members as the claim counts on are there: the noise of all others is what colluders would subtract.

Training itself takes no part, so clipping is not audited here; tests/clipping compares it with
brute force.

Shapes: M canaries, each a coordinate.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.entropy import Entropy
from privacy.audit.one_run import Guesses, audit_scores, most_that_can_show
from privacy.dp.lattice import decode, encode, release_variance
from privacy.dp.plan import PrivateStep
from privacy.dp.sampling import PoissonSampler


@dataclass(frozen=True)
class MechanismAudit:
    """A claim beside what could be shown against it.

    Attributes:
        claim: epsilon that the schedule is charged. delta: of both figures.
        bound: lower bound on epsilon at `confidence`.
        most: what the bound would be if every guess were right; a claim above it cannot be refuted.
        guesses: behind the bound.

    """

    claim: float
    delta: float
    confidence: float
    bound: float
    most: float
    guesses: Guesses

    @property
    def is_refuted(self) -> bool:
        """Whether the releases show more than the claim allows."""
        return self.bound > self.claim


def audit_mechanism(
    step: PrivateStep,
    claim: float,
    delta: float,
    *,
    canaries: int,
    confidence: float,
    entropy: Entropy,
) -> MechanismAudit:
    """Run a whole schedule over canaries alone, and attack it.

    Args:
        step: the mechanism, with noise.
        claim: epsilon at `delta` that the schedule is charged.
        canaries: m >= 10. confidence: of the bound.
        entropy: where canaries, samples and noise come from.

    Raises:
        AuditError: too few canaries. LatticeError: a step without noise.

    """
    most = most_that_can_show(canaries, delta, confidence)
    included_M = entropy.uniform("canaries").words(canaries) < np.uint64(1 << 63)
    score_M = np.zeros(canaries)
    for release in range(step.releases):
        score_M += _log_likelihood_ratio(_opened_sum(step, included_M, entropy, release), step)
    bound, guesses = audit_scores(score_M, included_M, delta, confidence)
    return MechanismAudit(claim, delta, confidence, bound, most, guesses)


def _opened_sum(
    step: PrivateStep, included_M: NDArray[np.bool_], entropy: Entropy, release: int
) -> NDArray[np.float64]:
    """One release of h members, each with its share of the canaries and of the noise."""
    total = None
    for member in range(step.honest_survivors):
        own = np.flatnonzero(included_M)[member :: step.honest_survivors]
        place = ("member", member, release)
        drawn = PoissonSampler(step.sampling_probability, entropy.uniform(*place)).draw(len(own))
        vector_M = np.zeros(len(included_M), np.float32)
        vector_M[own[drawn]] = step.clipping_norm
        words = encode(vector_M, step, entropy.gaussian(*place))
        total = words if total is None else total + words  # modulo the ring
    assert total is not None, "a step has a survivor"
    return decode(total, step)


def _log_likelihood_ratio(sum_M: NDArray[np.float64], step: PrivateStep) -> NDArray[np.float64]:
    """Log of in over out: a mixture of drawn and not drawn, against noise alone."""
    q, clip = step.sampling_probability, step.clipping_norm
    variance = release_variance(step, step.honest_survivors)
    drawn_M: NDArray[np.float64] = np.log(q) + (2 * sum_M * clip - clip**2) / (2 * variance)
    if q == 1:
        return drawn_M
    ratio_M: NDArray[np.float64] = np.logaddexp(np.log1p(-q), drawn_M)
    return ratio_M
