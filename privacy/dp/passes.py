"""Clipping for what does not fit in memory at once: long units in pieces, chunks in two passes.

Both add what `privacy.dp.clipping.add_clipped_gradients` adds, and cost time for memory: a unit in
pieces needs one more gradient, and a chunk in two passes keeps no records but runs twice.

Shapes: B sequences, T positions, U privacy units.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from models.language_model import IGNORED, LanguageModel
from models.ops import Slots
from privacy.dp.clipping import (
    BookKeeper,
    Chunk,
    ChunkOutcome,
    ClippingError,
    check,
    recorded_norms,
    trained_parameters,
    unit_losses,
)
from privacy.dp.coefficients import clip_coefficients, largest_coefficient
from privacy.dp.norms import squared_norm
from privacy.dp.plan import Clipping
from privacy.dp.products import is_reduced
from privacy.dp.records import Record, UnitLayout


def add_clipped_unit(
    model: LanguageModel,
    chunk: Chunk,
    clipping_norm: float,
    sums: Mapping[str, Tensor],
    sequences: int,
    *,
    clipping: Clipping = "fixed",
) -> ChunkOutcome:
    """Add the clipped gradient of a chunk's only unit, a few of its sequences at a time.

    The unit's gradient adds up in a buffer of its own, and is clipped when it is whole: its
    sequences clip together, whatever number of them is processed at once.

    Args:
        model, clipping_norm, sums, clipping: as in `add_clipped_gradients`. chunk: of one unit.
        sequences: processed at once, >= 1.

    Raises:
        ClippingError: more than one unit, and as in `add_clipped_gradients`.

    Formal guarantee: that of `add_clipped_gradients`.

    """
    parameters = trained_parameters(model)
    check(parameters, clipping_norm, sums)
    if chunk.layout.units != 1:
        raise ClippingError(f"Expected one unit to cut in pieces, got {chunk.layout.units}.")
    tokens = int((chunk.target_BT != IGNORED).sum())
    buffers = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    nats = torch.zeros((), device=chunk.token_BT.device)
    with gradients_into(parameters, buffers):
        for begin in range(0, len(chunk.token_BT), sequences):
            part = slice(begin, begin + sequences)
            token_BT, target_BT = chunk.token_BT[part], chunk.target_BT[part]
            loss = model.loss(token_BT, target_BT).total_B.sum() / max(tokens, 1)
            loss.backward()  # type: ignore[no-untyped-call]
            nats += loss.detach()
    norm_U = _norm_of(buffers.values())[None]
    coefficient_U = clip_coefficients(norm_U, clipping_norm, clipping, chunk.present_U)
    if bool(torch.isfinite(norm_U)):
        for name, total in sums.items():
            total.add_(buffers[name] * coefficient_U)
    return ChunkOutcome(norm_U, nats[None])


def add_clipped_twice(
    model: LanguageModel,
    chunk: Chunk,
    clipping_norm: float,
    sums: Mapping[str, Tensor],
    *,
    clipping: Clipping = "fixed",
) -> ChunkOutcome:
    """Add the clipped gradients of a chunk's units in two passes, and keep nothing in between.

    The first finds the units' norms, the second weights their losses by the coefficients and lets
    autograd add up, which is what an unprotected step holds; automatic clipping, which may enlarge
    gradients, needs one more gradient.

    Args:
        model, chunk, clipping_norm, sums, clipping: as in `add_clipped_gradients`.

    Raises:
        ClippingError: bf16 activations, whose gradients autograd would round; and as in
            `add_clipped_gradients`.

    Formal guarantee: that of `add_clipped_gradients`.

    Source: Li et al. 2021 (arXiv 2110.05679), Lee & Kifer 2020 (arXiv 2009.03106).

    """
    parameters = trained_parameters(model)
    check(parameters, clipping_norm, sums)
    keeper = _NormKeeper(chunk.layout, _shared_weights(model))
    norm_U, loss_U = recorded_norms(keeper, model, chunk)
    coefficient_U = clip_coefficients(norm_U, clipping_norm, clipping, chunk.present_U)
    finite_U = torch.isfinite(norm_U)
    if not bool(finite_U.any()):
        return ChunkOutcome(norm_U, loss_U)
    # Weights of at most 1: what was finite in the first pass does not overflow in the second.
    scale = max(1.0, largest_coefficient(clipping_norm, clipping))
    totals = sums if scale == 1 else {n: torch.zeros_like(total) for n, total in sums.items()}
    with gradients_into(parameters, totals):
        again_U = unit_losses(model, _replaced(chunk, finite_U))
        (again_U * (coefficient_U / scale)).sum().backward()  # type: ignore[no-untyped-call]
    if totals is not sums:
        for name, total in sums.items():
            total.add_(totals[name], alpha=scale)
    return ChunkOutcome(norm_U, loss_U)


class _NormKeeper(BookKeeper):
    """Lets go of what every record holds as soon as its norm is known.

    A shared table's first use waits for the second: what the two add to the norm needs both.
    """

    def __init__(self, layout: UnitLayout, shared: frozenset[int]) -> None:
        super().__init__(layout)
        self._shared = shared
        self._squared_U = layout.zeros()

    def norms(self) -> Tensor:
        return (self._squared_U + super().norms().square()).sqrt()

    def linear(self, weight_OI: Tensor, x_BTI: Tensor, grad_BTO: Tensor) -> None:
        _check_wide(x_BTI)
        super().linear(weight_OI, x_BTI, grad_BTO)

    def grouped(self, weight_EOI: Tensor, x_MI: Tensor, grad_MO: Tensor, slots: Slots) -> None:
        _check_wide(x_MI)
        super().grouped(weight_EOI, x_MI, grad_MO, slots)

    def _add(self, record: Record) -> None:
        super()._add(record)
        if id(record.weight) not in self._shared:
            self._resolve()
            kept, squared_U = self._records.pop()
            self._squared_U = self._squared_U + squared_U.float() + kept.squared_rounding_U
            # Only that it was used: a second use is refused.
            self._uses[id(record.weight)] = [record.weight]


def _check_wide(x: Tensor) -> None:
    if is_reduced(x):
        raise ClippingError(
            "Expected fp32 activations for clipping in two passes, got bf16, whose sums autograd "
            'would round. Set precision = "fp32" in node.toml, or clip in one pass.'
        )


def _shared_weights(model: LanguageModel) -> frozenset[int]:
    """Ids of the weights that have two names: an embedding tied to the head."""
    seen: set[int] = set()
    shared: set[int] = set()
    for _, parameter in model.named_parameters(remove_duplicate=False):
        (shared if id(parameter) in seen else seen).add(id(parameter))
    return frozenset(shared)


def _replaced(chunk: Chunk, finite_U: Tensor) -> Chunk:
    """The chunk with a finite unit's row in place of every row of the others.

    A coefficient of 0 makes nothing of a finite gradient, but NaN of one that is not.
    """
    finite_B = finite_U[chunk.layout.unit_B]
    row_B = torch.arange(len(finite_B), device=finite_B.device)
    row_B = row_B.where(finite_B, row_B[finite_B][0])
    return replace(chunk, token_BT=chunk.token_BT[row_B], target_BT=chunk.target_BT[row_B])


@contextmanager
def gradients_into(
    parameters: Mapping[str, Tensor], totals: Mapping[str, Tensor]
) -> Iterator[None]:
    """Let autograd add the parameters' gradients to `totals` inside the block."""
    for name, parameter in parameters.items():
        parameter.grad = totals[name]
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.grad = None


def _norm_of(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all of a gradient's tensors together."""
    squares = [squared_norm(gradient.reshape(1, -1, gradient.shape[-1])) for gradient in gradients]
    return torch.cat(squares).double().sum().sqrt().float()
