"""What the rest asks of a transformers model's modules.

Shapes: B sequences, T positions, V vocabulary, I inputs, O outputs.
"""

from torch import Tensor, nn


def logits_of(network: nn.Module, token_BT: Tensor) -> Tensor:
    """Return the logits [B, T, V] of a transformers model, without a cache."""
    logits_BTV: Tensor = network(input_ids=token_BT, use_cache=False).logits
    return logits_BTV


def is_linear(layer: nn.Module) -> bool:
    """Tell whether a layer looks like y = x W^T + b: nn.Linear or GPT-2's Conv1D."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def weight_of(layer: nn.Module) -> Tensor:
    """W of a linear layer, [O, I]: its parameter, or a transposed view of it."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(layer, nn.Linear) else weight.T


def vocab_size_of(network: nn.Module) -> int:
    """Rows of a transformers model's token table."""
    table: nn.Module = network.get_input_embeddings()  # type: ignore[operator]
    return len(table.get_parameter("weight"))
