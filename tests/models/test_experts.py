"""The sparse layer: dispatch and SwiGLU against plain autograd, dynamic activation, owned banks."""

import pytest
import torch
from torch.nn import functional as F

from models import ops
from models.config import ModelConfig
from models.decoder import Decoder, router_loss
from models.dispatch import combine, gather, make_dispatch, swiglu
from models.experts import Activation, ExpertBank, SparseExperts

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=5,
    experts_per_token=3, expert_hidden_size=12, max_positions=64, initializer_range=0.5,
)  # fmt: skip


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def layer_of(generator: torch.Generator, owned: int = 0) -> SparseExperts:
    layer = SparseExperts(CONFIG).double()
    if owned:
        layer.owned = ExpertBank(CONFIG.hidden_size, CONFIG.expert_hidden_size, owned).double()
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    return layer


def brute_force(layer: SparseExperts, x_BTD: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Every expert on every token, summed with the weights of the definition."""
    banks = [layer] if layer.owned is None else [layer, layer.owned]
    logits = torch.cat([x_BTD @ bank.router.weight.T for bank in banks], -1).float()
    chosen = logits.topk(activation.experts_per_token or layer.per_token).indices
    left_out = torch.ones_like(logits).scatter(-1, chosen, 0.0).bool()
    full = logits.masked_fill(left_out, float("-inf")).softmax(-1)
    full = torch.where(full >= activation.threshold * full.amax(-1, keepdim=True), full, 0.0)
    full = (full / full.sum(-1, keepdim=True)).double()
    outputs = []
    for bank in banks:
        for gate_up, down in zip(bank.gate_up.weight, bank.down.weight, strict=True):
            gate, up = (x_BTD @ gate_up.T).chunk(2, -1)
            outputs.append((F.silu(gate) * up) @ down.T)
    return (torch.stack(outputs, -1) * full[..., None, :]).sum(-1)


@pytest.mark.parametrize("owned", [0, 2])
@pytest.mark.parametrize("activation", [Activation(), Activation(2, 0.6), Activation(4, 1.0)])
def test_layer_equals_every_expert_on_every_token(
    generator: torch.Generator, owned: int, activation: Activation
) -> None:
    layer = layer_of(generator, owned)
    x = torch.randn(3, 7, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    up = torch.randn(3, 7, 16, generator=generator, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    expected = brute_force(layer, x, activation)
    found = layer(x, activation)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    grads = (torch.autograd.grad((y * up).sum(), inputs) for y in (expected, found))
    for wanted, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=3e-5)  # routing is in fp32


@pytest.mark.parametrize("owned", [0, 2])
@pytest.mark.parametrize("activation", [Activation(), Activation(2, 0.6), Activation(4, 1.0)])
def test_a_token_by_itself_equals_every_expert_on_it(
    generator: torch.Generator, owned: int, activation: Activation
) -> None:
    layer = layer_of(generator, owned)
    for x in torch.randn(9, 1, 1, 16, generator=generator, dtype=torch.float64):
        with torch.no_grad():
            found = layer(x, activation)[0]
        expected = brute_force(layer, x, activation).detach()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_weightless_operations_have_right_gradients(generator: torch.Generator) -> None:
    expert_NK = torch.randint(0, 4, (300, 2), generator=generator)
    kept_NK = torch.rand(300, 2, generator=generator) < 0.7
    for kept in (None, kept_NK):
        dispatch = make_dispatch(expert_NK, kept, 4, 300)
        slots = len(dispatch.rank_M)
        x = torch.randn(300, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        weight = torch.rand(slots, generator=generator, dtype=torch.float64, requires_grad=True)

        def through(x: torch.Tensor, weight: torch.Tensor, dispatch=dispatch) -> torch.Tensor:
            return combine(gather(x, dispatch).square(), weight, dispatch).sum(0)

        assert torch.autograd.gradcheck(through, (x, weight))
    gate_up = torch.randn(300, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: swiglu(t).sum(0), (gate_up,))
    gate, up = gate_up.chunk(2, -1)
    torch.testing.assert_close(swiglu(gate_up), F.silu(gate) * up)


def test_a_dropped_slot_costs_nothing(generator: torch.Generator) -> None:
    expert_NK = torch.tensor([[0, 1], [1, 2], [2, 0]])
    kept_NK = torch.tensor([[True, False], [True, True], [True, False]])
    slots = make_dispatch(expert_NK, kept_NK, 4, 3).slots
    assert slots.offsets == (0, 1, 2, 4, 4)
    assert slots.token_M.tolist() == [0, 1, 1, 2]


def test_slots_split_between_banks() -> None:
    first, second = ops.Slots.of((0, 2, 2, 5), torch.arange(5), 5).split(1)
    assert (first.offsets, first.token_M.tolist()) == ((0, 2), [0, 1])
    assert (second.offsets, second.token_M.tolist()) == ((0, 0, 3), [2, 3, 4])


def test_grouped_kernel_formulation_equals_the_loop(generator: torch.Generator) -> None:
    """The call made on a GPU, checked where torch has a CPU kernel for it."""
    slots = ops.Slots.of((0, 3, 3, 8), torch.arange(8), 8)
    weight = torch.randn(3, 16, 8, generator=generator)
    x = torch.randn(8, 8, generator=generator)
    expected = ops.grouped_linear(x, weight, slots)
    found = F.grouped_mm(x, weight.mT, offs=slots.ends_E)
    torch.testing.assert_close(found, expected)
    grad = torch.randn(8, 16, generator=generator)
    torch.testing.assert_close(
        F.grouped_mm(grad.T, x, offs=slots.ends_E), ops._grouped_outer(x, grad, slots)
    )


def test_activation_is_chosen_per_call(generator: torch.Generator) -> None:
    model = Decoder(CONFIG, generator)
    token = torch.randint(0, 97, (2, 9), generator=generator)
    usual = model(token)
    assert torch.equal(model(token, Activation(3)), usual)
    assert torch.equal(model(token, Activation(threshold=1e-9)), usual)
    means = [
        torch.stack([r.active() for r in model.hidden(token, Activation(3, tau))[1]]).mean()
        for tau in (0.0, 0.3, 0.7, 1.0)
    ]
    assert means == sorted(means, reverse=True)
    assert (means[0], means[-1]) == (3.0, 1.0)
    torch.testing.assert_close(model(token, Activation(3, 1.0)), model(token, Activation(1)))
    assert torch.equal(model(token), usual)


def test_more_experts_than_there_are_means_all(generator: torch.Generator) -> None:
    model = Decoder(CONFIG, generator)
    token = torch.randint(0, 97, (1, 4), generator=generator)
    assert torch.equal(model(token, Activation(50)), model(token, Activation(5)))


@pytest.mark.parametrize("activation", [Activation(), Activation(3, 0.5)])
def test_router_loss_is_least_when_balanced(
    generator: torch.Generator, activation: Activation
) -> None:
    layer = layer_of(generator)
    x = torch.randn(2, 6, 16, generator=generator, dtype=torch.float64)
    routing = layer.route(x, activation)
    share = routing.logits_BTE.softmax(-1)
    used = routing.spread(routing.used())
    load = (used / used.sum(-1, keepdim=True)).mean(1) * 5
    torch.testing.assert_close(router_loss(routing, 1.0, 0.0), (load * share.mean(1)).sum(-1))
    layer.router.weight.data.zero_()
    even = layer.route(x, Activation(5))
    torch.testing.assert_close(router_loss(even, 1.0, 0.0), torch.ones(2))


@pytest.mark.parametrize(("k", "threshold"), [(0, 0.0), (None, -0.1), (None, 1.5)])
def test_impossible_activations_are_refused(k: int | None, threshold: float) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Activation(k, threshold)
