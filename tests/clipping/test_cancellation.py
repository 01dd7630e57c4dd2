"""A model built so that the terms of a unit's norm cancel: float32 would lose what is left."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.ops import Slots, embedding, grouped_linear, linear, recording, rms_norm
from privacy.dp.clipping import (
    BookKeeper,
    Chunk,
    ChunkOutcome,
    ClippingError,
    _cross_term,
    add_clipped_gradients,
)
from privacy.dp.passes import _NormKeeper, add_clipped_twice
from privacy.dp.records import EmbeddingRecord, LinearRecord, UnitLayout

WIDTH, POSITIONS = 64, 16
ALONE = UnitLayout(torch.tensor([0]), 1)
_NONE: frozenset[int] = frozenset()
# Activations of 2^14 and output gradients that alternate in sign; what is left is 1e-5 of one.
X = torch.zeros(1, POSITIONS, WIDTH).index_fill_(2, torch.tensor([0]), 2.0**14)
SIGN = torch.tensor([1.0, -1.0]).repeat(POSITIONS // 2)
GRAD = torch.zeros(1, POSITIONS, WIDTH)
GRAD[0, :, 1] = SIGN * 0.5 * (1 + 1e-5 * (SIGN > 0))


def weight_of(*shape: int) -> Tensor:
    return torch.zeros(shape, requires_grad=True)


def through_linear(keeper: BookKeeper) -> float:
    keeper.linear(weight_of(WIDTH, WIDTH), X, GRAD)
    return float((GRAD[0].double().T @ X[0].double()).norm())


def through_experts(keeper: BookKeeper) -> float:
    slots = Slots.of((0, POSITIONS, POSITIONS), torch.arange(POSITIONS), POSITIONS)
    keeper.grouped(weight_of(2, WIDTH, WIDTH), X[0], GRAD[0], slots)
    return float((GRAD[0].double().T @ X[0].double()).norm())


def through_embedding(keeper: BookKeeper) -> float:
    grad = 2.0**14 * GRAD
    keeper.embedding(weight_of(4, WIDTH), torch.ones(1, POSITIONS, dtype=torch.int64), grad)
    return float(grad[0].double().sum(0).norm())


def through_a_tied_table(keeper: BookKeeper) -> float:
    """Head and embedding cancel each other: the head's gradient row is minus the embedding's."""
    weight = weight_of(WIDTH, WIDTH)
    token = torch.arange(POSITIONS)[None]
    head_grad = torch.eye(WIDTH)[None, :POSITIONS]
    x = torch.zeros(1, POSITIONS, WIDTH).index_fill_(2, torch.tensor([0]), 2.0**14)
    keeper.linear(weight, x, head_grad)
    keeper.embedding(weight, token, -x * (1 + 2.0**-20))
    return float((x * (1 + 2.0**-20) - x).double().norm())


@pytest.mark.parametrize(
    "record", [through_linear, through_experts, through_embedding, through_a_tied_table]
)
def test_no_norm_comes_out_too_small(record: Callable[[BookKeeper], float]) -> None:
    keeper = BookKeeper(ALONE)
    true_norm = record(keeper)
    assert true_norm > 0.01
    assert float(keeper.norms()) >= 0.999 * true_norm


@pytest.mark.parametrize("record", [through_linear, through_experts, through_embedding])
def test_nor_where_records_are_let_go_of(record: Callable[[BookKeeper], float]) -> None:
    keeper = _NormKeeper(ALONE, _NONE)
    assert record(keeper) <= float(keeper.norms()) / 0.999


@pytest.mark.parametrize("add", [add_clipped_gradients, add_clipped_twice])
@pytest.mark.parametrize("share", [0.0, 1e-5, 2e-5, 5e-5, 1e-4])
def test_a_model_built_to_hide_a_units_norm_gains_nothing(
    share: float, add: Callable[..., ChunkOutcome]
) -> None:
    """Tokens 2 and 3 follow token 1 in turn, and the head gives them almost equal chances."""
    config = ModelConfig(
        vocab_size=WIDTH, hidden_size=WIDTH, layers=1, heads=2, kv_heads=1, head_dim=8, experts=2,
        experts_per_token=1, expert_hidden_size=8, tie_embeddings=False, max_positions=32,
    )  # fmt: skip
    model = Decoder(config, torch.Generator().manual_seed(0)).requires_grad_(False)
    block, scale = model.blocks[0], 2.0**14
    for silenced in (block.attention.out.weight, block.experts.down.weight):
        silenced.zero_()
    model.embedding.zero_()
    model.embedding[(1, 2, 3), (0, 1, 1)] = 1.0
    model.norm.weight.fill_(scale)
    logit = 100 / (8 * scale)
    model.head.zero_()
    model.head[(2, 3, 1), (0, 0, 1)] = logit
    model.head[2, 0] += 4 * share / (8 * scale)
    model.head.requires_grad_(True)
    token = torch.tensor([[1, 2, 1, 3] * 4 + [1]])
    chunk = Chunk(token[:, :-1], token[:, 1:], ALONE, torch.tensor([True]))
    sums = {"head": torch.zeros(WIDTH, WIDTH)}
    add(model, chunk, 1.0, sums)
    assert float(sums["head"].norm()) <= 1.001


@pytest.mark.parametrize("size", [2e-23, 4e-23, 1e-22])
@pytest.mark.parametrize("keeper_class", [BookKeeper, lambda layout: _NormKeeper(layout, _NONE)])
def test_a_norm_whose_products_vanish_is_not_too_small(
    size: float, keeper_class: Callable[[UnitLayout], BookKeeper]
) -> None:
    """Huge activations under tiny gradients: g . g is below the least fp32 number, |g| |x| not."""
    x, grad = torch.full((1, 64, 512), 1e17), torch.full((1, 64, 512), size)
    linears, experts = keeper_class(ALONE), keeper_class(ALONE)
    linears.linear(weight_of(512, 512), x, grad)
    experts.grouped(weight_of(1, 512, 512), x[0], grad[0], Slots.of((0, 64), torch.arange(64), 64))
    true_norm = float((grad[0].double().T @ x[0].double()).norm())
    assert true_norm > 0.05
    assert float(linears.norms()) >= true_norm
    assert float(experts.norms()) >= true_norm


def test_a_weight_that_is_used_twice_is_refused() -> None:
    """Whatever the operation: the two uses' gradients add up before the norm."""
    slots = Slots.of((0, 4), torch.arange(4), 4)
    uses: dict[Callable[[Tensor], Tensor], Tensor] = {
        lambda w: linear(torch.ones(1, 4, 8), w): weight_of(8, 8),
        lambda w: grouped_linear(torch.ones(4, 8), w, slots): weight_of(1, 8, 8),
        lambda w: rms_norm(torch.ones(1, 4, 8), w, 1e-6): weight_of(8),
        lambda w: embedding(torch.ones(1, 4, dtype=torch.int64), w): weight_of(8, 8),
    }
    for use, weight in uses.items():
        with recording(BookKeeper(ALONE)), pytest.raises(ClippingError, match="used once"):
            (use(weight).sum() + use(weight).sum()).backward()


def test_a_gradient_that_cancels_altogether_adds_no_more_than_its_clip() -> None:
    """Nothing is left in float64, yet what rounds in the weighted sum is not nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, WIDTH, generator=generator).repeat(1, 2, 1)
    grad = torch.randn(1, 4, WIDTH, generator=generator)
    weight = weight_of(WIDTH, WIDTH)
    keeper = BookKeeper(ALONE)
    keeper.linear(weight, x, torch.cat((grad, -grad), 1))
    norm_U, total = keeper.norms(), torch.zeros(WIDTH, WIDTH)
    keeper.add_weighted(norm_U, 1e-3 / norm_U, {id(weight): total})
    assert 0 < float(total.norm()) <= 1.001e-3


def test_where_a_tied_tables_term_cannot_be_resolved_a_bound_stands_for_it() -> None:
    """The head's own norm cancels, so the cross term with the embedding is not to be trusted."""
    weight, token = weight_of(WIDTH, WIDTH), torch.ones(1, POSITIONS, dtype=torch.int64)
    x = 1.1 * X
    lookup = torch.zeros(1, POSITIONS, WIDTH)
    lookup[0, :, 0] = 0.0417
    keeper = BookKeeper(ALONE)
    keeper.linear(weight, x, GRAD)
    keeper.embedding(weight, token, lookup)
    together = GRAD[0].double().T @ x[0].double()
    together[1] += lookup[0].double().sum(0)
    assert float(keeper.norms()) >= 0.9999 * float(together.norm())
    head, table = (record for record, _ in keeper._records)
    assert isinstance(head, LinearRecord)
    assert isinstance(table, EmbeddingRecord)
    assert bool(head.cancelled_U.all())
    bound_U = _cross_term(head, table, torch.tensor([4.0]), torch.tensor([9.0]))
    assert float(bound_U) == 2 * 2 * 3
