"""What book-keeping keeps of each weight's use: enough for exact norms and any weighted sum.

A record answers two questions about one use of one weight: the squared norm of every privacy unit's
gradient, and the sum of those gradients weighted per unit. Neither needs the per-unit gradient of a
large matrix (privacy.dp.norms).

Source: Bu et al. 2022 (arXiv 2210.00038).

Shapes: B sequences, U units, P positions of a unit (all its sequences, padded), T positions,
I inputs, O outputs, D width, V vocabulary.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from privacy.dp.norms import (
    cancelled,
    resolve,
    squared_norm,
    squared_norm_of,
    squared_norms_of,
    term_lengths,
)
from privacy.dp.products import (
    add_combination,
    add_product,
    gradients,
    product,
    scaled,
    squared_rounding,
    wide,
)

# Per-unit gradients up to this many times the size of the activations they replace are kept: their
# weighted sum is then one matrix-vector product, and no second pass over the activations is needed.
KEEP = 1.5


class Record(Protocol):
    """One use of one weight in one backward pass.

    Attributes:
        weight: its shape is the gradient's.
        cancelled_U: units of whose norm float32 left too little. squared_rounding_U: bound on what
            rounding adds to a unit's weighted gradient, as a share of its coefficient, squared, and
            on what its norm lost. Both are known once `squared_norms` was called.

    """

    weight: Tensor
    cancelled_U: Tensor
    squared_rounding_U: Tensor

    def squared_norms(self) -> Tensor:
        """Squared gradient norm of each unit, [U]; a GPU is not waited for."""

    def resolved(self, squared_U: Tensor) -> Tensor:
        """Return the same, computed again for the units that cancelled, [U]."""

    def add_weighted(self, coefficient_U: Tensor, total: Tensor) -> None:
        """Add the sum over units of coefficient times gradient to `total`, of weight's shape."""

    def discard(self, bad_U: Tensor) -> None:
        """Replace everything the marked units contributed by zeros."""


@dataclass(frozen=True)
class UnitLayout:
    """Which privacy unit each sequence of a physical chunk belongs to.

    Attributes:
        unit_B: nondecreasing unit index of each sequence, in [0, units).
        units: number of units U in the chunk.

    """

    unit_B: Tensor
    units: int

    def __post_init__(self) -> None:
        steps = self.unit_B.diff()
        if (steps < 0).any() or (self.unit_B < 0).any() or (self.unit_B >= self.units).any():
            raise ValueError("Expected nondecreasing unit indices below the number of units.")

    def none(self) -> Tensor:
        """Mark no unit, bool [U]."""
        return torch.zeros(self.units, dtype=torch.bool, device=self.unit_B.device)

    def zeros(self) -> Tensor:
        """Zero for each unit, fp32 [U]."""
        return torch.zeros(self.units, device=self.unit_B.device)

    @cached_property
    def one_each(self) -> bool:
        """True where every unit is exactly one sequence: no rearrangement is needed."""
        return len(self.unit_B) == self.units and bool((self.unit_B.diff() == 1).all())

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """(sequence index per unit, padded; whether it is real), both [U, S]."""
        counts_U = torch.bincount(self.unit_B, minlength=self.units)
        place_S = torch.arange(max(int(counts_U.max()), 1), device=self.unit_B.device)
        rows_US = (counts_U.cumsum(0) - counts_U)[:, None] + place_S
        real_US = place_S < counts_U[:, None]
        return rows_US.where(real_US, 0), real_US

    def gather(self, x_BTX: Tensor) -> Tensor:
        """[B, T, ...] -> [U, P, ...], P = S*T; padding is zero, whatever the other units hold."""
        if self.one_each:
            return x_BTX
        rows_US, real_US = self._rows
        padding = ~real_US.view(*real_US.shape, *[1] * (x_BTX.dim() - 1))
        return x_BTX[rows_US].masked_fill_(padding, 0).flatten(1, 2)

    def add_rows(self, x_BX: Tensor) -> Tensor:
        """Sum [B, X] over each unit's sequences, [U, X]."""
        if self.one_each:
            return x_BX
        return x_BX.new_zeros(self.units, x_BX.shape[1]).index_add_(0, self.unit_B, x_BX)


class LinearRecord:
    """y = x W^T over [B, T, I]; per-unit gradients are kept where they are small."""

    def __init__(self, weight: Tensor, x_BTI: Tensor, grad_BTO: Tensor, layout: UnitLayout) -> None:
        self.weight, self.layout = weight, layout
        self.x_BTI, self.grad_BTO = x_BTI, grad_BTO
        self.gradient_UOI: Tensor | None = None
        self.cancelled_U = layout.none()
        self.squared_rounding_U = layout.zeros()
        self._terms_U = layout.zeros()

    def squared_norms(self) -> Tensor:
        x_UPI, grad_UPO = self._by_unit()
        kept = self.x_BTI.numel() + self.grad_BTO.numel()
        if self.layout.units * self.weight.numel() <= KEEP * kept:
            self.gradient_UOI = gradients(grad_UPO, x_UPI)
            self.x_BTI = self.grad_BTO = self.gradient_UOI.new_empty(0)
            return squared_norm(self.gradient_UOI)
        length_UP, lost_UP = term_lengths(x_UPI, grad_UPO)
        rounding_U = squared_rounding(length_UP.sum(1), x_UPI)
        self.squared_rounding_U = rounding_U + length_UP.shape[1] * lost_UP.sum(1)
        self._terms_U = length_UP.square().sum(1)
        squared_U = squared_norms_of(x_UPI, grad_UPO)
        self.cancelled_U = cancelled(squared_U, self._terms_U)
        return squared_U

    def resolved(self, squared_U: Tensor) -> Tensor:
        if self.gradient_UOI is not None:
            return squared_U
        x_UPI, grad_UPO = self._by_unit()
        counts = [x_UPI.shape[1]] * len(x_UPI)

        def exact(unit: int) -> Tensor:
            return squared_norm_of(x_UPI[unit].double(), grad_UPO[unit].double())

        return resolve(squared_U, self.cancelled_U, self._terms_U, counts, exact)

    def _by_unit(self) -> tuple[Tensor, Tensor]:
        return self.layout.gather(self.x_BTI), self.layout.gather(self.grad_BTO)

    def add_weighted(self, coefficient_U: Tensor, total: Tensor) -> None:
        if self.gradient_UOI is not None:
            add_combination(total.view(1, -1), coefficient_U, self.gradient_UOI.flatten(1)[None])
            return
        c_B11 = coefficient_U[self.layout.unit_B][:, None, None]
        x_BTI, grad_BTO = self.x_BTI, self.grad_BTO
        if x_BTI.shape[-1] <= grad_BTO.shape[-1]:
            x_BTI = scaled(x_BTI, c_B11)
        else:
            grad_BTO = scaled(grad_BTO, c_B11)
        add_product(total, grad_BTO.flatten(0, 1).T, x_BTI.flatten(0, 1))

    def discard(self, bad_U: Tensor) -> None:
        if self.gradient_UOI is not None:
            self.gradient_UOI = self.gradient_UOI.masked_fill(bad_U[:, None, None], 0.0)
            return
        bad_B11 = bad_U[self.layout.unit_B][:, None, None]
        self.x_BTI = self.x_BTI.masked_fill(bad_B11, 0.0)
        self.grad_BTO = self.grad_BTO.masked_fill(bad_B11, 0.0)


class ScaleRecord:
    """y = x * w: the unit's gradient is a vector, kept as it is."""

    def __init__(self, weight: Tensor, x: Tensor, grad: Tensor, layout: UnitLayout) -> None:
        self.weight = weight
        gradient_BD = (wide(x) * grad).flatten(1, -2).sum(1)
        self.gradient_UD = layout.add_rows(gradient_BD)
        self.cancelled_U, self.squared_rounding_U = layout.none(), layout.zeros()

    def squared_norms(self) -> Tensor:
        return self.gradient_UD.square().sum(1)

    def resolved(self, squared_U: Tensor) -> Tensor:
        return squared_U

    def add_weighted(self, coefficient_U: Tensor, total: Tensor) -> None:
        total.add_(coefficient_U @ self.gradient_UD)

    def discard(self, bad_U: Tensor) -> None:
        self.gradient_UD = self.gradient_UD.masked_fill(bad_U[:, None], 0.0)


class EmbeddingRecord:
    """y = W[token]: positions of a unit that hold the same token add up before the norm."""

    def __init__(
        self, weight: Tensor, token_BT: Tensor, grad_BTD: Tensor, layout: UnitLayout
    ) -> None:
        self.weight, self.layout = weight, layout
        self.token_BT, self.grad_BTD = token_BT, grad_BTD
        self.cancelled_U, self.squared_rounding_U = layout.none(), layout.zeros()

    def squared_norms(self) -> Tensor:
        grad_UPD, same_UPP = self._by_unit()
        squared_U = torch.bmm(grad_UPD, grad_UPD.mT).mul_(same_UPP).sum((1, 2))
        self.cancelled_U = cancelled(squared_U, grad_UPD.square().sum((1, 2)))
        return squared_U

    def resolved(self, squared_U: Tensor) -> Tensor:
        grad_UPD, same_UPP = self._by_unit()

        def exact(unit: int) -> Tensor:
            grad_PD = grad_UPD[unit].double()
            return ((grad_PD @ grad_PD.T) * same_UPP[unit]).sum()

        terms_U, counts = grad_UPD.square().sum((1, 2)), [grad_UPD.shape[1]] * len(grad_UPD)
        return resolve(squared_U, self.cancelled_U, terms_U, counts, exact)

    def _by_unit(self) -> tuple[Tensor, Tensor]:
        """(Gradients, fp32; whether two positions hold the same token)."""
        token_UP = self.layout.gather(self.token_BT)
        grad_UPD = wide(self.layout.gather(self.grad_BTD))
        return grad_UPD, token_UP[:, :, None] == token_UP[:, None, :]

    def add_weighted(self, coefficient_U: Tensor, total: Tensor) -> None:
        grad_BTD = wide(self.grad_BTD) * coefficient_U[self.layout.unit_B][:, None, None]
        total.index_add_(0, self.token_BT.flatten(), grad_BTD.flatten(0, 1))

    def discard(self, bad_U: Tensor) -> None:
        self.grad_BTD = self.grad_BTD.masked_fill(bad_U[self.layout.unit_B][:, None, None], 0.0)


def tied_cross_term(embedding: EmbeddingRecord, head: LinearRecord) -> Tensor:
    """Twice the inner product of a tied table's two gradients, per unit, [U].

    With head gradient sum_t g_t h_t^T and lookup gradient sum_s onehot(token_s) e_s^T this is
    2 sum_{t,s} g_t[token_s] (h_t . e_s).
    """
    layout = embedding.layout
    token_UP = layout.gather(embedding.token_BT)
    grad_UPD = wide(layout.gather(embedding.grad_BTD))
    if head.gradient_UOI is not None:
        rows_UPD = head.gradient_UOI.gather(1, token_UP[..., None].expand_as(grad_UPD))
        return 2 * (rows_UPD * grad_UPD).sum((1, 2))
    hidden_UPD = wide(layout.gather(head.x_BTI))
    head_grad_UPV = layout.gather(head.grad_BTO)
    columns_UPP = head_grad_UPV.gather(2, token_UP[:, None, :].expand(-1, hidden_UPD.shape[1], -1))
    return 2 * (columns_UPP * product(hidden_UPD, grad_UPD.mT)).sum((1, 2))
