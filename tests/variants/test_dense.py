"""A dense student before any training: joined experts and left-out layers, by brute force."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.decoder import Block, Decoder
from models.experts import ALL_EXPERTS
from models.language_model import IGNORED
from models.tokenizer import Row, stack_rows
from models.variants.dense import block_influence, dense_student, join, most_influential
from models.variants.extras import VariantError
from tests.variants.models import TEXTS, decoder, tokenizer

MODEL = decoder("qwen3moe", layers=3, experts=5)
ROWS = [row for rows in tokenizer().rows(TEXTS, 30, None) for row in rows]
TOKENS = torch.randint(0, 330, (3, 20), generator=torch.Generator().manual_seed(5))


def blocks(model: Decoder) -> Iterator[Block]:
    for block in model.blocks:
        assert isinstance(block, Block)
        yield block


def test_a_joined_expert_is_the_weighted_sum_of_its_parts() -> None:
    model = decoder("qwen3moe", experts=5).double()
    bank = next(blocks(model)).experts
    share = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    weights = join(bank, (0, 2, 4), share)
    x = torch.randn(7, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gate, up = (x @ weights["gate_up.weight"][0].T).chunk(2, -1)
    found = (F.silu(gate) * up) @ weights["down.weight"][0].T
    with torch.no_grad():
        expected = sum(
            part * bank.apply_one(x, expert)
            for part, expert in zip(share.tolist(), (0, 2, 4), strict=True)
        )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_student_of_every_expert_with_equal_routing_is_the_model() -> None:
    """Routers of zeros give each expert the same weight: the mixture is the mean, exactly."""
    model = decoder("qwen3moe", experts=4, experts_per_token=4)
    for block in blocks(model):
        block.experts.router.weight.data.zero_()
    everyone = ((0, 1, 2, 3),) * 2
    student = dense_student(model, (0, 1), everyone, torch.full((2, 4), 9.0).double())
    assert (student.config.experts, student.config.expert_hidden_size) == (1, 4 * 96)
    assert student.config.layers == 2
    with torch.no_grad():
        found, expected = student.double()(TOKENS), model.double()(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_shares_are_those_of_the_mass_in_the_layer_that_is_kept() -> None:
    mass = torch.arange(15, dtype=torch.float64).view(3, 5)
    student = dense_student(MODEL, (0, 2), ((0, 3), (1, 4)), mass)
    source = list(blocks(MODEL))
    for block, layer, experts in zip(blocks(student), (0, 2), ((0, 3), (1, 4)), strict=True):
        parts = block.experts.down.weight[0].split(96, -1)
        total = sum(float(mass[layer, e]) for e in experts)
        for part, expert in zip(parts, experts, strict=True):
            share = float(mass[layer, expert]) / total
            torch.testing.assert_close(part, share * source[layer].experts.down.weight[expert])
        assert torch.equal(block.attention.qkv.weight, source[layer].attention.qkv.weight)
    assert torch.equal(student.embedding, MODEL.embedding)


def test_experts_that_no_token_chose_share_alike() -> None:
    mass = torch.zeros(3, 5, dtype=torch.float64)
    student = dense_student(MODEL, (1,), ((2, 3),), mass)
    source = list(blocks(MODEL))[1].experts.down.weight
    first, _ = next(blocks(student)).experts.down.weight[0].split(96, -1)
    torch.testing.assert_close(first, 0.5 * source[2])


def brute_force(rows: list[Row]) -> list[float]:
    """Each layer's input and output by running the blocks one by one, row by row."""
    found: list[list[Tensor]] = [[] for _ in MODEL.blocks]
    with torch.no_grad():
        for row in rows:
            token_BT, target_BT = stack_rows([row], len(row.ids) - 1)
            x = MODEL.embedding[token_BT]
            for layer, block in enumerate(blocks(MODEL)):
                y, _ = block(x, MODEL.rotary, ALL_EXPERTS)
                for t in (target_BT[0] != IGNORED).nonzero()[:, 0]:
                    a, b = x[0, t].double(), y[0, t].double()
                    found[layer].append(a @ b / (a.norm() * b.norm()))
                x = y
    return [1 - float(torch.stack(cosines).mean()) for cosines in found]


def test_block_influence_by_brute_force() -> None:
    rows = [Row(ROWS[0].ids, 0, context=4), *ROWS[1:4]]  # context and padding do not count
    influence = block_influence(MODEL, rows)
    assert influence.tolist() == pytest.approx(brute_force(rows), rel=1e-5)
    order = sorted(range(3), key=lambda layer: -float(influence[layer]))
    assert most_influential(influence, 2) == tuple(sorted(order[:2]))


def test_a_layer_that_does_nothing_goes_first() -> None:
    model = decoder("qwen3moe", layers=3)
    idle = list(blocks(model))[1]
    for weight in (idle.attention.out.weight, idle.experts.down.weight):
        weight.data.zero_()
    influence = block_influence(model, ROWS)
    assert float(influence[1]) == pytest.approx(0.0, abs=1e-12)
    assert most_influential(influence, 2) == (0, 2)


def test_of_equal_layers_the_earlier_stay_and_depths_are_checked() -> None:
    assert most_influential(torch.tensor([0.5, 0.1, 0.1, 0.1]), 2) == (0, 1)
    for depth in (0, 5):
        with pytest.raises(VariantError, match=f"Expected 1 to 4 layers to keep, got {depth}"):
            most_influential(torch.zeros(4), depth)
