"""How large a model is: exact parameter counts, and the memory of its weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from models.config import ModelConfig
from models.decoder import Decoder
from models.experts import GroupedLinear

# Bits of one weight, without the scales that a quantised format keeps per group of weights.
WEIGHT_BITS: Mapping[str, int] = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class ParameterCounts:
    """Exact numbers of parameters.

    Attributes:
        total: all weights; tied embeddings count once.
        active: what one token touches: all but the experts it is not sent to. Embedding tables
            count in full, as in the "A3B" of Qwen3-30B-A3B, although a token reads one input row.
        embedding: the part of both that is embedding tables (input, and output where untied).

    """

    total: int
    active: int
    embedding: int


def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of a decoder of this shape; no weight is allocated."""
    with torch.device("meta"):
        model = Decoder(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    stacks = [module for module in model.modules() if isinstance(module, GroupedLinear)]
    per_expert = sum(stack.weight.numel() for stack in stacks) // config.experts
    idle = config.experts - config.experts_per_token
    tables = 1 if config.tie_embeddings else 2
    return ParameterCounts(total, total - idle * per_expert, tables * model.embedding.numel())


def weight_bytes(parameters: int) -> dict[str, int]:
    """Bytes of so many weights in each precision of WEIGHT_BITS, rounded up."""
    return {name: -(-parameters * bits // 8) for name, bits in WEIGHT_BITS.items()}
