"""Activations in 8 bits, against numbers by hand and a decoder without them."""

import pytest
import torch

from models.variants.rounding import RoundedDecoder, in_8_bits
from tests.variants.models import decoder

BLOCK = 32  # as llama.cpp's Q8_0
MODEL = decoder("llama moe, stretched", hidden=64, expert_hidden_size=48)


@pytest.mark.parametrize("width", [1, 31, 32, 33, 96])
def test_each_block_is_rounded_by_its_own_scale(width: int) -> None:
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    x[0] *= 1000
    found = in_8_bits(x)
    assert found.shape == x.shape
    for row in range(3):
        for begin in range(0, width, BLOCK):
            block = x[row, begin : begin + BLOCK]
            step = float(block.abs().max()) / 127
            expected = [round(v / step) * step for v in block.tolist()]
            torch.testing.assert_close(
                found[row, begin : begin + BLOCK], torch.tensor(expected), rtol=1e-4, atol=1e-6
            )


def test_zeros_stay_zeros_and_no_number_stays_none() -> None:
    assert torch.equal(in_8_bits(torch.zeros(2, 40)), torch.zeros(2, 40))
    assert in_8_bits(torch.tensor([float("nan"), 1.0])).isnan().any()


def test_every_product_of_a_decoder_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention's, the router's, both of the experts', the head's; and nothing afterwards."""
    widths: list[int] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        widths.append(x.shape[-1])
        return x

    ids = [1, 2, 3, 4, 5]
    with torch.no_grad():
        plain = MODEL(torch.tensor([ids]))[0]
    assert not torch.equal(RoundedDecoder(MODEL).logits(ids), plain)
    monkeypatch.setattr("models.variants.rounding.in_8_bits", note)
    assert torch.equal(RoundedDecoder(MODEL).logits(ids), plain)
    layers, experts = MODEL.config.layers, set(widths) - {MODEL.config.hidden_size}
    assert MODEL.config.expert_hidden_size in experts
    assert len(widths) >= 4 * layers + 1
    with torch.no_grad():
        assert torch.equal(MODEL(torch.tensor([ids]))[0], plain)  # nothing of it stays
