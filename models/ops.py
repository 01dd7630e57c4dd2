"""The five operations that carry weights, and the seam at which private training watches them.

Without a recorder these are ordinary autograd operations. With one, backward computes the gradient
of the *input* only and hands (weight, input, output gradient) to the recorder: no per-example
weight gradient is ever formed by autograd. `privacy.dp.clipping` implements the recorder
(book-keeping, Bu et al. 2022, arXiv 2210.00038); this module knows nothing about privacy.

A product is computed in the activations' type: fp32 weights serve bf16 activations, and their
gradients are fp32.

Shapes: B sequences, T positions, I inputs, O outputs, D hidden, V vocabulary, E experts,
M slots (one slot is one token at one of its experts, sorted by expert, then by sequence).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F


@dataclass(frozen=True)
class Slots:
    """Where the slots of a batch lie: expert e owns rows offsets[e]:offsets[e+1].

    Attributes:
        ends_E: where each expert's rows end, int32, on the device: a GPU need not be waited for.
        token_M: index of each slot's token in the flattened batch [B*T].
        positions: T, so that token_M // T is the slot's sequence.

    """

    ends_E: Tensor
    token_M: Tensor
    positions: int

    @classmethod
    def of(cls, offsets: Sequence[int], token_M: Tensor, positions: int) -> "Slots":
        """Place slots at offsets that the host knows, E + 1 integers from 0 to M."""
        ends_E = torch.tensor(offsets[1:], dtype=torch.int32, device=token_M.device)
        return cls(ends_E, token_M, positions)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """E + 1 integers, from 0 to M; on a GPU the first look waits for it."""
        return (0, *self.ends_E.tolist())

    def split(self, expert: int) -> tuple["Slots", "Slots"]:
        """Part the slots of the first `expert` experts from those of the others."""
        cut = self.offsets[expert]
        first = Slots(self.ends_E[:expert], self.token_M[:cut], self.positions)
        return first, Slots(self.ends_E[expert:] - cut, self.token_M[cut:], self.positions)

    def used(self) -> Iterator[tuple[int, int, int]]:
        """Yield (expert, begin, end) of every expert that has slots."""
        for expert, begin in enumerate(self.offsets[:-1]):
            end = self.offsets[expert + 1]
            if end > begin:
                yield expert, begin, end


class Recorder(Protocol):
    """Receives, during backward, what is needed to form any weighted sum of weight gradients.

    The weight it is given is the very object that the operation was called with. (What autograd
    saved may come back as another one, for example from a checkpointed block.)
    """

    def linear(self, weight_OI: Tensor, x_BTI: Tensor, grad_BTO: Tensor) -> None:
        """A matrix product y = x W^T."""

    def grouped(self, weight_EOI: Tensor, x_MI: Tensor, grad_MO: Tensor, slots: Slots) -> None:
        """One matrix product per expert over that expert's slots."""

    def scale(self, weight_D: Tensor, x: Tensor, grad: Tensor) -> None:
        """An elementwise product y = x * w over the last dimension; x is [B, ..., D]."""

    def embedding(self, weight_VD: Tensor, token_BT: Tensor, grad_BTD: Tensor) -> None:
        """A table lookup y = W[token]."""


_RECORDER: ContextVar[Recorder | None] = ContextVar("arion_recorder", default=None)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Route weight gradients of every operation inside the block to `recorder`."""
    token = _RECORDER.set(recorder)
    try:
        yield
    finally:
        _RECORDER.reset(token)


def is_recorded(weight: Tensor) -> bool:
    """Whether a recorder takes this weight's gradients now."""
    return _recorder_for(weight) is not None


def _recorder_for(weight: Tensor) -> Recorder | None:
    return _RECORDER.get() if weight.requires_grad and torch.is_grad_enabled() else None


def linear(x_BTI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return x W^T, [B, T, O]."""
    recorder = _recorder_for(weight_OI)
    if recorder is None:
        return F.linear(x_BTI, weight_OI.to(x_BTI.dtype))
    return apply(_Linear, x_BTI, weight_OI, recorder)


def grouped_linear(x_MI: Tensor, weight_EOI: Tensor, slots: Slots) -> Tensor:
    """Return, for each expert e, x[e's slots] W[e]^T; together [M, O]."""
    recorder = _recorder_for(weight_EOI)
    if recorder is None:
        weight_EOI = weight_EOI.to(x_MI.dtype)
    return apply(_Grouped, x_MI, weight_EOI, slots, recorder)


def rms_norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * w over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    recorder = _recorder_for(weight_D)
    if recorder is None:
        return F.rms_norm(x, weight_D.shape, weight_D.to(x.dtype), eps)
    return apply(_Scale, F.rms_norm(x, weight_D.shape, None, eps), weight_D, recorder)


def embedding(token_BT: Tensor, weight_VD: Tensor) -> Tensor:
    """Return W[token], [B, T, D]."""
    recorder = _recorder_for(weight_VD)
    if recorder is None:
        return F.embedding(token_BT, weight_VD)
    return apply(_Embedding, token_BT, weight_VD, recorder)


def apply(function: type[Function], *args: Any) -> Tensor:
    """Apply an autograd function; without gradients only its forward, which is much less work."""
    result: Tensor
    if torch.is_grad_enabled():
        result = function.apply(*args)  # type: ignore[no-untyped-call]
    else:
        result = function.forward(_Forgetful(), *args)
    return result


class _Forgetful:
    """Takes the place of autograd's context where there is no backward."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep nothing."""


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, weight_OI: Tensor, recorder: Recorder) -> Tensor:
        used_OI = weight_OI.to(x_BTI.dtype)
        ctx.save_for_backward(x_BTI, used_OI)
        ctx.recorder, ctx.weight = recorder, weight_OI
        return F.linear(x_BTI, used_OI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        x_BTI, weight_OI = ctx.saved_tensors
        ctx.recorder.linear(ctx.weight, x_BTI.detach(), grads[0])
        return (grads[0] @ weight_OI if ctx.needs_input_grad[0] else None), None, None


class _Grouped(Function):
    @staticmethod
    def forward(
        ctx: Any, x_MI: Tensor, weight_EOI: Tensor, slots: Slots, recorder: Recorder | None
    ) -> Tensor:
        used_EOI = weight_EOI.to(x_MI.dtype)
        ctx.save_for_backward(x_MI, used_EOI)
        ctx.slots, ctx.recorder, ctx.weight = slots, recorder, weight_EOI
        return _grouped_product(x_MI, used_EOI.mT, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (x_MI, weight_EOI), grad_MO = ctx.saved_tensors, grads[0]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = _grouped_product(grad_MO, weight_EOI, ctx.slots)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None
        if ctx.recorder is not None:
            ctx.recorder.grouped(ctx.weight, x_MI.detach(), grad_MO, ctx.slots)
            return grad_x, None, None, None
        return grad_x, _grouped_outer(x_MI, grad_MO, ctx.slots), None, None


class _Scale(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, recorder: Recorder) -> Tensor:
        ctx.save_for_backward(x, weight_D)
        ctx.recorder, ctx.weight = recorder, weight_D
        return x * weight_D.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight_D = ctx.saved_tensors
        ctx.recorder.scale(ctx.weight, x.detach(), grads[0])
        return grads[0] * weight_D.to(x.dtype), None, None


class _Embedding(Function):
    @staticmethod
    def forward(ctx: Any, token_BT: Tensor, weight_VD: Tensor, recorder: Recorder) -> Tensor:
        ctx.save_for_backward(token_BT)
        ctx.recorder, ctx.weight = recorder, weight_VD
        return F.embedding(token_BT, weight_VD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        (token_BT,) = ctx.saved_tensors
        ctx.recorder.embedding(ctx.weight, token_BT, grads[0])
        return None, None, None


def _grouped_product(x_MI: Tensor, weight_EIO: Tensor, slots: Slots) -> Tensor:
    """Return, for each expert, x[its slots] W[e]: one kernel on a GPU, one product each on CPU."""
    if has_grouped_kernel(x_MI, weight_EIO.shape[2]):
        return F.grouped_mm(x_MI, weight_EIO, offs=slots.ends_E)
    y_MO = x_MI.new_empty(x_MI.shape[0], weight_EIO.shape[2])
    for expert, begin, end in slots.used():
        torch.mm(x_MI[begin:end], weight_EIO[expert], out=y_MO[begin:end])
    return y_MO


def has_grouped_kernel(x_MI: Tensor, outputs: int) -> bool:
    """Whether one kernel multiplies all groups: bf16 on a GPU, rows of whole 16 bytes."""
    whole = x_MI.shape[1] % 8 == 0 and outputs % 8 == 0
    return x_MI.is_cuda and x_MI.dtype == torch.bfloat16 and whole


def _grouped_outer(x_MI: Tensor, grad_MO: Tensor, slots: Slots) -> Tensor:
    """Return, for each expert, grad[its slots]^T x[its slots]; zeros for an unused expert."""
    experts, outputs, inputs = len(slots.ends_E), grad_MO.shape[1], x_MI.shape[1]
    if has_grouped_kernel(x_MI, outputs):
        return F.grouped_mm(grad_MO.T, x_MI, offs=slots.ends_E)
    outer_EOI = x_MI.new_empty(experts, outputs, inputs)
    for expert in range(experts):
        begin, end = slots.offsets[expert], slots.offsets[expert + 1]
        torch.mm(grad_MO[begin:end].T, x_MI[begin:end], out=outer_EOI[expert])
    return outer_EOI
