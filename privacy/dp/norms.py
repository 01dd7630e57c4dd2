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

# A squared norm below this share of its terms' squares is what was left after they cancelled:
# float32 may have lost all of it, and a unit of any norm would pass for a small one.
_CANCELLED = 1e-2
# Least squared norm that is reported, as a share of (sum of the terms' norms)^2: what rounds in a
# weighted sum of the terms is then below the clipping slack.
_RESOLVED = 1e-5


def resolve(
    squared_S: Tensor, terms_S: Tensor, counts: Sequence[int], exact: Callable[[int], Tensor]
) -> tuple[Tensor, Tensor]:
    """Compute squared norms again whose terms cancelled: a model can be built so that they do.

    Args:
        squared_S: as computed. terms_S: sum of the squared norms of each one's terms.
        counts: number of each one's terms.
        exact: computes one of them in float64.

    Returns:
        Squared norms, and which of them had cancelled, both [S].

    """
    cancelled_S = squared_S < _CANCELLED * terms_S
    for index in cancelled_S.nonzero().flatten().tolist():
        least = _RESOLVED * counts[index] * terms_S[index]
        squared_S[index] = torch.maximum(exact(index).to(squared_S), least)
    return squared_S, cancelled_S


def ghost(x_SNI: Tensor, grad_SNO: Tensor) -> Tensor:
    """Squared norm of sum_n grad_n x_n^T for each leading index, [S]; costs S N^2 (I + O)."""
    return (torch.bmm(x_SNI, x_SNI.mT) * torch.bmm(grad_SNO, grad_SNO.mT)).sum((1, 2))


def squared_norm(gradient_SOI: Tensor) -> Tensor:
    """Squared Frobenius norm for each leading index, [S].

    Row by row first: one float32 running sum over a whole matrix errs by 1e-6 and more.
    """
    rows_SO: Tensor = torch.linalg.vector_norm(gradient_SOI, dim=2)
    return rows_SO.square().sum(1)


def squared_norm_of(x_NI: Tensor, grad_NO: Tensor) -> Tensor:
    """Squared norm of grad^T x, by whichever of the two ways takes fewer operations."""
    positions, inputs, outputs = *x_NI.shape, grad_NO.shape[1]
    if positions * (inputs + outputs) > inputs * outputs:
        return squared_norm((grad_NO.T @ x_NI)[None])[0]
    return (x_NI @ x_NI.T).mul_(grad_NO @ grad_NO.T).sum()
