"""Where a node's randomness comes from: the operating system, or the seed of a simulation."""

from dataclasses import dataclass

from privacy.dp.noise import GaussianSource, SecureGaussian, SeededGaussian, derive_seeded_key
from privacy.dp.sampling import SecureUniform, SeededUniform, UniformSource


@dataclass(frozen=True)
class Entropy:
    """Fresh streams for each place where a node draws; no two places share a stream.

    Attributes:
        seed: of a seeded simulation, whose streams anyone with the seed can draw again; None takes
            a fresh key from the operating system for every stream.

    """

    seed: int | None

    def uniform(self, *place: str | int) -> UniformSource:
        """Words for the sampler at a place, such as (node, run, round, attempt)."""
        if self.seed is None:
            return SecureUniform()
        return SeededUniform(derive_seeded_key(self.seed, "sample", *place))

    def gaussian(self, *place: str | int) -> GaussianSource:
        """Noise at a place."""
        if self.seed is None:
            return SecureGaussian()
        return SeededGaussian(derive_seeded_key(self.seed, "noise", *place))
