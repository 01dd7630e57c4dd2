"""Cross-entropy of the output layer in chunks of tokens: all logits never lie in memory at once.

Where one chunk holds all tokens its logits are kept for backward; else backward computes them again
chunk by chunk (one more product with the output matrix). Where that matrix is frozen, as in LoRA,
each token's gradient is ready before the logits are dropped, and nothing is computed twice.

Source: the idea of Wijmans et al. 2024, "Cut Your Losses" (arXiv 2411.09009), in plain torch.

Shapes: N tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

CHUNK_BYTES = 64 * 2**20  # of fp32 logits
_FP32_BYTES = 4


def token_cross_entropy(
    hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, ignored: int
) -> Tensor:
    """Return each token's cross-entropy in nats, fp32 [N]; 0 where the target is `ignored`.

    Every chunk takes the same time whatever its targets, ignored ones included.

    Args:
        hidden_ND: final hidden states. head_VD: the output matrix.
        target_N: int64 in [0, V), or `ignored`.

    """
    result: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, target_N, ignored
    )
    return result


def nats_of_logits(logits_NV: Tensor, target_N: Tensor, ignored: int) -> Tensor:
    """Return the same from logits that are there, fp32 [N].

    fp32 logits are overwritten: their memory serves the probabilities, and then their gradient.
    """
    result: Tensor = _LogitsCrossEntropy.apply(  # type: ignore[no-untyped-call]
        logits_NV.float(), target_N, ignored
    )
    return result


class _LogitsCrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, target_N: Tensor, ignored: int) -> Tensor:
        ctx.target_N, ctx.ignored = target_N, ignored
        nats_N = _nats_and_softmax(logits_NV, target_N, ignored)
        # Without its history: what backward makes of it must not keep the graph alive.
        ctx.share_NV = logits_NV.detach()
        return nats_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        share_NV, ctx.share_NV = ctx.share_NV, None
        grad_NV = _gradient(share_NV, ctx.target_N, ctx.ignored)
        return grad_NV.mul_(grads[0][:, None]), None, None


class _ChunkedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, ignored: int
    ) -> Tensor:
        rows = max(1, CHUNK_BYTES // (_FP32_BYTES * len(head_VD)))
        frozen = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        nats_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        unit_grad_ND = torch.empty_like(hidden_ND) if frozen else None
        share_CV = None
        for begin in range(0, len(hidden_ND), rows):
            piece = slice(begin, begin + rows)
            share_CV = (hidden_ND[piece] @ head_VD.T).float()
            nats_N[piece] = _nats_and_softmax(share_CV, target_N[piece], ignored)
            if unit_grad_ND is not None:
                grad_CV = _gradient(share_CV, target_N[piece], ignored)
                torch.mm(grad_CV.to(head_VD), head_VD, out=unit_grad_ND[piece])
        ctx.save_for_backward(hidden_ND, head_VD, target_N)
        ctx.ignored, ctx.rows, ctx.unit_grad_ND = ignored, rows, unit_grad_ND
        ctx.share_CV = share_CV if len(hidden_ND) <= rows and not frozen else None
        return nats_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_ND, head_VD, target_N = ctx.saved_tensors
        scale_N1 = grads[0][:, None]
        if ctx.unit_grad_ND is not None:
            return ctx.unit_grad_ND * scale_N1.to(hidden_ND), None, None, None
        grad_hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32)
        for begin in range(0, len(hidden_ND), ctx.rows):
            piece = slice(begin, begin + ctx.rows)
            share_CV, ctx.share_CV = ctx.share_CV, None
            if share_CV is None:
                logits_CV = (hidden_ND[piece] @ head_VD.T).float()
                share_CV = torch.softmax(logits_CV, -1, out=logits_CV)
            grad_CV = _gradient(share_CV, target_N[piece], ctx.ignored)
            grad_CV = grad_CV.mul_(scale_N1[piece]).to(head_VD)
            _add_product(grad_head, grad_CV.T, hidden_ND[piece])
            if grad_hidden is not None:
                torch.mm(grad_CV, head_VD, out=grad_hidden[piece])
        return grad_hidden, grad_head.to(head_VD), None, None


def _nats_and_softmax(logits_CV: Tensor, target_C: Tensor, ignored: int) -> Tensor:
    """Return each token's nats and turn its fp32 logits into probabilities, in place, one pass.

    log sum exp = largest logit - log of its probability, which is at least 1/V: no underflow.
    """
    target_C1 = target_C.masked_fill(target_C == ignored, 0)[:, None]
    largest_C1, place_C1 = logits_CV.max(-1, keepdim=True)
    below_C1 = largest_C1 - logits_CV.gather(1, target_C1)
    torch.softmax(logits_CV, -1, out=logits_CV)
    nats_C = (below_C1 - logits_CV.gather(1, place_C1).log()).squeeze(1)
    return nats_C.masked_fill_(target_C == ignored, 0.0)


def _gradient(share_CV: Tensor, target_C: Tensor, ignored: int) -> Tensor:
    """Turn probabilities into the gradient of the tokens' nats, in place; 0 where ignored."""
    target_C1 = target_C.masked_fill(target_C == ignored, 0)[:, None]
    share_CV.scatter_add_(1, target_C1, share_CV.new_full((1, 1), -1.0).expand_as(target_C1))
    return share_CV.masked_fill_((target_C == ignored)[:, None], 0.0)


def _add_product(total_VD: Tensor, grad_VC: Tensor, hidden_CD: Tensor) -> None:
    """Add a product to the fp32 total: chunks summed in bf16 would lose what small ones add."""
    if grad_VC.dtype == total_VD.dtype:
        total_VD.addmm_(grad_VC, hidden_CD)
    else:
        total_VD.add_(grad_VC @ hidden_CD)
