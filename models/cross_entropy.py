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
    """Return the same from logits that are there, in one autograd operation, fp32 [N]."""
    return torch.nn.functional.cross_entropy(
        logits_NV.float(), target_N, ignore_index=ignored, reduction="none"
    )


class _ChunkedCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor, ignored: int
    ) -> Tensor:
        rows = max(1, CHUNK_BYTES // (_FP32_BYTES * len(head_VD)))
        frozen = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        nats_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        log_sum_N = torch.empty_like(nats_N)
        unit_grad_ND = torch.empty_like(hidden_ND) if frozen else None
        logits_CV = None
        for begin in range(0, len(hidden_ND), rows):
            piece = slice(begin, begin + rows)
            logits_CV = _shifted_logits(hidden_ND[piece], head_VD)
            log_sum_N[piece] = logits_CV.logsumexp(-1)
            nats_N[piece] = log_sum_N[piece] - _at_target(logits_CV, target_N[piece], ignored)
            if unit_grad_ND is not None:
                grad_CV = _gradient(logits_CV, log_sum_N[piece], target_N[piece], ignored)
                torch.mm(grad_CV.to(head_VD), head_VD, out=unit_grad_ND[piece])
        ctx.save_for_backward(hidden_ND, head_VD, target_N, log_sum_N)
        ctx.ignored, ctx.rows, ctx.unit_grad_ND = ignored, rows, unit_grad_ND
        ctx.logits_CV = logits_CV if len(hidden_ND) <= rows and not frozen else None
        return nats_N.masked_fill_(target_N == ignored, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_ND, head_VD, target_N, log_sum_N = ctx.saved_tensors
        scale_N1 = grads[0].masked_fill(target_N == ctx.ignored, 0.0)[:, None]
        if ctx.unit_grad_ND is not None:
            return ctx.unit_grad_ND * scale_N1.to(hidden_ND), None, None, None
        grad_hidden = torch.empty_like(hidden_ND) if ctx.needs_input_grad[0] else None
        grad_head = torch.zeros_like(head_VD, dtype=torch.float32)
        for begin in range(0, len(hidden_ND), ctx.rows):
            piece = slice(begin, begin + ctx.rows)
            logits_CV, ctx.logits_CV = ctx.logits_CV, None
            if logits_CV is None:
                logits_CV = _shifted_logits(hidden_ND[piece], head_VD)
            grad_CV = _gradient(logits_CV, log_sum_N[piece], target_N[piece], ctx.ignored)
            grad_CV = grad_CV.mul_(scale_N1[piece]).to(head_VD)
            _add_product(grad_head, grad_CV.T, hidden_ND[piece])
            if grad_hidden is not None:
                torch.mm(grad_CV, head_VD, out=grad_hidden[piece])
        return grad_hidden, grad_head.to(head_VD), None, None


def _shifted_logits(hidden_CD: Tensor, head_VD: Tensor) -> Tensor:
    """Return fp32 logits less each token's largest: exp and log then lose no digits."""
    logits_CV = (hidden_CD @ head_VD.T).float()
    return logits_CV.sub_(logits_CV.amax(-1, keepdim=True))


def _add_product(total_VD: Tensor, grad_VC: Tensor, hidden_CD: Tensor) -> None:
    """Add a product to the fp32 total: chunks summed in bf16 would lose what small ones add."""
    if grad_VC.dtype == total_VD.dtype:
        total_VD.addmm_(grad_VC, hidden_CD)
    else:
        total_VD.add_(grad_VC @ hidden_CD)


def _at_target(logits_CV: Tensor, target_C: Tensor, ignored: int) -> Tensor:
    target_C1 = target_C.masked_fill(target_C == ignored, 0)[:, None]
    return logits_CV.gather(1, target_C1).squeeze(1)


def _gradient(logits_CV: Tensor, log_sum_C: Tensor, target_C: Tensor, ignored: int) -> Tensor:
    """Turn shifted logits into the gradient of the tokens' nats, in place."""
    target_C1 = target_C.masked_fill(target_C == ignored, 0)[:, None]
    grad_CV = logits_CV.sub_(log_sum_C[:, None]).exp_()
    return grad_CV.scatter_add_(1, target_C1, -torch.ones_like(log_sum_C)[:, None])
