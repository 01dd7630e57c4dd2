"""What rounding activations to 8 bits costs a model: the yardstick for runtimes that do so.

llama.cpp and ONNX Runtime round the inputs of a product with 8- or 4-bit weights to 8 bits. What
that costs depends on the model, and grows with its depth. So it is computed, by rounding in the
decoder itself.

Shapes: T positions, V vocabulary, K blocks of a row.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.decoder import Decoder

BLOCK = 32  # numbers that share a scale: llama.cpp's Q8_0, ONNX Runtime's blocks
_LARGEST = 127
_PRODUCTS = (F.linear, torch.mm)  # all that models.ops multiplies weights with, on CPU


class RoundedDecoder:
    """A decoder on CPU whose products take their inputs in 8 bits; it gives logits alone."""

    def __init__(self, model: Decoder) -> None:
        self._model = model

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """See `models.variants.runtime.Runtime.logits`."""
        with _RoundedProducts():
            logits_TV: Tensor = self._model(torch.tensor([list(ids)]))[0]
        return logits_TV


class _RoundedProducts(TorchFunctionMode):
    """Round the first factor of each product, whatever makes it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _PRODUCTS:
            args = (in_8_bits(args[0]), *args[1:])
        return func(*args, **(kwargs or {}))


def in_8_bits(x_: Tensor) -> Tensor:
    """Round a tensor's last dimension in blocks to whole multiples of largest magnitude / 127."""
    width = x_.shape[-1]
    padded_ = F.pad(x_, (0, -width % BLOCK))
    block_K = padded_.reshape(*x_.shape[:-1], -1, BLOCK)
    scale_K = (block_K.abs().amax(-1, keepdim=True) / _LARGEST).clamp_min(1e-30)
    return ((block_K / scale_K).round() * scale_K).reshape(padded_.shape)[..., :width]
