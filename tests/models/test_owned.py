"""Owned experts: what is trainable, what is released, where the rows point."""

from pathlib import Path

import pytest
import torch

from models.checkpoint import CheckpointError, save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.language_model import IGNORED
from models.lora import add_lora
from models.owned import (
    OwnedError,
    banks,
    branch,
    owned_tensors,
    public_inputs,
    router_inputs,
    router_rows,
    sequence_embeddings,
)
from models.tokenizer import Tokenizer
from privacy.dp.clipping import Chunk, add_clipped_gradients, unit_losses
from privacy.dp.records import UnitLayout

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
TOKENS = torch.randint(0, 64, (5, 21), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def model() -> Decoder:
    return Decoder(CONFIG, torch.Generator().manual_seed(1))


def perturbed(model: Decoder, *, train_rows: bool = True) -> Decoder:
    """Branch, and move the bank away from its sources, so that it is used."""
    branch(model, (1, 3), train_rows=train_rows)
    generator = torch.Generator().manual_seed(2)
    for bank in banks(model):
        for weight in (bank.router.weight, bank.gate_up.weight, bank.down.weight):
            weight.data.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def test_exactly_the_bank_is_trainable(model: Decoder) -> None:
    before = {n: p.clone() for n, p in model.named_parameters()}
    branch(model, (1, 3), train_rows=True)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    kinds = ("router", "gate_up", "down")
    assert trainable == {f"blocks.{i}.experts.owned.{k}.weight" for i in range(2) for k in kinds}
    for bank, block in zip(banks(model), model.blocks, strict=True):
        assert torch.equal(bank.down.weight, block.experts.down.weight[[1, 3]])
        assert torch.equal(bank.router.weight, block.experts.router.weight[[1, 3]])
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    loss = model.loss(TOKENS[:, :-1], TOKENS[:, 1:])
    loss.total_B.sum().backward()
    optimiser.step()
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(
        not torch.equal(after[n], before[n.replace("owned.", "")][[1, 3]]) for n in trainable
    )


def test_rows_can_stay_as_given(model: Decoder) -> None:
    rows = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(3))
    branch(model, (0,), rows, train_rows=False)
    assert not any("router" in n for n, p in model.named_parameters() if p.requires_grad)
    assert all(
        torch.equal(bank.router.weight, row) for bank, row in zip(banks(model), rows, strict=True)
    )


@pytest.mark.parametrize("units", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 2]], ids=["records", "patients"])
@pytest.mark.parametrize("train_rows", [True, False])
def test_private_norms_equal_brute_force(
    model: Decoder, units: list[int], train_rows: bool
) -> None:
    """The bank's gradients pass the recorder; nothing else does."""
    perturbed(model, train_rows=train_rows)
    target = TOKENS[:, 1:].clone()
    target[0, 9:] = IGNORED
    layout = UnitLayout(torch.tensor(units), max(units) + 1)
    present = torch.ones(layout.units, dtype=torch.bool)
    chunk = Chunk(TOKENS[:, :-1], target, layout, present)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(parameters) == (6 if train_rows else 4)
    losses = unit_losses(model, chunk)
    grads = [torch.autograd.grad(u, list(parameters.values()), retain_graph=True) for u in losses]
    norms = torch.stack([sum(g.double().square().sum() for g in unit).sqrt() for unit in grads])
    clip = float(norms.median())
    sums = {n: torch.zeros_like(p) for n, p in parameters.items()}
    found = add_clipped_gradients(model, chunk, clip, sums).norm_U
    torch.testing.assert_close(found.double(), norms, rtol=1e-6, atol=0)
    weights = (clip / norms).clamp(max=1.0)
    for index, (name, total) in enumerate(sums.items()):
        expected = sum(w.float() * unit[index] for w, unit in zip(weights, grads, strict=True))
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=2e-6, msg=name)


def test_one_sequence_does_not_feel_its_neighbours(model: Decoder) -> None:
    perturbed(model)

    def gradient(rows: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        model.loss(rows[:, :-1], rows[:, 1:]).total_B[0].backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(TOKENS), gradient(TOKENS[:1]), rtol=1e-5, atol=1e-6)


def test_embeddings_are_means_over_counted_positions(model: Decoder) -> None:
    token, target = TOKENS[:, :-1], TOKENS[:, 1:].clone()
    target[1, 4:] = IGNORED
    target[2] = IGNORED
    centre = torch.randn(2, 32, generator=torch.Generator().manual_seed(5))
    found = sequence_embeddings(model, token, target, centre)
    inputs = router_inputs(model, token)
    torch.testing.assert_close(found[0], inputs[:, 0].mean(1) - centre)
    torch.testing.assert_close(found[1], inputs[:, 1, :4].mean(1) - centre)
    assert torch.equal(found[2], torch.zeros(2, 32))
    alone = sequence_embeddings(model, token[:1], target[:1], centre)
    torch.testing.assert_close(found[:1], alone, rtol=1e-5, atol=1e-6)


def test_router_inputs_are_what_the_router_sees(model: Decoder) -> None:
    inputs = router_inputs(model, TOKENS)
    for x, block, routing in zip(inputs, model.blocks, model.hidden(TOKENS)[1], strict=True):
        torch.testing.assert_close(block.experts.router(x), routing.logits_BTE)
    assert not any(block.experts._forward_pre_hooks for block in model.blocks)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_rows_are_calibrated_on_public_text(model: Decoder, scale: float) -> None:
    public = public_inputs(model, TOKENS)
    direction = scale * torch.randn(2, 32, generator=torch.Generator().manual_seed(6))
    rows = router_rows(model, direction, (1, 3), public, gain=2.0, margin=0.5)
    for layer, block in enumerate(model.blocks):
        x, own = public.x_LPD[layer], block.experts.router.weight.detach()
        unit = (x @ own.T).std(0).mean()
        gate = rows[layer] - own[[1, 3]]
        torch.testing.assert_close(gate[0], gate[1])
        torch.testing.assert_close((x @ gate[0]).mean(), -0.5 * unit, rtol=1e-3, atol=1e-4)
        assert direction[layer] @ gate[0] > 0
    plain = router_rows(model, direction, (1, 3), public, gain=2.0, margin=0.0)
    for layer, block in enumerate(model.blocks):
        gate_P = public.x_LPD[layer] @ (plain[layer, 0] - block.experts.router.weight[1].detach())
        unit = (public.x_LPD[layer] @ block.experts.router.weight.detach().T).std(0).mean()
        torch.testing.assert_close(gate_P.std(), 2.0 * unit, rtol=1e-3, atol=0)


def test_released_tensors_are_copies_under_standard_names(model: Decoder) -> None:
    perturbed(model)
    tensors = owned_tensors(model)
    assert len(tensors) == 2 * (1 + 2 * 3)
    bank = banks(model)[1]
    gate = tensors["model.layers.1.mlp.experts.1.gate_proj.weight"]
    assert torch.equal(gate, bank.gate_up.weight[1, :24])
    assert torch.equal(tensors["model.layers.1.mlp.gate.weight"], bank.router.weight)
    gate.zero_()
    assert bank.gate_up.weight[1, :24].abs().sum() > 0


def test_what_cannot_be_branched_is_refused(model: Decoder) -> None:
    with pytest.raises(OwnedError, match="branch first"):
        owned_tensors(model)
    for sources in ((), (4,), (-1,)):
        with pytest.raises(OwnedError, match="sources"):
            branch(model, sources, train_rows=True)
    with pytest.raises(OwnedError, match="shape"):
        branch(model, (0,), torch.zeros(2, 2, 32), train_rows=True)
    with pytest.raises(OwnedError, match="finite"):
        branch(model, (0,), torch.full((2, 1, 32), float("nan")), train_rows=True)
    with pytest.raises(OwnedError, match="direction"):
        router_rows(model, torch.zeros(2, 32), (0,), public_inputs(model, TOKENS))
    assert all(p.requires_grad for p in model.parameters())
    branch(model, (0,), train_rows=True)
    with pytest.raises(OwnedError, match="without owned"):
        branch(model, (0,), train_rows=True)
    adapted = Decoder(CONFIG, torch.Generator().manual_seed(1))
    add_lora(adapted, 2, 4.0, torch.Generator())
    with pytest.raises(OwnedError, match="adapters"):
        branch(adapted, (0,), train_rows=True)


def test_a_bank_is_not_lost_on_the_way_to_disk(model: Decoder, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a few words"], 260)
    perturbed(model)
    with pytest.raises(CheckpointError, match="module"):
        save_model(model, tokenizer, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_rows_of_a_dense_base_have_a_scale_too() -> None:
    """Its router is all zeros: the gate is then in units of one."""
    dense = Decoder(
        CONFIG.model_copy(update={"experts": 1, "experts_per_token": 1}),
        torch.Generator().manual_seed(1),
    )
    for block in dense.blocks:
        block.experts.router.weight.data.zero_()
    public = public_inputs(dense, TOKENS)
    direction = torch.randn(2, 32, generator=torch.Generator().manual_seed(6))
    rows = router_rows(dense, direction, (0,), public, gain=2.0, margin=0.0)
    logits = torch.einsum("lpd,lnd->lpn", public.x_LPD, rows)
    torch.testing.assert_close(logits.std(1), torch.full((2, 1), 2.0), rtol=1e-3, atol=0)
