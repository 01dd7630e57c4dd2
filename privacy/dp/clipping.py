"""Exact per-unit clipping by book-keeping: one forward, one backward, no per-unit gradients.

Source: Bu et al. 2022, "Differentially Private Optimization on Large Model at Small Cost"
(arXiv 2210.00038); clipping of Abadi et al. 2016 (arXiv 1607.00133).

Shapes: B sequences, T positions, U privacy units, V/D/I/O/E/M as in privacy.dp.records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.language_model import LanguageModel
from models.ops import Slots, recording
from privacy.dp.coefficients import clip_coefficients
from privacy.dp.grouped_records import GroupedRecord, Segments
from privacy.dp.plan import SMALLEST_CLIPPING_NORM, Clipping
from privacy.dp.products import are_exact
from privacy.dp.records import (
    EmbeddingRecord,
    LinearRecord,
    Record,
    ScaleRecord,
    UnitLayout,
    tied_cross_term,
)

# The most that the two uses of a tied table are believed to cancel, as a share of their squares.
_MOST_CANCELLED = -0.9


class ClippingError(ValueError):
    """The gradients of a chunk cannot be clipped exactly; nothing may be released."""


@dataclass(frozen=True)
class Chunk:
    """A physical chunk: sequences of whole privacy units.

    Attributes:
        token_BT, target_BT: int64 inputs and next tokens (models.language_model.IGNORED = no loss).
        layout: the unit of every sequence.
        present_U: False for padding units, whose contribution is zero.

    """

    token_BT: Tensor
    target_BT: Tensor
    layout: UnitLayout
    present_U: Tensor


@dataclass(frozen=True)
class ChunkOutcome:
    """What stays at the node: norms and losses of the chunk's units, both [U]."""

    norm_U: Tensor
    loss_U: Tensor


class BookKeeper:
    """The recorder that models.ops calls during backward."""

    def __init__(self, layout: UnitLayout) -> None:
        self._layout = layout
        self._segments: dict[int, Segments] = {}
        self._records: list[tuple[Record, Tensor]] = []
        self._uses: dict[int, list[object]] = {}

    def linear(self, weight_OI: Tensor, x_BTI: Tensor, grad_BTO: Tensor) -> None:
        if x_BTI.dim() != 3 or len(x_BTI) != len(self._layout.unit_B):
            raise ClippingError(
                f"Expected one row of activations per sequence, got shape {tuple(x_BTI.shape)}: "
                "norms per unit would be wrong. Freeze the layer."
            )
        self._add(LinearRecord(weight_OI, x_BTI, grad_BTO, self._layout))

    def grouped(self, weight_EOI: Tensor, x_MI: Tensor, grad_MO: Tensor, slots: Slots) -> None:
        segments = self._segments.get(id(slots))
        if segments is None:
            segments = self._segments[id(slots)] = Segments(slots, self._layout)
        self._add(GroupedRecord(weight_EOI, x_MI, grad_MO, segments))

    def scale(self, weight_D: Tensor, x: Tensor, grad: Tensor) -> None:
        self._add(ScaleRecord(weight_D, x, grad, self._layout))

    def embedding(self, weight_VD: Tensor, token_BT: Tensor, grad_BTD: Tensor) -> None:
        self._add(EmbeddingRecord(weight_VD, token_BT, grad_BTD, self._layout))

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Gradient norm of each unit over all recorded weights, [U].

        The most that it can be: with bf16 activations once scaled rows were rounded, and with what
        vanished below the least number.
        """
        squared_U = rounding_U = self._layout.zeros()
        self._resolve()
        for record, own_U in self._records:
            squared_U = squared_U + own_U.float()
            rounding_U = rounding_U + record.squared_rounding_U
        squared_U = squared_U + self._cross_terms()
        return squared_U.clamp(min=0.0).sqrt() + rounding_U.sqrt()

    @torch.no_grad()
    def add_weighted(
        self, norm_U: Tensor, coefficient_U: Tensor, sums: Mapping[int, Tensor]
    ) -> None:
        """Add sum_u coefficient_u grad_u to `sums`, keyed by the weight's id; frees the records."""
        self._uses.clear()
        bad_U = ~torch.isfinite(norm_U)
        is_bad = bool(bad_U.any())
        while self._records:
            record, _ = self._records.pop()
            if is_bad:
                record.discard(bad_U)
            record.add_weighted(coefficient_U, sums[id(record.weight)])

    def _add(self, record: Record) -> None:
        uses = self._uses.setdefault(id(record.weight), [])
        uses.append(record)
        if len(uses) > 1 and _tied(uses) is None:
            raise ClippingError(
                "Expected every weight to be used once, or as a tied embedding and head; got a "
                "weight used twice in another way. Its norm would be wrong: untie it or freeze it."
            )
        self._records.append((record, record.squared_norms()))

    def _resolve(self) -> None:
        """Compute norms again whose terms cancelled; on a GPU all records are waited for once."""
        if not self._records:
            return
        flags = torch.stack([record.cancelled_U.any() for record, _ in self._records]).tolist()
        self._records = [
            (record, record.resolved(own_U) if flag else own_U)
            for flag, (record, own_U) in zip(flags, self._records, strict=True)
        ]

    def _cross_terms(self) -> Tensor:
        """What the two uses of a tied table add to the squared norm, [U]."""
        squared = {id(record): own_U for record, own_U in self._records}
        total_U = self._layout.zeros()
        for pair in filter(None, map(_tied, self._uses.values())):
            total_U = total_U + _cross_term(*pair, *(squared[id(record)] for record in pair))
        return total_U


def _tied(uses: Sequence[object]) -> tuple[LinearRecord, EmbeddingRecord] | None:
    """Return the two uses of a tied table; backward meets the head's first."""
    if len(uses) == 2:
        head, embedding = uses
        if isinstance(head, LinearRecord) and isinstance(embedding, EmbeddingRecord):
            return head, embedding
    return None


def _cross_term(
    head: LinearRecord, embedding: EmbeddingRecord, head_squared_U: Tensor, squared_U: Tensor
) -> Tensor:
    # Where float32 cannot resolve the term, a bound on it: no norm may come out too small.
    largest_U = 2 * (squared_U * head_squared_U).sqrt()
    cross_U = tied_cross_term(embedding, head).float()
    cross_U = cross_U.where(~(head.cancelled_U | embedding.cancelled_U), largest_U)
    return torch.maximum(cross_U, _MOST_CANCELLED * (squared_U + head_squared_U))


def add_clipped_gradients(
    model: LanguageModel,
    chunk: Chunk,
    clipping_norm: float,
    sums: Mapping[str, Tensor],
    weights: Mapping[int, str] | None = None,
    *,
    clipping: Clipping = "fixed",
) -> ChunkOutcome:
    """Add the clipped gradients of a chunk's units to `sums`.

    The unit's loss is the mean cross-entropy over its own tokens. A unit whose gradient is not
    finite contributes zero: refusing would tell something about the data.

    Args:
        model: its trainable parameters (requires_grad) are the released ones.
        chunk: whole units; padding units have present_U False.
        clipping_norm: C >= 1e-9, in gradient norm units.
        sums: one accumulator per trainable parameter name, changed in place.
        weights: names by id of the weights that operations see, where those are not the model's
            parameters themselves (a sharded model gathers them, `models.parallel.shard`).
        clipping: the rule, see `privacy.dp.coefficients`.

    Returns:
        Norms before clipping and losses, for the node's own eyes.

    Raises:
        ClippingError: a trainable weight escapes the recorded operations, or is not fp32/fp64; or
            torch is set to multiply fp32 in less.

    Formal guarantee: adding or removing one unit changes the sums by at most
    1.001 * clipping_norm in Euclidean norm (fp32 summation errors included,
    tests/clipping/test_sensitivity.py). Norms within 1e-6 of brute force
    (tests/clipping/test_norms.py).

    """
    parameters = trained_parameters(model)
    check(parameters, clipping_norm, sums)
    keeper = BookKeeper(chunk.layout)
    norm_U, loss_U = recorded_norms(keeper, model, chunk)
    coefficient_U = clip_coefficients(norm_U, clipping_norm, clipping, chunk.present_U)
    names = {id(p): n for n, p in parameters.items()} if weights is None else weights
    by_id = {key: sums[name] for key, name in names.items() if name in sums}
    keeper.add_weighted(norm_U, coefficient_U, by_id)
    return ChunkOutcome(norm_U, loss_U)


def trained_parameters(model: LanguageModel) -> dict[str, Tensor]:
    """The released parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def recorded_norms(keeper: BookKeeper, model: LanguageModel, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Run a chunk forwards and backwards under a keeper's eyes.

    Returns:
        Norms of the units' gradients, and the units' losses, both [U].

    Raises:
        ClippingError: a trainable weight escapes the recorded operations.

    """
    with recording(keeper):
        loss_U = unit_losses(model, chunk)
        loss_U.sum().backward()  # type: ignore[no-untyped-call]
    check_nothing_escaped(trained_parameters(model))
    return keeper.norms(), loss_U.detach()


def unit_losses(model: LanguageModel, chunk: Chunk) -> Tensor:
    """Mean cross-entropy over each unit's own tokens, in nats, [U]."""
    loss = model.loss(chunk.token_BT, chunk.target_BT)
    add_rows = chunk.layout.add_rows
    total_U = add_rows(loss.total_B[:, None]).squeeze(1)
    tokens_U = add_rows(loss.tokens_B[:, None]).squeeze(1)
    return total_U / tokens_U.clamp(min=1)


def check(
    parameters: Mapping[str, Tensor], clipping_norm: float, sums: Mapping[str, Tensor]
) -> None:
    """Raise ClippingError where exact clipping is not to be had."""
    if not clipping_norm >= SMALLEST_CLIPPING_NORM:
        raise ClippingError(
            f"Expected clipping_norm >= {SMALLEST_CLIPPING_NORM:g}, got {clipping_norm}. Raise it: "
            "below, the squares of gradients that exceed it may vanish."
        )
    if not are_exact():
        raise ClippingError(
            "Expected fp32 products in fp32, got torch set to round their operands: norms and sums "
            'would differ. Call torch.set_float32_matmul_precision("highest").'
        )
    if set(parameters) != set(sums):
        odd = sorted(set(parameters) ^ set(sums))
        raise ClippingError(f"Expected one accumulator per trainable parameter, differing: {odd}.")
    for name, parameter in parameters.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ClippingError(
                f"Expected fp32 or fp64 trainable weights, got {parameter.dtype} for {name}: "
                "reduced precision may exceed the clipping norm. Load the model in fp32."
            )


def check_nothing_escaped(parameters: Mapping[str, Tensor]) -> None:
    """Raise ClippingError if autograd gave a parameter a gradient of its own."""
    escaped = [name for name, parameter in parameters.items() if parameter.grad is not None]
    if escaped:
        for parameter in parameters.values():
            parameter.grad = None
        raise ClippingError(
            f"Expected all weight gradients to pass models.ops, got autograd gradients for "
            f"{escaped}. Use models.ops in that layer or freeze it."
        )
