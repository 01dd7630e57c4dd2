"""Before a node reserves its budget: that this model trains here, and that clipping holds for it.

Checked on tokens drawn from a fixed seed, not on anybody's text: what is found out says nothing.

Shapes: B sequences, T positions, U privacy units.
"""

import torch

from models.language_model import LanguageModel
from models.training_settings import Recipe
from privacy.dp.clipping import Chunk, add_clipped_gradients, trained_parameters
from privacy.dp.records import UnitLayout

_UNITS, _POSITIONS, _CLIPPING_NORM = 3, 32, 1e-3
# Norms of one unit in other company: equal but for rounding, fp32 and bf16.
_SAME = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
_SLACK = 1.001


class PreflightError(ValueError):
    """A model that must not be trained privately; nothing was spent on it."""


def check_private_gradients(model: LanguageModel, recipe: Recipe) -> None:
    """Check that something is trained, unit by unit, within the clipping norm.

    Args:
        model: prepared by the recipe, at the round's weights; it is not changed.
        recipe: gives the length of sequences.

    Raises:
        PreflightError: nothing is trained, no unit has a finite gradient, one depends on the
            others, or the clipped gradient exceeds the norm.
        ClippingError: a trained weight escapes the engine.

    """
    if not trained_parameters(model):
        raise PreflightError(
            "Expected trained parameters, got a model that is frozen throughout. Choose another "
            "recipe."
        )
    length = min(_POSITIONS, recipe.sequence_length)
    alone, whole = _clipped(model, length, (0, 1, 2), only=0)
    company, _ = _clipped(model, length, (0, 3, 4))
    if not (bool(torch.isfinite(alone)) and float(alone) > 0):
        raise PreflightError(
            f"Expected a finite gradient above 0 on drawn tokens, got length {float(alone):g}. The "
            "model's weights are damaged, or nothing that is trained reaches its loss."
        )
    dtype = getattr(model, "compute_dtype", None) or torch.float32
    if abs(float(company) / float(alone) - 1) > _SAME.get(dtype, _SAME[torch.float32]):
        raise PreflightError(
            "Expected a unit's gradient not to depend on the others of its batch, got another in "
            "other company. Something in the model couples examples: it cannot train privately."
        )
    if whole > _SLACK * _CLIPPING_NORM:
        raise PreflightError(
            f"Expected a clipped gradient of length {_CLIPPING_NORM:g} at most, got {whole:g}. "
            "Clipping does not hold for this model: do not train it."
        )


def _clipped(
    model: LanguageModel, length: int, seeds: tuple[int, ...], only: int | None = None
) -> tuple[torch.Tensor, float]:
    """Return (the first unit's norm, the length of what was added)."""
    device = next(model.parameters()).device
    layout = UnitLayout(torch.arange(_UNITS, device=device), _UNITS)
    present_U = torch.tensor([only is None or unit == only for unit in range(_UNITS)])
    token = torch.stack([_drawn(model, length + 1, seed) for seed in seeds]).to(device)
    chunk = Chunk(token[:, :-1], token[:, 1:], layout, present_U.to(device))
    sums = {name: torch.zeros_like(p) for name, p in trained_parameters(model).items()}
    norm_U = add_clipped_gradients(model, chunk, _CLIPPING_NORM, sums).norm_U
    added = sum(float(total.double().square().sum()) for total in sums.values())
    return norm_U[0], added**0.5


def _drawn(model: LanguageModel, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.vocab_size, (count,), generator=generator)
