"""Low-rank adapters on a model's linear maps (Hu et al. 2021, arXiv 2106.09685).

Shapes: E experts, I inputs, O outputs, R rank.
"""

import torch
from torch import nn

from models.language_model import LanguageModel


def add_lora(model: LanguageModel, rank: int, alpha: float, generator: torch.Generator) -> None:
    """Freeze the model and add trainable adapters; the function computed does not change.

    Args:
        rank: R >= 1. alpha: update scale is alpha / R.
        generator: source of A (normal, std 1/sqrt(I)); B starts at zero.

    Raises:
        ValueError: rank < 1, or the model already has adapters.

    """
    if rank < 1:
        raise ValueError(f"Expected a LoRA rank >= 1, got {rank}. Set training.lora_rank.")
    model.requires_grad_(False)
    for name, layer in model.adapted_layers():
        if layer.lora_A is not None:
            raise ValueError(f"Expected no adapters yet, got one at {name}. Merge them first.")
        *experts, outputs, inputs = layer.weight.shape
        down = torch.empty(*experts, rank, inputs).normal_(0, inputs**-0.5, generator=generator)
        layer.lora_A = nn.Parameter(down)
        layer.lora_B = nn.Parameter(torch.zeros(*experts, outputs, rank))
        layer.lora_scale = alpha / rank


@torch.no_grad()
def merge_lora(model: LanguageModel) -> None:
    """Fold every adapter into its weight and remove it."""
    for _, layer in model.adapted_layers():
        if layer.lora_A is not None and layer.lora_B is not None:
            layer.weight.add_(layer.lora_scale * (layer.lora_B @ layer.lora_A))
            layer.lora_A = layer.lora_B = None
