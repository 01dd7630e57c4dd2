"""A domain embedding under differential privacy: the noised sum of clipped per-unit embeddings.

The sum is never divided by the number of units: that number would be a second thing released. What
the router's rows need of it is its direction.

Shapes: D coordinates of an embedding (layers times hidden width).
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privacy.dp.lattice import noised_sum
from privacy.dp.noise import GaussianSource
from privacy.dp.plan import PlanError, PrivateStep

_GRID = 2.0**32
"""Steps of one clipping norm; up to 2^31 units add up within 64 bits."""


def clipped_embedding_sum(
    embeddings: Iterable[Tensor], clipping_norm: float, length: int
) -> NDArray[np.float64]:
    """Sum each unit's embedding after scaling it to a norm of at most C, fp64 [D].

    Args:
        embeddings: one tensor for each unit, of `length` elements, a function of that unit alone.
        clipping_norm: C > 0. length: D.

    Raises:
        PlanError: an embedding of another length.

    Formal guarantee: adding or removing one unit moves the sum by at most C (1 + 2^-33 sqrt(D)) in
    l2 norm, which `PrivateStep.sensitivity` covers for every D < 2^46: contributions are rounded to
    multiples of 2^-32 C and added as integers, so that no sum rounds.

    | unit's embedding | contributes |
    |---|---|
    | norm at most C | itself |
    | longer | its direction times C |
    | any element not finite | zero |

    """
    total = np.zeros(length, dtype=np.int64)
    for embedding in embeddings:
        x_D = embedding.detach().double().flatten().numpy()
        if len(x_D) != length:
            raise PlanError(f"Expected embeddings of {length} elements, got {len(x_D)}.")
        norm = float(np.linalg.norm(x_D))
        if np.isfinite(norm):
            total += np.rint(x_D * (_GRID / max(norm, clipping_norm))).astype(np.int64)
    return total.astype(np.float64) * (clipping_norm / _GRID)


def release_embedding(
    embeddings: Iterable[Tensor], step: PrivateStep, length: int, source: GaussianSource
) -> NDArray[np.float32]:
    """Release the sum over all units with noise, once, [D].

    Args:
        embeddings: of every unit of the node; see `clipped_embedding_sum`.
        step: `LocalPlan.embedding`.
        length: D.
        source: the noise.

    Raises:
        PlanError: a step that samples units or is released more than once.

    Formal guarantee: the Gaussian mechanism `step.event()` at sensitivity C, add or remove one.

    """
    if step.sampling_probability != 1 or step.releases != 1:
        raise PlanError(
            f"Expected one release over all units, got sampling_probability "
            f"{step.sampling_probability!r} and {step.releases} releases. Use a plan's `embedding`."
        )
    total = clipped_embedding_sum(embeddings, step.clipping_norm, length)
    return noised_sum(total, step, source)
