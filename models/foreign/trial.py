"""A trial of a model of another class: may it train privately, and in which layers.

Nothing about the class is assumed. Two sequences run together and apart, and once more with their
last token changed: predictions that see later tokens, or another sequence, are refused; a layer
takes an adapter only where each sequence's activations are rows of its own.

Shapes: B = 2 sequences, T = 5 positions, V vocabulary, I inputs, O outputs.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.foreign.access import is_linear, logits_of, vocab_size_of, weight_of

_SHAPE = (2, 5)
_TOLERANCE = 1e-4  # of the largest value: kernels round differently for other shapes
_ROUTERS = ("gate", "router", "shared_expert_gate")


class UnfitError(ValueError):
    """Predictions of a model depend on more than the sequence's own earlier tokens."""


@dataclass(frozen=True)
class _Call:
    """One call of a layer: what went in, and what came out."""

    x: Tensor
    y: Tensor


_Calls = Mapping[str, list[_Call]]


@torch.no_grad()
def frozen_layers(network: nn.Module) -> dict[str, str]:
    """Return why a linear layer takes no adapter, "" where it does, by name.

    Args:
        network: a causal language model of transformers, in evaluation mode.

    Raises:
        UnfitError: predictions that see later tokens, or another sequence of the batch.

    """
    layers = {n: m for n, m in network.named_modules() if is_linear(m)}
    token_BT = _drawn(network)
    together_BTV, calls = _run(network, layers, token_BT)
    changed_BT = token_BT.clone()
    changed_BT[:, -1] = (changed_BT[:, -1] + 1) % vocab_size_of(network)
    if not _close(logits_of(network, changed_BT)[:, :-1], together_BTV[:, :-1]):
        raise UnfitError("its predictions depend on later tokens")
    alone: list[_Calls] = []
    for row in range(len(token_BT)):
        logits_1TV, calls_alone = _run(network, layers, token_BT[row : row + 1])
        if not _close(logits_1TV, together_BTV[row : row + 1]):
            raise UnfitError("its predictions depend on the other sequences of the batch")
        alone.append(calls_alone)
    why = _Why(network, calls, alone)
    return {name: why(name, layer) for name, layer in layers.items()}


@torch.no_grad()
def sees_padding(network: nn.Module, length: int) -> bool:
    """Tell whether a short sequence's predictions change where it is padded to `length`."""
    short = min(_SHAPE[1], length)
    token_BT = torch.zeros(1, length, dtype=torch.int64)
    token_BT[:, :short] = _drawn(network)[:1, :short]
    padded_BTV = logits_of(network, token_BT)[:, :short]
    return not _close(padded_BTV, logits_of(network, token_BT[:, :short]))


class _Why:
    """Says of one layer after another why it takes no adapter."""

    def __init__(self, network: nn.Module, together: _Calls, alone: list[_Calls]) -> None:
        self._together, self._alone = together, alone
        self._uses: dict[int, int] = defaultdict(int)
        for _, parameter in network.named_parameters(remove_duplicate=False):
            self._uses[id(parameter)] += 1
        head = getattr(network, "get_output_embeddings", lambda: None)()
        self._head = None if head is None else id(head)

    def __call__(self, name: str, layer: nn.Module) -> str:
        """Return the reason, or ""."""
        if id(layer) == self._head:
            return "it is the output head"
        if name.rpartition(".")[2] in _ROUTERS:
            return "it is a router"
        if self._uses[id(layer.weight)] > 1:
            return "it shares its weight with another layer"
        return self._why_by_calls(name, layer)

    def _why_by_calls(self, name: str, layer: nn.Module) -> str:
        calls = self._together.get(name, [])
        if len(calls) != 1:
            return f"it is called {len(calls)} times for one batch"
        x, y = calls[0].x, calls[0].y
        if x.shape[:-1] != _SHAPE:
            return f"its input of shape {tuple(x.shape)} is not one row per sequence"
        for row, found in enumerate(self._alone):
            own = found.get(name, [])
            if len(own) != 1 or not _close(own[0].x, x[row : row + 1]):
                return "its rows hold more than their own sequence"
        bias = layer.bias if isinstance(layer.bias, Tensor) else None
        if not _close(F.linear(x, weight_of(layer), bias), y):
            return "it computes something else than x W^T + b"
        return ""


def _drawn(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size_of(network), _SHAPE, generator=generator)


def _run(
    network: nn.Module, layers: Mapping[str, nn.Module], token_BT: Tensor
) -> tuple[Tensor, _Calls]:
    """Return the logits, and what went through each layer."""
    calls: dict[str, list[_Call]] = defaultdict(list)

    def watch(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs:  # a call by keyword shows no input, and counts as no call
            # Copies: a class may add to its activations in place.
            calls[name].append(_Call(inputs[0].clone(), output.clone()))

    handles = [
        layer.register_forward_hook(
            lambda _, inputs, output, name=name: watch(name, inputs, output)
        )
        for name, layer in layers.items()
    ]
    try:
        return logits_of(network, token_BT), calls
    except Exception as error:  # a class may raise anything where it wants more than tokens
        raise UnfitError(f"it does not run on tokens alone ({error})") from error
    finally:
        for handle in handles:
            handle.remove()


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(((found - expected).abs() <= _TOLERANCE * largest).all())
