"""A model built to enlarge rounding: alone in its chunk, a unit cannot move another's gradient.

A matrix product may round a row differently beside other rows. The model here leaves nothing of a
token but that rounding (its expert's output is minus its own embedding) and normalises the rest.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.config import ModelConfig
from models.decoder import Decoder
from models.language_model import IGNORED
from privacy.dp.clipping import Chunk, add_clipped_gradients
from privacy.dp.records import UnitLayout

EXPERTS, SIZE = 8, 64
UNITS = EXPERTS + 1
CONFIG = ModelConfig(
    vocab_size=SIZE, hidden_size=SIZE, layers=1, heads=2, kv_heads=1, head_dim=8, experts=EXPERTS,
    experts_per_token=1, expert_hidden_size=SIZE, tie_embeddings=False, max_positions=16,
    rms_norm_eps=1e-30, initializer_range=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Decoder:
    """Token e + 1 goes to expert e, which answers with minus the token's embedding."""
    model = Decoder(CONFIG, torch.Generator().manual_seed(0)).requires_grad_(False)
    block = model.blocks[0]
    block.attention.out.weight.zero_()
    block.experts.router.weight.copy_(torch.eye(EXPERTS, SIZE))
    model.embedding[:, :EXPERTS] = 0.0
    for expert in range(EXPERTS):
        x_D = model.embedding[expert + 1]
        x_D[expert] = 8.0
        gate_up = block.experts.gate_up.weight[expert] @ block.experts_norm(x_D)
        gate_G, up_G = gate_up.double().chunk(2)
        h_G = F.silu(gate_G) * up_G
        down_DG = block.experts.down.weight[expert].double()
        surplus_D = down_DG @ h_G + x_D.double()
        block.experts.down.weight[expert] = down_DG - surplus_D.outer(h_G) / h_G.square().sum()
    model.head.requires_grad_(True)
    return model


def clipped_sum(model: Decoder, last: bool, chunk_units: int) -> Tensor:
    """One unit for each expert, then one whose tokens go to all of them, which may be absent."""
    token_UT = torch.zeros(UNITS, EXPERTS, dtype=torch.int64)
    target_UT = torch.full((UNITS, EXPERTS), IGNORED)
    token_UT[:EXPERTS, 0] = torch.arange(1, EXPERTS + 1)
    target_UT[:EXPERTS, 0] = torch.arange(40, 40 + EXPERTS)
    if last:
        token_UT[-1], target_UT[-1] = token_UT[:EXPERTS, 0], torch.arange(20, 20 + EXPERTS)
    present_U = torch.ones(UNITS, dtype=torch.bool)
    present_U[-1] = last
    sums = {"head": torch.zeros(SIZE, SIZE)}
    parts = (part.split(chunk_units) for part in (token_UT, target_UT, present_U))
    for token, target, present in zip(*parts, strict=True):
        layout = UnitLayout(torch.arange(len(token)), len(token))
        add_clipped_gradients(model, Chunk(token, target, layout, present), 1.0, sums)
    return sums["head"]


def change(model: Decoder, chunk_units: int) -> float:
    return float(
        (clipped_sum(model, True, chunk_units) - clipped_sum(model, False, chunk_units)).norm()
    )


def test_a_unit_alone_in_its_chunk_moves_no_other(model: Decoder) -> None:
    assert 0.999 <= change(model, 1) <= 1.001


def test_units_of_one_chunk_are_coupled_by_rounding(model: Decoder) -> None:
    """Why the page says so: 3.8 C where this was found."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, SIZE, generator=generator)
    weight = torch.randn(SIZE, SIZE, generator=generator)
    if torch.equal(rows @ weight, torch.cat([row[None] @ weight for row in rows])):
        pytest.skip("this machine's products round a row alike whatever stands beside it")
    assert change(model, UNITS) > 1.001
