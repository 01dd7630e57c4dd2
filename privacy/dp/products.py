"""Matrix products of reduced-precision operands whose sums are fp32, and what rounding adds.

Products of two bf16 numbers are exact in fp32. A GPU adds them in fp32 and can hand the fp32 sum
out; elsewhere the operands are widened first. What is then left to bound is one rounding: a row
that is scaled by its unit's coefficient has to fit the operands' type again.

Shapes: S leading indices, U units, N rows, I inputs, O outputs, X elements of a gradient.
"""

from typing import Any

import torch
from torch import Tensor

# Unit roundoff of bf16: half a unit in the last of its 8 significant bits, relative.
_ROUNDOFF = 2.0**-9


def are_exact() -> bool:
    """Whether fp32 operands are multiplied as fp32 everywhere: not as tf32 or bf16, for speed."""
    backends: Any = torch.backends
    places = (backends, backends.cuda.matmul, backends.mkldnn, backends.mkldnn.matmul)
    return all(getattr(place, "fp32_precision", "none") in ("none", "ieee") for place in places)


def is_reduced(x: Tensor) -> bool:
    """Whether operands of this type are multiplied exactly and added in fp32."""
    return x.dtype == torch.bfloat16


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right for each leading index, in fp32 if the operands have less."""
    if not is_reduced(left):
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(wide(left), wide(right))


def add_product(total_OI: Tensor, left_ON: Tensor, right_NI: Tensor) -> None:
    """Add left @ right to an fp32 total, in place."""
    if not is_reduced(left_ON):
        total_OI.addmm_(left_ON, right_NI)
    elif left_ON.is_cuda:
        total_OI.add_(torch.mm(left_ON, right_NI, out_dtype=torch.float32))
    else:
        total_OI.addmm_(wide(left_ON), wide(right_NI))


def gradients(grad_SNO: Tensor, x_SNI: Tensor) -> Tensor:
    """Return sum_n grad_n x_n^T for each leading index, to be kept, [S, O, I].

    On a GPU bf16 operands give bf16 gradients. That rounding costs no privacy: the rounded gradient
    is what is measured and what is added.
    """
    return torch.bmm(grad_SNO.mT, x_SNI) if x_SNI.is_cuda else product(grad_SNO.mT, x_SNI)


def add_combination(total_EX: Tensor, coefficient_U: Tensor, gradient_EUX: Tensor) -> None:
    """Add sum_u coefficient_u gradient_eu to an fp32 total for each leading index e, in place.

    Coefficients of bf16 gradients are rounded towards zero, so that their products are exact.
    """
    experts, units = gradient_EUX.shape[:2]
    if not is_reduced(gradient_EUX):
        rows_E1U = coefficient_U.to(gradient_EUX).expand(experts, 1, units)
        total_EX[:, None].baddbmm_(rows_E1U, gradient_EUX)
        return
    rows_E1U = _towards_zero(coefficient_U).expand(experts, 1, units)
    total_EX.add_(product(rows_E1U, gradient_EUX)[:, 0])


def _towards_zero(coefficient: Tensor) -> Tensor:
    """Round fp32 to bf16, never up: bf16 is fp32 without its last 16 bits."""
    bits = coefficient.float().view(torch.int32)
    return (bits & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def scaled(x: Tensor, coefficient: Tensor) -> Tensor:
    """Return x * coefficient, computed in fp32 and rounded once to x's type."""
    return torch.mul(x, coefficient, out=torch.empty_like(x))


def squared_rounding(length_S: Tensor, x: Tensor) -> Tensor:
    """Bound what `scaled` adds to sum_n grad_n x_n^T, as a share of the coefficient, squared, [S].

    Each factor grad_n is off by at most the unit roundoff, relative and element by element, so the
    sum is off by at most roundoff * sum_n |grad_n| |x_n|. Zero for fp32 and fp64, whose rounding
    the clipping slack covers.

    Args:
        length_S: sum_n |grad_n| |x_n|. x: tells the type.

    """
    return ((_ROUNDOFF if is_reduced(x) else 0.0) * length_S).square()


def wide(x: Tensor) -> Tensor:
    """Return x in fp32 or what it has beyond."""
    return x.float() if is_reduced(x) else x


def row_lengths(x: Tensor) -> Tensor:
    """Euclidean length of each row, in fp32 or wider."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
    return length
