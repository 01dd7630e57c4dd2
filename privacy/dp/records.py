"""What book-keeping keeps of each weight's use: enough for exact norms and any weighted sum.

A record answers two questions about one use of one weight: the squared norm of every privacy unit's
gradient, and the sum of those gradients weighted per unit. Neither needs the per-unit gradient of a
large matrix (privacy.dp.norms).

Source: Bu et al. 2022 (arXiv 2210.00038).

Shapes: B sequences, U units, P positions of a unit (all its sequences, padded), T positions,
I inputs, O outputs, D width, V vocabulary, E experts, M slots, S segments, N segment length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from models.ops import Slots
from privacy.dp.norms import ghost, resolve, squared_norm, squared_norm_of

# Per-unit gradients up to this many times the size of the activations they replace are kept: their
# weighted sum is then one matrix-vector product, and no second pass over the activations is needed.
_KEEP = 1.5


class Record(Protocol):
    """One use of one weight in one backward pass."""

    weight: Tensor

    def squared_norms(self) -> Tensor:
        """Squared gradient norm of each unit, [U]."""

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

    @cached_property
    def one_each(self) -> bool:
        """True where every unit is exactly one sequence: no rearrangement is needed."""
        return len(self.unit_B) == self.units and bool((self.unit_B.diff() == 1).all())

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """(sequence index per unit, padded; whether it is real), both [U, S]."""
        counts_U = torch.bincount(self.unit_B, minlength=self.units)
        place_S = torch.arange(max(int(counts_U.max()), 1))
        rows_US = (counts_U.cumsum(0) - counts_U)[:, None] + place_S
        real_US = place_S < counts_U[:, None]
        return rows_US.where(real_US, 0), real_US

    def gather(self, x_BT: Tensor) -> Tensor:
        """[B, T, ...] -> [U, P, ...], P = S*T; padding holds copies (zero gradients mask it)."""
        if self.one_each:
            return x_BT
        return x_BT[self._rows[0]].flatten(1, 2)

    def gather_gradient(self, grad_BTX: Tensor) -> Tensor:
        """Like gather, with padding set to zero."""
        if self.one_each:
            return grad_BTX
        rows_US, real_US = self._rows
        return (grad_BTX[rows_US] * real_US[:, :, None, None].to(grad_BTX)).flatten(1, 2)

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
        self.cancelled_U = torch.zeros(layout.units, dtype=torch.bool)

    def squared_norms(self) -> Tensor:
        x_UPI = self.layout.gather(self.x_BTI)
        grad_UPO = self.layout.gather_gradient(self.grad_BTO)
        kept = self.x_BTI.numel() + self.grad_BTO.numel()
        if self.layout.units * self.weight.numel() <= _KEEP * kept:
            self.gradient_UOI = torch.bmm(grad_UPO.mT, x_UPI)
            self.x_BTI = self.grad_BTO = self.gradient_UOI.new_empty(0)
            return squared_norm(self.gradient_UOI)
        positions = x_UPI.shape[1]
        if positions * sum(self.weight.shape) < self.weight.numel():
            squared_U = ghost(x_UPI, grad_UPO)
        else:
            squared_U = squared_norm(torch.bmm(grad_UPO.mT, x_UPI))
        squared_U, self.cancelled_U = resolve(
            squared_U,
            (x_UPI.square().sum(-1) * grad_UPO.square().sum(-1)).sum(1),
            [positions] * len(squared_U),
            lambda unit: squared_norm_of(x_UPI[unit].double(), grad_UPO[unit].double()),
        )
        return squared_U

    def add_weighted(self, coefficient_U: Tensor, total: Tensor) -> None:
        if self.gradient_UOI is not None:
            total.view(1, -1).addmm_(coefficient_U[None], self.gradient_UOI.flatten(1))
            return
        c_B11 = coefficient_U[self.layout.unit_B][:, None, None]
        x_BTI, grad_BTO = self.x_BTI, self.grad_BTO
        if x_BTI.shape[-1] <= grad_BTO.shape[-1]:
            x_BTI = x_BTI * c_B11
        else:
            grad_BTO = grad_BTO * c_B11
        total.addmm_(grad_BTO.flatten(0, 1).T, x_BTI.flatten(0, 1))

    def discard(self, bad_U: Tensor) -> None:
        if self.gradient_UOI is not None:
            self.gradient_UOI = self.gradient_UOI.masked_fill(bad_U[:, None, None], 0.0)
            return
        bad_B11 = bad_U[self.layout.unit_B][:, None, None]
        self.x_BTI = self.x_BTI.masked_fill(bad_B11, 0.0)
        self.grad_BTO = self.grad_BTO.masked_fill(bad_B11, 0.0)


class Segments:
    """Slots of one sparse layer as (expert, unit) segments, contiguous and in that order.

    Attributes:
        slots: the slots (held, so that their id stays theirs).
        units: number of units U. unit_M, segment_M: each slot's unit and segment.
        lengths: slots of each of the E * U segments, zeros included.

    """

    def __init__(self, slots: Slots, layout: UnitLayout) -> None:
        experts = len(slots.offsets) - 1
        self.slots, self.units = slots, layout.units
        expert_M = torch.arange(experts).repeat_interleave(torch.tensor(slots.offsets).diff())
        self.unit_M = layout.unit_B[slots.token_M // slots.positions]
        self.segment_M = expert_M * layout.units + self.unit_M
        self.lengths: list[int] = torch.bincount(
            self.segment_M, minlength=experts * layout.units
        ).tolist()

    def pairs(self, x_MI: Tensor, grad_MO: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x [N, I], gradient [N, O]) of each segment, views."""
        x, grad = x_MI.split_with_sizes(self.lengths), grad_MO.split_with_sizes(self.lengths)
        return zip(x, grad, strict=True)


class GroupedRecord:
    """One matrix per expert; segments by (expert, unit), one small product each.

    Exact lengths beat padded batches on CPU: with about 32 rows each, a padded `bmm` takes 1.3 to
    2.8 times as long.
    """

    def __init__(self, weight: Tensor, x_MI: Tensor, grad_MO: Tensor, segments: Segments) -> None:
        self.weight, self.segments = weight, segments
        self.x_MI, self.grad_MO = x_MI, grad_MO
        self.gradient_SOI: Tensor | None = None

    def squared_norms(self) -> Tensor:
        pairs = list(self.segments.pairs(self.x_MI, self.grad_MO))
        kept = self.x_MI.numel() + self.grad_MO.numel()
        if self.segments.units * self.weight.numel() > _KEEP * kept:
            squared_S = torch.stack([squared_norm_of(x, grad) for x, grad in pairs])
            terms_M = self.x_MI.square().sum(1) * self.grad_MO.square().sum(1)
            squared_S, _ = resolve(
                squared_S,
                torch.zeros_like(squared_S).index_add_(0, self.segments.segment_M, terms_M),
                self.segments.lengths,
                lambda segment: squared_norm_of(*(t.double() for t in pairs[segment])),
            )
        else:
            self.gradient_SOI = self.x_MI.new_empty(
                len(self.segments.lengths), *self.weight.shape[1:]
            )
            for (x_NI, grad_NO), gradient_OI in zip(pairs, self.gradient_SOI, strict=True):
                torch.mm(grad_NO.T, x_NI, out=gradient_OI)
            self.x_MI = self.grad_MO = self.gradient_SOI.new_empty(0)
            squared_S = squared_norm(self.gradient_SOI)
        return squared_S.view(-1, self.segments.units).sum(0)

    def add_weighted(self, coefficient_U: Tensor, total: Tensor) -> None:
        experts, units = len(total), self.segments.units
        if self.gradient_SOI is not None:
            gradient_EUX = self.gradient_SOI.view(experts, units, -1)
            total.view(experts, 1, -1).baddbmm_(
                coefficient_U.expand(experts, 1, units), gradient_EUX
            )
            return
        c_M1 = coefficient_U[self.segments.unit_M][:, None]
        x_MI, grad_MO = self.x_MI, self.grad_MO
        if x_MI.shape[1] <= grad_MO.shape[1]:
            x_MI = x_MI * c_M1
        else:
            grad_MO = grad_MO * c_M1
        for expert, begin, end in self.segments.slots.used():
            total[expert].addmm_(grad_MO[begin:end].T, x_MI[begin:end])

    def discard(self, bad_U: Tensor) -> None:
        if self.gradient_SOI is not None:
            bad_S11 = bad_U.repeat(len(self.weight))[:, None, None]
            self.gradient_SOI = self.gradient_SOI.masked_fill(bad_S11, 0.0)
            return
        bad_M1 = bad_U[self.segments.unit_M][:, None]
        self.x_MI = self.x_MI.masked_fill(bad_M1, 0.0)
        self.grad_MO = self.grad_MO.masked_fill(bad_M1, 0.0)


class ScaleRecord:
    """y = x * w: the unit's gradient is a vector, kept as it is."""

    def __init__(self, weight: Tensor, x: Tensor, grad: Tensor, layout: UnitLayout) -> None:
        self.weight = weight
        gradient_BD = (x * grad).flatten(1, -2).sum(1)
        self.gradient_UD = layout.add_rows(gradient_BD)

    def squared_norms(self) -> Tensor:
        return self.gradient_UD.square().sum(1)

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
        self.cancelled_U = torch.zeros(layout.units, dtype=torch.bool)

    def squared_norms(self) -> Tensor:
        token_UP = self.layout.gather(self.token_BT)
        grad_UPD = self.layout.gather_gradient(self.grad_BTD)
        same_UPP = token_UP[:, :, None] == token_UP[:, None, :]

        def exact(unit: int) -> Tensor:
            grad_PD = grad_UPD[unit].double()
            return ((grad_PD @ grad_PD.T) * same_UPP[unit]).sum()

        squared_U, self.cancelled_U = resolve(
            (torch.bmm(grad_UPD, grad_UPD.mT) * same_UPP).sum((1, 2)),
            grad_UPD.square().sum((1, 2)),
            [token_UP.shape[1]] * len(token_UP),
            exact,
        )
        return squared_U

    def add_weighted(self, coefficient_U: Tensor, total: Tensor) -> None:
        grad_BTD = self.grad_BTD * coefficient_U[self.layout.unit_B][:, None, None]
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
    grad_UPD = layout.gather_gradient(embedding.grad_BTD)
    if head.gradient_UOI is not None:
        rows_UPD = head.gradient_UOI.gather(1, token_UP[..., None].expand_as(grad_UPD))
        return 2 * (rows_UPD * grad_UPD).sum((1, 2))
    hidden_UPD = layout.gather(head.x_BTI)
    head_grad_UPV = layout.gather_gradient(head.grad_BTO)
    columns_UPP = head_grad_UPV.gather(2, token_UP[:, None, :].expand(-1, hidden_UPD.shape[1], -1))
    return 2 * (columns_UPP * torch.bmm(hidden_UPD, grad_UPD.mT)).sum((1, 2))
