"""Sparse upcycling: the same function before training, different experts after it."""

import pytest
import torch

from models.config import ModelConfig
from models.decoder import Decoder
from models.upcycle import upcycle

DENSE = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=1,
    experts_per_token=1, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
TOKENS = torch.randint(0, 300, (4, 33), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def dense() -> Decoder:
    return Decoder(DENSE, torch.Generator().manual_seed(0))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def stacks(model: Decoder) -> list[torch.Tensor]:
    return [p.data for n, p in model.named_parameters() if ".gate_up." in n or ".down." in n]


@pytest.mark.parametrize(("experts", "per_token"), [(2, 1), (4, 2), (8, 8)])
def test_upcycling_keeps_the_logits(dense: Decoder, experts: int, per_token: int) -> None:
    grown = upcycle(dense, experts, per_token, generator())
    assert (grown.config.experts, grown.config.experts_per_token) == (experts, per_token)
    before = dense(TOKENS)
    assert before.std() > 0.5
    torch.testing.assert_close(grown(TOKENS), before, rtol=0, atol=1e-5)


def test_the_router_sends_tokens_to_every_expert(dense: Decoder) -> None:
    """Else an expert gets no gradient, and stays a copy."""
    for routing in upcycle(dense, 4, 2, generator()).hidden(TOKENS)[1]:
        assert routing.expert_BTK.flatten().bincount(minlength=4).min() > 0


def test_experts_differ_after_a_few_steps(dense: Decoder) -> None:
    grown = upcycle(dense, 4, 2, generator())
    for stack in stacks(grown):
        assert all(torch.equal(expert, stack[0]) for expert in stack)
    optimiser = torch.optim.SGD(grown.parameters(), lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        loss = grown.loss(TOKENS[:, :-1], TOKENS[:, 1:])
        (loss.total_B.sum() / loss.tokens_B.sum()).backward()
        optimiser.step()
    for stack in stacks(grown):
        for first in range(4):
            for second in range(first):
                assert (stack[first] - stack[second]).abs().max() > 1e-4


def test_noise_changes_all_experts_but_the_first_and_the_function(dense: Decoder) -> None:
    grown = upcycle(dense, 4, 2, generator(), noise=0.1)
    for stack, source in zip(stacks(grown), stacks(dense), strict=True):
        assert torch.equal(stack[0], source[0])
        for copy in stack[1:]:
            relative = (copy - source[0]).std() / source.std()
            assert relative == pytest.approx(0.1, rel=0.15)
    assert (grown(TOKENS) - dense(TOKENS)).abs().max() > 1e-2


def test_a_seed_decides_all(dense: Decoder) -> None:
    first, again = (upcycle(dense, 4, 2, generator(), noise=0.1) for _ in range(2))
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("experts", "per_token", "noise", "text"),
    [
        (1, 1, 0.0, "2 experts"),
        (4, 5, 0.0, "5"),
        (4, 0, 0.0, "per token"),
        (4, 2, -1.0, "noise"),
        (4, 2, float("nan"), "noise"),
    ],
)
def test_numbers_out_of_range_are_refused(
    dense: Decoder, experts: int, per_token: int, noise: float, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        upcycle(dense, experts, per_token, generator(), noise=noise)


def test_a_sparse_model_is_not_upcycled(dense: Decoder) -> None:
    with pytest.raises(ValueError, match="dense"):
        upcycle(upcycle(dense, 2, 1, generator()), 4, 2, generator())
