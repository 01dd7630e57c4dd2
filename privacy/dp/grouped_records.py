"""What book-keeping keeps of a sparse layer's use: slots in segments of one expert and one unit.

Source: Bu et al. 2022 (arXiv 2210.00038), whose rule for one matrix is applied to every expert's.

Shapes: U units, I inputs, O outputs, E experts, M slots, S segments, N segment length.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from models.ops import Slots, has_grouped_kernel
from privacy.dp.norms import cancelled, resolve, squared_norm, squared_norm_of, term_lengths
from privacy.dp.products import (
    add_combination,
    add_product,
    scaled,
    squared_rounding,
    wide,
)
from privacy.dp.records import KEEP, UnitLayout


class Segments:
    """Slots of one sparse layer as (expert, unit) segments, contiguous and in that order.

    Attributes:
        slots: the slots (held, so that their id stays theirs). layout: the units.
        unit_M, segment_M: each slot's unit and segment.
        ends_S: where each of the E * U segments ends, int32; empty ones end where they begin.

    """

    def __init__(self, slots: Slots, layout: UnitLayout) -> None:
        self.slots, self.layout = slots, layout
        device, experts = slots.token_M.device, len(slots.ends_E)
        place_M = torch.arange(len(slots.token_M), dtype=torch.int32, device=device)
        expert_M = torch.searchsorted(slots.ends_E, place_M, right=True)
        self.unit_M = layout.unit_B[slots.token_M // slots.positions]
        self.segment_M = expert_M * layout.units + self.unit_M
        every_S = torch.arange(experts * layout.units, device=device)
        self.ends_S = torch.searchsorted(self.segment_M, every_S, right=True, out_int32=True)

    @cached_property
    def lengths(self) -> list[int]:
        """Slots of each segment; on a GPU the first look waits for it."""
        lengths: list[int] = self.ends_S.diff(prepend=self.ends_S.new_zeros(1)).tolist()
        return lengths

    def pairs(self, x_MI: Tensor, grad_MO: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x [N, I], gradient [N, O]) of each segment, views."""
        x, grad = x_MI.split_with_sizes(self.lengths), grad_MO.split_with_sizes(self.lengths)
        return zip(x, grad, strict=True)

    def over_experts(self, value_S: Tensor) -> Tensor:
        """Sum [S] over each unit's segments, [U]."""
        return value_S.view(-1, self.layout.units).sum(0)


class GroupedRecord:
    """One matrix per expert; segments by (expert, unit), one small product each.

    Exact lengths beat padded batches on CPU: with about 32 rows each, a padded `bmm` takes 1.3 to
    2.8 times as long. On a GPU one kernel multiplies all segments.
    """

    def __init__(self, weight: Tensor, x_MI: Tensor, grad_MO: Tensor, segments: Segments) -> None:
        self.weight, self.segments = weight, segments
        self.x_MI, self.grad_MO = x_MI, grad_MO
        self.gradient_SOI: Tensor | None = None
        self.cancelled_U, self.squared_rounding_U = segments.layout.none(), segments.layout.zeros()
        self._squared_S = self._cancelled_S = self._terms_S = x_MI.new_empty(0)

    def squared_norms(self) -> Tensor:
        kept = self.x_MI.numel() + self.grad_MO.numel()
        if self.segments.layout.units * self.weight.numel() > KEEP * kept:
            return self._norms_of_factors()
        self.gradient_SOI = self._gradients()
        self.x_MI = self.grad_MO = self.gradient_SOI.new_empty(0)
        return self.segments.over_experts(squared_norm(self.gradient_SOI))

    def resolved(self, squared_U: Tensor) -> Tensor:
        if self.gradient_SOI is not None:
            return squared_U
        pairs = list(self.segments.pairs(self.x_MI, self.grad_MO))

        def exact(segment: int) -> Tensor:
            return squared_norm_of(*(factor.double() for factor in pairs[segment]))

        squared_S = resolve(
            self._squared_S, self._cancelled_S, self._terms_S, self.segments.lengths, exact
        )
        return self.segments.over_experts(squared_S)

    def _norms_of_factors(self) -> Tensor:
        over, ends_S = self.segments.over_experts, self.segments.ends_S
        length_M, lost_M = term_lengths(self.x_MI, self.grad_MO)
        zeros_S = length_M.new_zeros(len(ends_S))
        lost_S = zeros_S.index_add(0, self.segments.segment_M, lost_M)
        length_S = zeros_S.index_add(0, self.segments.segment_M, length_M)
        self._terms_S = zeros_S.index_add(0, self.segments.segment_M, length_M.square())
        if self._has_kernel():
            self._squared_S = squared_norm(self._gradients())
            length_S = length_S + self._squared_S.sqrt()  # what was measured had been rounded
        else:
            pairs = self.segments.pairs(self.x_MI, self.grad_MO)
            self._squared_S = torch.stack([squared_norm_of(wide(x), wide(g)) for x, g in pairs])
        lost_S = lost_S * ends_S.diff(prepend=ends_S.new_zeros(1))
        self.squared_rounding_U = over(squared_rounding(length_S, self.x_MI) + lost_S)
        self._cancelled_S = cancelled(self._squared_S, self._terms_S)
        self.cancelled_U = over(self._cancelled_S) > 0
        return over(self._squared_S)

    def _has_kernel(self) -> bool:
        return has_grouped_kernel(self.x_MI, self.grad_MO.shape[1])

    def _gradients(self) -> Tensor:
        """Each segment's gradient, [S, O, I]; a GPU's kernel rounds it to bf16."""
        if self._has_kernel():
            return F.grouped_mm(self.grad_MO.T, self.x_MI, offs=self.segments.ends_S)
        x_MI, grad_MO = wide(self.x_MI), wide(self.grad_MO)
        gradient_SOI = x_MI.new_empty(len(self.segments.lengths), *self.weight.shape[1:])
        for (x_NI, grad_NO), gradient_OI in zip(
            self.segments.pairs(x_MI, grad_MO), gradient_SOI, strict=True
        ):
            torch.mm(grad_NO.T, x_NI, out=gradient_OI)
        return gradient_SOI

    def add_weighted(self, coefficient_U: Tensor, total: Tensor) -> None:
        experts, units = len(total), self.segments.layout.units
        if self.gradient_SOI is not None:
            gradient_EUX = self.gradient_SOI.view(experts, units, -1)
            add_combination(total.view(experts, -1), coefficient_U, gradient_EUX)
            return
        c_M1 = coefficient_U[self.segments.unit_M][:, None]
        x_MI, grad_MO = self.x_MI, self.grad_MO
        if x_MI.shape[1] <= grad_MO.shape[1]:
            x_MI = scaled(x_MI, c_M1)
        else:
            grad_MO = scaled(grad_MO, c_M1)
        for expert, begin, end in self.segments.slots.used():
            add_product(total[expert], grad_MO[begin:end].T, x_MI[begin:end])

    def discard(self, bad_U: Tensor) -> None:
        if self.gradient_SOI is not None:
            bad_S11 = bad_U.repeat(len(self.weight))[:, None, None]
            self.gradient_SOI = self.gradient_SOI.masked_fill(bad_S11, 0.0)
            return
        bad_M1 = bad_U[self.segments.unit_M][:, None]
        self.x_MI = self.x_MI.masked_fill(bad_M1, 0.0)
        self.grad_MO = self.grad_MO.masked_fill(bad_M1, 0.0)
