"""Chunked cross-entropy against torch's, checkpointed blocks, and reduced precision."""

from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from models import cross_entropy
from models.config import ModelConfig
from models.cross_entropy import token_cross_entropy
from models.decoder import Decoder
from models.experts import Activation
from models.language_model import IGNORED
from models.lora import add_lora
from privacy.dp.clipping import Chunk, add_clipped_gradients
from privacy.dp.records import UnitLayout

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=12, max_positions=64, initializer_range=0.3,
)  # fmt: skip


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def chunks_of(tokens: int, vocabulary: int):
    return mock.patch.object(cross_entropy, "CHUNK_BYTES", 4 * vocabulary * tokens)


@pytest.mark.parametrize("tokens", [1, 5, 1000], ids=["ones", "uneven", "whole"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_loss_and_gradients_equal_plain(
    generator: torch.Generator, tokens: int, frozen: bool
) -> None:
    hidden = torch.randn(23, 8, generator=generator, requires_grad=True)
    head = torch.randn(50, 8, generator=generator).requires_grad_(not frozen)
    target = torch.randint(0, 50, (23,), generator=generator)
    target[::4] = IGNORED
    scale = torch.rand(23, generator=generator)
    inputs = [hidden] if frozen else [hidden, head]
    plain = F.cross_entropy(hidden @ head.T, target, ignore_index=IGNORED, reduction="none")
    with chunks_of(tokens, 50):
        ours = token_cross_entropy(hidden, head, target, IGNORED)
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
        grads = [
            torch.autograd.grad((loss * scale).sum(), inputs, retain_graph=True)
            for loss in (plain, ours, ours)
        ]
    for expected, first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(first, second)


def test_large_logits_stay_finite(generator: torch.Generator) -> None:
    hidden = (100 * torch.randn(9, 8, generator=generator)).requires_grad_()
    head = 100 * torch.randn(50, 8, generator=generator)
    target = torch.randint(0, 50, (9,), generator=generator)
    loss = token_cross_entropy(hidden, head, target, IGNORED)
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ head.T, target, reduction="none"))
    assert torch.isfinite(torch.autograd.grad(loss.sum(), hidden)[0]).all()


def test_one_bad_token_spoils_no_other(generator: torch.Generator) -> None:
    hidden = torch.randn(6, 8, generator=generator)
    hidden[2] = float("nan")
    head = torch.randn(50, 8, generator=generator)
    loss = token_cross_entropy(hidden, head, torch.arange(6), IGNORED)
    assert torch.isfinite(loss).tolist() == [True, True, False, True, True, True]


@pytest.mark.parametrize("activation", [Activation(), Activation(2, 0.5)])
def test_checkpointed_blocks_change_nothing(
    generator: torch.Generator, activation: Activation
) -> None:
    model = Decoder(CONFIG, generator)
    token = torch.randint(0, 97, (3, 11), generator=generator)
    found = []
    for model.checkpoint_blocks in (False, True):
        loss = model.loss(token[:, :-1], token[:, 1:], balance=0.1, activation=activation)
        total = loss.total_B.sum() + loss.router_B.sum()
        found.append([total, *torch.autograd.grad(total, list(model.parameters()))])
    for plain, checkpointed in zip(*found, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("lora", [False, True])
def test_checkpointed_blocks_clip_the_same(generator: torch.Generator, lora: bool) -> None:
    model = Decoder(CONFIG, generator)
    if lora:
        _adapters(model, generator)
    chunk = _chunk(generator)
    found = []
    for model.checkpoint_blocks in (False, True):
        sums = _accumulators(model)
        norm_U = add_clipped_gradients(model, chunk, 0.5, sums).norm_U
        found.append([norm_U, *sums.values()])
    for plain, checkpointed in zip(*found, strict=True):
        assert torch.equal(plain, checkpointed)


def test_fp32_adapters_on_bf16_weights_clip_near_fp32(generator: torch.Generator) -> None:
    """Norms of what is really summed: the bound holds whatever bf16 did to the gradients."""
    model = Decoder(CONFIG, generator)
    _adapters(model, generator)
    chunk, exact = _chunk(generator), _accumulators(model)
    expected = add_clipped_gradients(model, chunk, 1e9, exact).norm_U
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    rough = _accumulators(model)
    norm_U = add_clipped_gradients(model, chunk, 1e9, rough).norm_U
    torch.testing.assert_close(norm_U, expected, rtol=0.1, atol=0)
    one = Chunk(chunk.token_BT[:1], chunk.target_BT[:1],
                UnitLayout(torch.zeros(1, dtype=torch.int64), 1), chunk.present_U[:1])  # fmt: skip
    clipped = _accumulators(model)
    add_clipped_gradients(model, one, float(norm_U[0]) / 2, clipped)
    size = torch.cat([total.flatten() for total in clipped.values()]).double().norm()
    assert float(size) == pytest.approx(float(norm_U[0]) / 2, rel=1e-3)


def _adapters(model: Decoder, generator: torch.Generator) -> None:
    add_lora(model, 4, 8.0, generator)
    for name, parameter in model.named_parameters():
        if name.endswith("lora_B"):
            parameter.data.normal_(0, 0.1, generator=generator)


def _accumulators(model: Decoder) -> dict[str, torch.Tensor]:
    return {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}


def _chunk(generator: torch.Generator) -> Chunk:
    token = torch.randint(0, 97, (3, 11), generator=generator)
    layout = UnitLayout(torch.arange(3), 3)
    return Chunk(token[:, :-1], token[:, 1:], layout, torch.ones(3, dtype=torch.bool))
