"""What a node makes of one round before it is masked: draw, clip, sum, add noise, round, reduce."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.entropy import Entropy
from privacy.dp.lattice import Words, encode
from privacy.dp.plan import PrivateStep
from privacy.dp.sampling import PoissonSampler


class Trainer(Protocol):
    """What a release asks of local training."""

    @property
    def unit_count(self) -> int:
        """Privacy units of this node."""

    def clipped_sum(self, drawn: NDArray[np.int64], step: PrivateStep) -> NDArray[np.float32]:
        """Sum of clipped gradients over the drawn units, fp32 [vector_length]."""


def release_words(
    trainer: Trainer, step: PrivateStep, entropy: Entropy, place: tuple[str | int, ...]
) -> Words:
    """Make one node's share of a release: what the gate masks, and what an audit attacks.

    Args:
        trainer: of the node's units. step: the mechanism.
        entropy: of sample and noise. place: in its streams; used for no other release.

    Returns:
        Words modulo 2^w, shape [vector_length].

    Formal guarantee: as `privacy.dp.lattice.encode`, subsampled by `PoissonSampler`.

    """
    sampler = PoissonSampler(step.sampling_probability, entropy.uniform(*place))
    drawn = sampler.draw(trainer.unit_count)
    gaussian = entropy.gaussian(*place) if step.is_private else None
    return encode(trainer.clipped_sum(drawn, step), step, gaussian)
