"""An artefact's weights, read back from its files and held against what they were rounded from."""

from dataclasses import dataclass

from torch import Tensor

from models.decoder import Decoder
from models.variants.extras import VariantError


@dataclass(frozen=True)
class Rounding:
    """How far a tensor of an artefact is from the exact one.

    Attributes:
        error: largest difference, over the largest magnitude of the tensor.
        limit: of the tensor's number type (`gguf_types.LARGEST_ERROR` and the like).

    """

    name: str
    error: float
    limit: float


@dataclass(frozen=True)
class Readback:
    """A decoder of the weights that the artefact holds, and each tensor's rounding."""

    model: Decoder
    roundings: tuple[Rounding, ...]


def rounding(name: str, exact: Tensor, stored: Tensor, limit: float) -> Rounding:
    """Compare a tensor.

    Raises:
        VariantError: another shape.

    """
    if stored.shape != exact.shape:
        raise VariantError(
            f"Expected shape {tuple(exact.shape)} of {name}, got {tuple(stored.shape)}. Export the "
            "artefact again."
        )
    largest = exact.abs().max().clamp_min(1e-30)
    return Rounding(name, float((stored - exact).abs().max() / largest), limit)


def check_names(found: set[str], wanted: set[str]) -> None:
    """Raise VariantError unless exactly the wanted tensors are there."""
    missing, surplus = sorted(wanted - found), sorted(found - wanted)
    if missing or surplus:
        raise VariantError(
            f"Expected exactly the model's tensors in the artefact, got missing {missing[:3]}, "
            f"surplus {surplus[:3]}. Export the artefact again."
        )
