"""What audits by canaries share: who is in, what the coordinator opens, how it is read.

A canary is a privacy unit that is put in with probability 1/2: a clipped gradient in the mechanism
audit (`arion.audit_mechanism`), a text in the training audit (`arion.audit_training`). Both release
through `client.release`, as a node does, with as many members as the claim counts on: the noise of
all others is what colluders would subtract.

Shapes: M canaries, D coordinates of a release.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.entropy import Entropy
from client.release import Trainer, release_words
from privacy.audit.one_run import AuditError, Guesses, audit_scores, most_that_can_show
from privacy.dp.lattice import decode, release_variance
from privacy.dp.plan import PrivateStep

FEWEST = 10
_EVEN = np.uint64(1 << 63)


@dataclass(frozen=True)
class Claim:
    """What is said of a mechanism: (epsilon, delta)-DP per unit, and where that is written."""

    epsilon: float
    delta: float
    source: str


@dataclass(frozen=True)
class Bound:
    """What one way of attacking shows.

    Attributes:
        attack: its name, a key of `ATTACKS`.
        epsilon: lower bound, at the confidence that this attack got.
        most: what the bound would be if every guess were right; more cannot be shown.
        guesses: behind the bound.

    """

    attack: str
    epsilon: float
    most: float
    guesses: Guesses


ATTACKS = {
    "mechanism": "gradient canaries with a coordinate each; every opened sum is seen",
    "gradient": "text canaries in training; every opened sum and model is seen",
    "loss": "text canaries in training; the last model alone is seen",
}


@dataclass(frozen=True)
class CanaryAudit:
    """A claim beside all that was tried against it.

    Attributes:
        confidence: that all bounds hold at once; each attack got its share of the error.

    """

    claim: Claim
    confidence: float
    bounds: tuple[Bound, ...]

    @property
    def bound(self) -> float:
        """The largest lower bound."""
        return max(bound.epsilon for bound in self.bounds)

    @property
    def is_refuted(self) -> bool:
        """Whether some attack shows more than the claim allows."""
        return self.bound > self.claim.epsilon


def share_of_confidence(confidence: float, tried: int) -> float:
    """Confidence of each of `tried` statements, so that all hold at once (union bound).

    Raises:
        AuditError: a confidence that is not in (0, 1).

    """
    if not 0 < confidence < 1:
        raise AuditError(f"Expected a confidence in (0, 1), got {confidence}. Give 0.95.")
    return 1 - (1 - confidence) / tried


def draw_included(canaries: int, entropy: Entropy, *place: str) -> NDArray[np.bool_]:
    """Toss a fair coin for every canary, before anything is looked at; shape [M].

    Raises:
        AuditError: fewer than 10 canaries.

    """
    if canaries < FEWEST:
        raise AuditError(f"Expected at least {FEWEST} canaries, got {canaries}. Use more.")
    return entropy.uniform("canaries", *place).words(canaries) < _EVEN


def dealt(included_M: NDArray[np.bool_], members: int) -> list[NDArray[np.int64]]:
    """Indices of the canaries that are in, dealt out to the members."""
    within = np.flatnonzero(included_M)
    return [within[member::members] for member in range(members)]


def opened_sum(
    trainers: Sequence[Trainer], step: PrivateStep, entropy: Entropy, place: tuple[str | int, ...]
) -> NDArray[np.float64]:
    """One release as the coordinator opens it: the members' shares, summed in the ring, [D]."""
    total = None
    for member, trainer in enumerate(trainers):
        words = release_words(trainer, step, entropy, (*place, member))
        total = words if total is None else total + words  # modulo the ring
    assert total is not None, "a step has a survivor"
    return decode(total, step).astype(np.float64)  # scores are computed in it


def log_likelihood_ratio(
    along_M: NDArray[np.float64], norm_M: NDArray[np.float64] | float, step: PrivateStep
) -> NDArray[np.float64]:
    """Log of in over out, for one release: a mixture of drawn and not drawn, against noise alone.

    Args:
        along_M: the opened sum along the direction of each canary's gradient.
        norm_M: length of each canary's clipped gradient.
        step: the mechanism as claimed.

    """
    q, variance = step.sampling_probability, release_variance(step, step.honest_survivors)
    drawn_M: NDArray[np.float64] = np.log(q) + (2 * along_M * norm_M - norm_M**2) / (2 * variance)
    if q == 1:
        return drawn_M
    ratio_M: NDArray[np.float64] = np.logaddexp(np.log1p(-q), drawn_M)
    return ratio_M


def bound_of(
    attack: str,
    score_M: NDArray[np.float64],
    included_M: NDArray[np.bool_],
    delta: float,
    confidence: float,
) -> Bound:
    """Turn an attack's scores into its bound, at its own confidence."""
    most = most_that_can_show(len(score_M), delta, confidence)
    epsilon, guesses = audit_scores(score_M, included_M, delta, confidence)
    return Bound(attack, epsilon, most, guesses)
