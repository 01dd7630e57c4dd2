"""Whether an opened sum can be one of clipped contributions and noise: a bound on its norm.

Masks hide what a member sends; the sum does not hide how large it is. Symbols: C clipping norm,
B expected batch, g groups, U units in a group's sum at most, V variance of the noise in a
coordinate, d coordinates, A the group's survivors.
"""

import math

import numpy as np
from numpy.typing import NDArray

from privacy.dp.lattice import release_variance
from privacy.dp.plan import CLIPPING_SLACK
from privacy.rounds import RoundPlan
from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.units import INSTITUTION

_PIECE = 1 << 16
_BITS = 40
_DEVIATIONS = 10.0


def largest_norm(plan: RoundPlan, survivors: int, batches: float) -> float:
    """Bound the l2 norm of an honest sum: C U + sqrt(V) (sqrt(d) + sqrt(2 ln 2^40)).

    A Gaussian's norm exceeds sqrt(V) (sqrt(d) + t) with probability at most exp(-t^2 / 2). U is
    `batches` B / g and ten standard deviations of a Poisson count, or |A| where a member is a unit.

    Args:
        plan: a private plan.
        survivors: |A|.
        batches: multiples of B that the units drawn may be expected to come to: B is a constant
            of the run, and nobody but the nodes knows how many units there are.

    Source: Boucheron, Lugosi, Massart 2013, theorem 5.6 (Gaussian concentration).

    """
    expected = batches * plan.step.expected_batch / plan.groups
    units = expected + _DEVIATIONS * math.sqrt(expected)
    if plan.step.unit == INSTITUTION:
        units = survivors
    noise = math.sqrt(release_variance(plan.step, survivors))
    spread = math.sqrt(plan.vector_length) + math.sqrt(2 * _BITS * math.log(2))
    return CLIPPING_SLACK * plan.step.clipping_norm * units + noise * spread


def check_norm(sum_D: NDArray[np.float32], plan: RoundPlan, survivors: int, batches: float) -> None:
    """Refuse a group's sum that honest members do not make; without noise there is no bound.

    Raises:
        SecAggAbort: BAD_NORM; nothing of the sum is applied.

    """
    if not plan.step.is_private:
        return
    pieces = np.split(sum_D, range(_PIECE, len(sum_D), _PIECE))
    # In one thread: those of a dot product would wait for one another at every piece.
    norm = math.sqrt(math.fsum(np.einsum("i,i->", x, x, dtype=np.float64) for x in pieces))
    bound = largest_norm(plan, survivors, batches)
    if not norm <= bound:
        raise SecAggAbort(
            AbortCode.BAD_NORM,
            f"Expected a sum of norm at most {bound:.6g}, got {norm:.6g}: some member did not "
            "clip, or far more units were drawn than expected_batch says. Find that member, or "
            "raise federation.plausible_batches.",
        )
