"""What book-keeping keeps of each weight's use: enough for exact norms and any weighted sum.

A record answers two questions about one use of one weight: the squared norm of every privacy unit's
gradient, and the sum of those gradients weighted per unit. Neither needs the per-unit gradient of a
large matrix: for y = x W^T the unit's gradient is sum_t g_t x_t^T, whose squared norm is
sum_{t,s} (g_t . g_s)(x_t . x_s) (the ghost norm).

Source: Goodfellow 2015 (arXiv 1510.01799); Li et al. 2021 (2110.05679);
Bu et al. 2022 (2210.00038).

Shapes: B sequences, U units, P positions of a unit (all its sequences, padded), T positions,
I inputs, O outputs, D width, V vocabulary, E experts, M slots, S segments, N segment length.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from models.ops import Slots, grouped_outer

_LENGTH_STEP = 8  # segments are padded to multiples of this, so that few bmm shapes occur


class Record(Protocol):
    """One use of one weight in one backward pass."""

    weight: Tensor

    def squared_norms(self) -> Tensor:
        """Squared gradient norm of each unit, [U]."""

    def weighted_sum(self, coefficient_U: Tensor) -> Tensor:
        """Sum over units of coefficient times gradient, in the weight's shape."""

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


def ghost(x_SNI: Tensor, grad_SNO: Tensor) -> Tensor:
    """Squared norm of sum_n grad_n x_n^T for each leading index, [S]; costs S N^2 (I + O)."""
    return (torch.bmm(x_SNI, x_SNI.mT) * torch.bmm(grad_SNO, grad_SNO.mT)).sum((1, 2))


class LinearRecord:
    """y = x W^T over [B, T, I]; small weights keep per-unit gradients, cheaper than ghost norms."""

    def __init__(self, weight: Tensor, x_BTI: Tensor, grad_BTO: Tensor, layout: UnitLayout) -> None:
        self.weight, self.layout = weight, layout
        self.x_BTI, self.grad_BTO = x_BTI, grad_BTO
        self.gradient_UOI: Tensor | None = None
        outputs, inputs = weight.shape
        positions = x_BTI.shape[1] * (1 if layout.one_each else layout._rows[0].shape[1])
        self._instantiate = positions * (inputs + outputs) >= inputs * outputs

    def squared_norms(self) -> Tensor:
        x_UPI = self.layout.gather(self.x_BTI)
        grad_UPO = self.layout.gather_gradient(self.grad_BTO)
        if not self._instantiate:
            return ghost(x_UPI, grad_UPO)
        gradient_UOI = torch.bmm(grad_UPO.mT, x_UPI)
        if gradient_UOI.numel() <= self.x_BTI.numel() + self.grad_BTO.numel():
            self.gradient_UOI = gradient_UOI
            self.x_BTI = self.grad_BTO = gradient_UOI.new_empty(0)
        return gradient_UOI.flatten(1).square().sum(1)

    def weighted_sum(self, coefficient_U: Tensor) -> Tensor:
        if self.gradient_UOI is not None:
            return (coefficient_U @ self.gradient_UOI.flatten(1)).view(self.weight.shape)
        c_B11 = coefficient_U[self.layout.unit_B][:, None, None]
        x_BTI, grad_BTO = self.x_BTI, self.grad_BTO
        if x_BTI.shape[-1] <= grad_BTO.shape[-1]:
            x_BTI = x_BTI * c_B11
        else:
            grad_BTO = grad_BTO * c_B11
        return grad_BTO.flatten(0, 1).T @ x_BTI.flatten(0, 1)

    def discard(self, bad_U: Tensor) -> None:
        if self.gradient_UOI is not None:
            self.gradient_UOI = self.gradient_UOI.masked_fill(bad_U[:, None, None], 0.0)
            return
        bad_B11 = bad_U[self.layout.unit_B][:, None, None]
        self.x_BTI = self.x_BTI.masked_fill(bad_B11, 0.0)
        self.grad_BTO = self.grad_BTO.masked_fill(bad_B11, 0.0)


class Segments:
    """Slots of one sparse layer as (expert, unit) segments, bucketed by padded length."""

    def __init__(self, slots: Slots, layout: UnitLayout) -> None:
        experts = len(slots.offsets) - 1
        self.units = layout.units
        lengths_E = torch.tensor(slots.offsets).diff()
        expert_M = torch.arange(experts).repeat_interleave(lengths_E)
        self.unit_M = layout.unit_B[slots.token_M // slots.positions]
        self._length_S = torch.bincount(
            expert_M * layout.units + self.unit_M, minlength=experts * layout.units
        )
        self._unit_S = torch.arange(layout.units).repeat(experts)

    @cached_property
    def buckets(self) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """Per length: each segment's unit [S], its slots [S, N], which are real [S, N, 1]."""
        start_S = self._length_S.cumsum(0) - self._length_S
        padded_S = (self._length_S + _LENGTH_STEP - 1) // _LENGTH_STEP * _LENGTH_STEP
        found = []
        for length in sorted(set(padded_S.tolist())):
            if length:
                chosen_S = (padded_S == length).nonzero().squeeze(1)
                place_N = torch.arange(length)
                real_SN = place_N < self._length_S[chosen_S, None]
                slot_SN = (start_S[chosen_S, None] + place_N).where(real_SN, 0)
                found.append((self._unit_S[chosen_S], slot_SN, real_SN[..., None]))
        return tuple(found)

    def pairs(self, x_MI: Tensor, grad_MO: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (unit [S], x [S, N, I], gradient [S, N, O] with zero padding) per bucket."""
        for unit_S, slot_SN, real_SN1 in self.buckets:
            yield unit_S, x_MI[slot_SN], grad_MO[slot_SN] * real_SN1.to(grad_MO)


class GroupedRecord:
    """One matrix per expert; segments by (expert, unit)."""

    def __init__(
        self, weight: Tensor, x_MI: Tensor, grad_MO: Tensor, slots: Slots, segments: Segments
    ) -> None:
        self.weight, self.slots, self.segments = weight, slots, segments
        self.x_MI, self.grad_MO = x_MI, grad_MO

    def squared_norms(self) -> Tensor:
        norms_U = self.x_MI.new_zeros(self.segments.units)
        _, outputs, inputs = self.weight.shape
        for unit_S, x_SNI, grad_SNO in self.segments.pairs(self.x_MI, self.grad_MO):
            if x_SNI.shape[1] * (inputs + outputs) <= inputs * outputs:
                squared_S = ghost(x_SNI, grad_SNO)
            else:
                squared_S = torch.bmm(grad_SNO.mT, x_SNI).flatten(1).square().sum(1)
            norms_U.index_add_(0, unit_S, squared_S)
        return norms_U

    def weighted_sum(self, coefficient_U: Tensor) -> Tensor:
        c_M1 = coefficient_U[self.segments.unit_M][:, None]
        if self.x_MI.shape[1] <= self.grad_MO.shape[1]:
            return grouped_outer(self.x_MI * c_M1, self.grad_MO, self.slots)
        return grouped_outer(self.x_MI, self.grad_MO * c_M1, self.slots)

    def discard(self, bad_U: Tensor) -> None:
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

    def weighted_sum(self, coefficient_U: Tensor) -> Tensor:
        return coefficient_U @ self.gradient_UD

    def discard(self, bad_U: Tensor) -> None:
        self.gradient_UD = self.gradient_UD.masked_fill(bad_U[:, None], 0.0)


class EmbeddingRecord:
    """y = W[token]: positions of a unit that hold the same token add up before the norm."""

    def __init__(
        self, weight: Tensor, token_BT: Tensor, grad_BTD: Tensor, layout: UnitLayout
    ) -> None:
        self.weight, self.layout = weight, layout
        self.token_BT, self.grad_BTD = token_BT, grad_BTD

    def squared_norms(self) -> Tensor:
        token_UP = self.layout.gather(self.token_BT)
        grad_UPD = self.layout.gather_gradient(self.grad_BTD)
        same_UPP = token_UP[:, :, None] == token_UP[:, None, :]
        return (torch.bmm(grad_UPD, grad_UPD.mT) * same_UPP).sum((1, 2))

    def weighted_sum(self, coefficient_U: Tensor) -> Tensor:
        grad_BTD = self.grad_BTD * coefficient_U[self.layout.unit_B][:, None, None]
        total_VD = torch.zeros_like(self.weight)
        return total_VD.index_add_(0, self.token_BT.flatten(), grad_BTD.flatten(0, 1))

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
