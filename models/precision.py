"""Training in bf16 with fp32 master weights (Micikevicius et al. 2017, arXiv 1710.03740).

bf16 has fp32's range, so no loss scaling is needed; what it lacks is the digits to hold a small
step beside a large weight, and the optimiser's fp32 copies have them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class MasterWeights:
    """fp32 copies of a bf16 model's weights, for the optimiser.

    Args:
        model: fp32, all parameters trainable; becomes bf16.

    Attributes:
        parameters: the copies, in the model's order.

    """

    def __init__(self, model: nn.Module) -> None:
        self._model_parameters = list(model.parameters())
        self.parameters = [nn.Parameter(p.detach().clone()) for p in self._model_parameters]
        for parameter in self._model_parameters:
            parameter.data = parameter.data.bfloat16()

    def take_gradients(self) -> None:
        """Move the model's gradients to the copies, in fp32."""
        for parameter, master in zip(self._model_parameters, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the copies into the model, after an optimiser step."""
        for parameter, master in zip(self._model_parameters, self.parameters, strict=True):
            parameter.copy_(master)

    def restore(self) -> None:
        """Make the model fp32 again, with the copies' own digits."""
        for parameter, master in zip(self._model_parameters, self.parameters, strict=True):
            parameter.data, parameter.grad = master.detach(), None


@contextmanager
def bf16_training(model: nn.Module, *, enabled: bool) -> Iterator[MasterWeights | None]:
    """Train inside the block in bf16 where enabled; the model is fp32 before and after."""
    masters = MasterWeights(model) if enabled else None
    try:
        yield masters
    finally:
        if masters is not None:
            masters.restore()
