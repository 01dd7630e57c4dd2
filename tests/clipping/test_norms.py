"""Norms and clipped sums against brute force: one autograd pass per unit, for every layer type."""

import weakref

import pytest
import torch
from torch import Tensor

from models.cross_entropy import nats_of_logits
from models.decoder import Decoder
from models.language_model import IGNORED
from privacy.dp import clipping
from privacy.dp.clipping import BookKeeper, Chunk, ClippingError, add_clipped_gradients
from tests.clipping.small import batch, build, zeros


def brute_force(model: Decoder, chunk: Chunk, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sums = {n: torch.zeros_like(p) for n, p in parameters.items()}
    norms = []
    for unit in range(chunk.layout.units):
        rows = chunk.layout.unit_B == unit
        logits, target = model(chunk.token_BT[rows]), chunk.target_BT[rows]
        # Our own loss (tests/models/test_cross_entropy.py): its rounding is not tested here.
        loss = nats_of_logits(logits.flatten(0, 1), target.flatten(), IGNORED).sum()
        loss = loss / (target != IGNORED).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        norm = sum(g.double().square().sum() for g in grads if g is not None).sqrt()
        norms.append(norm)
        for total, grad in zip(sums.values(), grads, strict=True):
            if grad is not None:
                total.add_(grad, alpha=min(1.0, clip / norm.item()))
    return torch.stack(norms), sums


def clipped(model: Decoder, chunk: Chunk, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    sums = zeros(model)
    return add_clipped_gradients(model, chunk, clip, sums).norm_U, sums


@pytest.mark.parametrize("variant", ["tied", "untied", "lora", "collapsed"])
@pytest.mark.parametrize("units", [[0, 1, 2, 3], [0, 0, 1, 2, 2, 2]], ids=["records", "patients"])
def test_norms_and_sums_equal_brute_force(variant: str, units: list[int]) -> None:
    model, chunk = build(variant), batch(units)
    expected_norms, _ = brute_force(model, chunk, 1.0)
    clip = float(expected_norms.median())  # so that some units are clipped and some are not
    expected_norms, expected = brute_force(model, chunk, clip)
    norms, sums = clipped(model, chunk, clip)
    torch.testing.assert_close(norms.double(), expected_norms.double(), rtol=1e-6, atol=0)
    for name, total in sums.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-4, atol=2e-6, msg=name)


def test_long_sequences_use_the_ghost_norm_and_agree() -> None:
    """Short sequences take the ghost path, long ones instantiate; both equal brute force."""
    model = build("untied")
    for positions in (4, 60):
        chunk = batch([0, 1, 1], positions)
        norms, _ = clipped(model, chunk, 1.0)
        torch.testing.assert_close(
            norms.double(), brute_force(model, chunk, 1.0)[0].double(), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("variant", ["tied", "untied", "lora"])
@pytest.mark.parametrize("positions", [4, 60], ids=["factors kept", "gradients kept"])
def test_nothing_of_a_chunk_outlives_it(variant: str, positions: int) -> None:
    """A cycle through autograd's graph would be out of the garbage collector's sight."""
    model, chunk = build(variant), batch([0, 1, 1], positions)
    keepers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clipping, "BookKeeper", lambda layout: _noted(keepers, BookKeeper(layout)))
        clipped(model, chunk, 1.0)
    assert [keeper() for keeper in keepers] == [None]


def _noted(seen: list[weakref.ref[BookKeeper]], keeper: BookKeeper) -> BookKeeper:
    seen.append(weakref.ref(keeper))
    return keeper


def test_padding_units_contribute_nothing() -> None:
    model, chunk = build("tied"), batch([0, 1, 2])
    _, alone = clipped(model, batch([0, 1, 2]), 0.5)
    absent = Chunk(chunk.token_BT, chunk.target_BT, chunk.layout, torch.tensor([True, True, False]))
    _, without = clipped(model, absent, 0.5)
    last = clipped(
        model,
        Chunk(chunk.token_BT, chunk.target_BT, chunk.layout, torch.tensor([False, False, True])),
        0.5,
    )[1]
    for name, total in alone.items():
        torch.testing.assert_close(total, without[name] + last[name], rtol=1e-4, atol=1e-6)


def test_an_infinite_unit_contributes_zero_and_spoils_nothing() -> None:
    model, chunk = build("tied"), batch([0, 1, 2])
    model.embedding.data[63] = float("nan")  # a token only unit 1 holds
    poisoned = chunk.token_BT.clone()
    poisoned[1, 3] = 63
    target = chunk.target_BT.clone()
    # The tied head spreads a NaN row over all logits: freeze that path by untying.
    model.head = torch.nn.Parameter(model.embedding.data.nan_to_num())
    norms, sums = clipped(model, Chunk(poisoned, target, chunk.layout, chunk.present_U), 0.5)
    assert not torch.isfinite(norms[1])
    keep = torch.tensor([True, False, True])
    _, expected = clipped(model, Chunk(chunk.token_BT, target, chunk.layout, keep), 0.5)
    for name, total in sums.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_weight_outside_the_seam_is_refused() -> None:
    model, chunk = build("tied"), batch([0, 1])
    extra = torch.nn.Parameter(torch.ones(()))
    model.escaped = extra
    original = model.norm.forward
    model.norm.forward = lambda x: original(x) * extra  # type: ignore[method-assign]
    with pytest.raises(ClippingError, match="escaped"):
        clipped(model, chunk, 1.0)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_that_round_fp32_are_refused(precision: str) -> None:
    model, chunk = build("tied"), batch([0, 1])
    torch.set_float32_matmul_precision(precision)
    try:
        with pytest.raises(ClippingError, match="highest"):
            clipped(model, chunk, 1.0)
    finally:
        torch.set_float32_matmul_precision("highest")
    clipped(model, chunk, 1.0)


def test_half_precision_is_refused() -> None:
    model = build("tied").bfloat16()
    with pytest.raises(ClippingError, match="fp32"):
        clipped(model, batch([0, 1]), 1.0)
