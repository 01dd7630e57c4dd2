"""Tokens to expert slots and back: the parts of a sparse layer that carry no weights.

Written as autograd functions of their own because the generic ones waste memory traffic, which is
what is left of a sparse layer's time beside its matrix products: a gather's gradient becomes one
bag sum instead of a scatter, SwiGLU keeps one tensor instead of three and writes both halves of
its gradient in place. Second derivatives are not offered.

Shapes: N tokens, D hidden, E experts, K experts per token, M slots, G expert hidden width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from models.ops import Slots, apply

# Rows of one piece of an elementwise pass: a piece of 1-4 KB rows stays in a core's L2 cache
# between the operations that touch it.
_ROWS = 256


@dataclass(frozen=True)
class Dispatch:
    """Which slot of which expert serves each token, and the way back.

    Attributes:
        slots: the slots, sorted by expert, within an expert in token order.
        source_M: index of each slot's weight in the flattened [N*K] weights, in token order.
        rank_M: the row in expert order of each slot in token order.
        bag_N: where each token's slots begin in token order.

    """

    slots: Slots
    source_M: Tensor
    rank_M: Tensor
    bag_N: Tensor


def make_dispatch(
    expert_NK: Tensor, kept_NK: Tensor | None, experts: int, positions: int
) -> Dispatch:
    """Sort the kept (token, expert) pairs by expert.

    Args:
        expert_NK: chosen experts, int64 in [0, experts).
        kept_NK: False for pairs that are dropped, and cost nothing; None keeps all.
        experts: E. positions: T, tokens of one sequence.

    """
    tokens, per_token = expert_NK.shape
    device = expert_NK.device
    if kept_NK is None:
        source_M = torch.arange(tokens * per_token, device=device)
        bag_N = torch.arange(0, tokens * per_token, per_token, device=device)
    else:
        source_M = kept_NK.flatten().nonzero().squeeze(1)
        count_N = kept_NK.sum(1)
        bag_N = count_N.cumsum(0) - count_N
    expert_M = expert_NK.flatten()[source_M]
    # A stable sort keeps each expert's slots in sequence order: per-sequence segments.
    sorted_M, order_M = expert_M.sort(stable=True)
    rank_M = torch.empty_like(order_M)
    rank_M[order_M] = torch.arange(len(order_M), device=device)
    # Unlike a count, a search need not be waited for.
    every_E = torch.arange(experts, device=device)
    ends_E = torch.searchsorted(sorted_M, every_E, right=True, out_int32=True)
    token_M = source_M[order_M] // per_token
    return Dispatch(Slots(ends_E, token_M, positions), source_M, rank_M, bag_N)


def gather(x_ND: Tensor, dispatch: Dispatch) -> Tensor:
    """Return the input of every slot, [M, D]."""
    return apply(_Gather, x_ND, dispatch)


def combine(y_MD: Tensor, weight_M: Tensor, dispatch: Dispatch) -> Tensor:
    """Return each token's weighted sum over its slots, [N, D].

    Args:
        y_MD: outputs in expert order. weight_M: weights in token order, of y's dtype.

    """
    return apply(_Combine, y_MD, weight_M, dispatch)


def swiglu(gate_up_MX: Tensor) -> Tensor:
    """Return silu(gate) * up of [M, 2 G] that holds both halves, [M, G] (arXiv 2002.05202)."""
    if len(gate_up_MX) > _ROWS or torch.is_grad_enabled():
        return apply(_SwiGLU, gate_up_MX)
    gate_MG, up_MG = gate_up_MX.chunk(2, -1)
    return F.silu(gate_MG).mul_(up_MG)


def _bag_sum(y_MD: Tensor, dispatch: Dispatch, weight_M: Tensor | None = None) -> Tensor:
    return F.embedding_bag(
        dispatch.rank_M, y_MD, dispatch.bag_N, mode="sum", per_sample_weights=weight_M
    )


def _pieces(*rows: Tensor) -> list[tuple[Tensor, ...]]:
    """Cut each tensor into the same pieces of rows; on a GPU one piece is best."""
    size = _ROWS if rows[0].device.type == "cpu" else max(len(rows[0]), 1)
    return [torch.split(tensor, size) for tensor in rows]


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return x_ND.index_select(0, dispatch.slots.token_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _bag_sum(grads[0].contiguous(), ctx.dispatch), None


class _Combine(Function):
    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, weight_M: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.save_for_backward(y_MD, weight_M)
        ctx.dispatch = dispatch
        return _bag_sum(y_MD, dispatch, weight_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (y_MD, weight_M), dispatch = ctx.saved_tensors, ctx.dispatch
        grad_y = grads[0].index_select(0, dispatch.slots.token_M)
        dot_M = torch.linalg.vecdot(grad_y, y_MD)
        sorted_M = torch.empty_like(weight_M)
        sorted_M[dispatch.rank_M] = weight_M
        return grad_y.mul_(sorted_M[:, None]), dot_M[dispatch.rank_M], None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up_MX: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_MX)
        y_MG = gate_up_MX.new_empty(len(gate_up_MX), gate_up_MX.shape[1] // 2)
        for y, gate_up in zip(*_pieces(y_MG, gate_up_MX), strict=True):
            gate, up = gate_up.chunk(2, -1)
            torch.ops.aten.silu.out(gate, out=y)
            y.mul_(up)
        return y_MG

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up_MX,), grad_MG = ctx.saved_tensors, grads[0]
        grad_MX = torch.empty_like(gate_up_MX)
        scratch = torch.empty_like(grad_MG if grad_MG.is_cuda else grad_MG[:_ROWS])
        for grad_gate_up, gate_up, grad in zip(*_pieces(grad_MX, gate_up_MX, grad_MG), strict=True):
            (gate, up), (to_gate, to_up) = gate_up.chunk(2, -1), grad_gate_up.chunk(2, -1)
            silu = scratch[: len(gate)]
            torch.ops.aten.silu.out(gate, out=silu)
            torch.mul(silu, grad, out=to_up)
            torch.mul(grad, up, out=to_gate)
            torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return grad_MX
