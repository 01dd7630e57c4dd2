"""Norms of sums of outer products: what a unit's gradient of y = x W^T is.

The unit's gradient is sum_t g_t x_t^T, whose squared norm is sum_{t,s} (g_t . g_s)(x_t . x_s) (the
ghost norm): the gradient itself is not needed. Its terms can cancel, and float32 then loses the
difference, so such norms are computed again (`resolve`).

Source: Goodfellow 2015 (arXiv 1510.01799); Li et al. 2021 (2110.05679).

Shapes: S leading indices (units or segments), N terms, I inputs, O outputs.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from privacy.dp.products import product, row_lengths

# A squared norm below this share of its terms' squares is what was left after they cancelled:
# float32 may have lost all of it, and a unit of any norm would pass for a small one.
_CANCELLED = 1e-2
# Least squared norm that is reported, as a share of (sum of the terms' norms)^2: what rounds in a
# weighted sum of the terms is then below the clipping slack.
_RESOLVED = 1e-5


def cancelled(squared_S: Tensor, terms_S: Tensor) -> Tensor:
    """Tell of which squared norms too little is left to trust float32, bool [S].

    Args:
        squared_S: as computed. terms_S: sum of the squared norms of each one's terms.

    """
    return squared_S < _CANCELLED * terms_S


def resolve(
    squared_S: Tensor,
    cancelled_S: Tensor,
    terms_S: Tensor,
    counts: Sequence[int],
    exact: Callable[[int], Tensor],
) -> Tensor:
    """Return squared norms, [S], computed again where their terms cancelled.

    A model can be built so that they do.

    Args:
        squared_S, cancelled_S, terms_S: see `cancelled`.
        counts: number of each one's terms.
        exact: computes one of them in float64.

    """
    squared_S = squared_S.clone()
    for index in cancelled_S.nonzero().flatten().tolist():
        least = _RESOLVED * counts[index] * terms_S[index]
        squared_S[index] = torch.maximum(exact(index).to(squared_S), least)
    return squared_S


def ghost(x_SNI: Tensor, grad_SNO: Tensor) -> Tensor:
    """Squared norm of sum_n grad_n x_n^T for each leading index, [S]; costs S N^2 (I + O)."""
    return product(x_SNI, x_SNI.mT).mul_(product(grad_SNO, grad_SNO.mT)).sum((1, 2))


def squared_norm(gradient_SOI: Tensor) -> Tensor:
    """Squared Frobenius norm for each leading index, [S].

    On CPU row by row first: one float32 running sum over a whole matrix errs by 1e-6 and more. A
    GPU adds in a tree.
    """
    if gradient_SOI.is_cuda:
        return row_lengths(gradient_SOI.flatten(1)).square()
    return row_lengths(gradient_SOI).square().sum(1)


def term_lengths(x_SNI: Tensor, grad_SNO: Tensor) -> tuple[Tensor, Tensor]:
    """Return (norm of every term grad_n x_n^T, what a ghost norm may lose by it), both [S, N].

    Products x_ni x_mi or g_no g_mo can vanish below the least fp32 number where x_ni g_no does not:
    large activations under tiny gradients. Each inner product is then off by `tiny` per column, and
    the other factor multiplies that. The squared norm lost over all pairs of N terms is at most N
    times the sum of what is returned; four times as much is, since the norms here lose as well.
    """
    dtype = torch.promote_types(x_SNI.dtype, torch.float32)
    x_SN, grad_SN = row_lengths(x_SNI), row_lengths(grad_SNO)
    lost_SN = x_SNI.shape[-1] * grad_SN.square() + grad_SNO.shape[-1] * x_SN.square()
    return x_SN * grad_SN, 4 * torch.finfo(dtype).tiny * lost_SN


def squared_norms_of(x_SNI: Tensor, grad_SNO: Tensor) -> Tensor:
    """Squared norms of sum_n grad_n x_n^T, [S], by whichever way takes fewer operations."""
    positions, inputs, outputs = *x_SNI.shape[1:], grad_SNO.shape[2]
    if positions * (inputs + outputs) < inputs * outputs:
        return ghost(x_SNI, grad_SNO)
    return squared_norm(product(grad_SNO.mT, x_SNI))


def squared_norm_of(x_NI: Tensor, grad_NO: Tensor) -> Tensor:
    """Squared norm of grad^T x, by whichever of the two ways takes fewer operations."""
    positions, inputs, outputs = *x_NI.shape, grad_NO.shape[1]
    if positions * (inputs + outputs) > inputs * outputs:
        return squared_norm((grad_NO.T @ x_NI)[None])[0]
    return (x_NI @ x_NI.T).mul_(grad_NO @ grad_NO.T).sum()
