"""Sparse upcycling: a dense model becomes a sparse one that computes the same.

Source: Komatsuzaki et al. 2022 (arXiv 2212.05055).
Shapes: E experts, D hidden.
"""

import torch

from models.config import ModelConfig
from models.decoder import Block, Decoder


@torch.no_grad()
def upcycle(
    model: Decoder,
    experts: int,
    experts_per_token: int,
    generator: torch.Generator,
    *,
    noise: float = 0.0,
) -> Decoder:
    """Copy every layer's only expert `experts` times, behind a router of small random rows.

    The copies are equal and their weights sum to 1, so the function stays whatever the router says.
    Its rows are drawn with the model's initializer_range: rows of zeros would tie, send every token
    to the same experts, and leave the others without a gradient. With random rows, tokens differ
    in where they go, and so do the experts' gradients from the first step on.

    Args:
        experts: E >= 2. experts_per_token: of them, per token.
        generator: source of router rows and noise.
        noise: standard deviation of a perturbation of all experts but the first, relative to that
            of the gate and up matrices together, and of the down matrix. 0 keeps the function;
            anything else changes it.

    Returns:
        A new model; shared weights are copied.

    Raises:
        ValueError: the model has several experts already, or a number out of range.

    """
    config = _sparse_config(model.config, experts, experts_per_token, noise)
    grown = Decoder(config)
    rest = {name: value for name, value in model.state_dict().items() if ".experts." not in name}
    grown.load_state_dict(rest, strict=False)
    for dense, sparse in zip(model.blocks, grown.blocks, strict=True):
        assert isinstance(dense, Block)
        assert isinstance(sparse, Block)
        router_ED = sparse.experts.router.weight
        router_ED.normal_(0.0, config.initializer_range, generator=generator)
        for name in ("gate_up", "down"):
            source = dense.experts.get_submodule(name).get_parameter("weight")
            copies = sparse.experts.get_submodule(name).get_parameter("weight")
            copies.copy_(source.expand_as(copies))
            for copy in copies[1:] if noise else ():
                drawn = torch.empty_like(copy).normal_(0.0, 1.0, generator=generator)
                copy.add_(drawn, alpha=noise * float(source.std()))
    return grown


def _sparse_config(
    config: ModelConfig, experts: int, experts_per_token: int, noise: float
) -> ModelConfig:
    if config.experts != 1:
        raise ValueError(
            f"Expected a dense model to upcycle, got one of {config.experts} experts. Import it "
            "without --experts."
        )
    if experts < 2 or not 1 <= experts_per_token <= experts:
        raise ValueError(
            f"Expected at least 2 experts and 1 to all of them per token, got {experts} and "
            f"{experts_per_token}. Change --experts or --experts-per-token."
        )
    if not 0 <= noise < float("inf"):
        raise ValueError(f"Expected a noise >= 0, got {noise}. Change --noise.")
    changes = {"experts": experts, "experts_per_token": experts_per_token}
    return config.model_copy(update=changes)
