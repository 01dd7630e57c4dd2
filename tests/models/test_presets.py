"""The family: exact counts, against brute force, within 5% of the names."""

import pytest
import torch

from models.config import ModelConfig, preset, preset_names
from models.counts import parameter_counts, weight_bytes
from models.decoder import Decoder

# name: (total, active, embedding)
EXACT = {
    "nano": (972_768, 640_992, 196_608),
    "tiny": (15_089_664, 6_242_304, 2_097_152),
    "arion-1.0-1b": (1_015_188_480, 335_711_232, 67_108_864),
    "arion-1.0-5b": (5_050_441_728, 1_653_055_488, 268_435_456),
    "arion-1.1-1b": (1_002_017_920, 253_334_656, 100_663_296),
    "arion-1.1-5b": (5_065_506_304, 1_189_969_408, 402_653_184),
    "arion-1.1-20b": (20_087_508_224, 3_836_677_376, 603_979_776),
    "arion-1.2-0.5b": (500_925_312, 203_654_016, 75_497_472),
    "arion-1.2-2b": (2_014_695_680, 495_309_056, 150_994_944),
    "arion-1.2-8b": (8_008_411_904, 1_622_584_064, 251_658_240),
    "arion-1.2-30b": (30_359_731_200, 3_180_641_280, 301_989_888),
    "arion-1.3-15b": (15_006_063_360, 1_794_005_760, 536_870_912),
}
NAMED = [name for name in EXACT if name.startswith("arion-")]


def test_the_family_is_complete() -> None:
    assert preset_names() == tuple(EXACT)
    with pytest.raises(ValueError, match="nano"):
        preset("huge")


@pytest.mark.parametrize("name", EXACT)
def test_counts_are_exact(name: str) -> None:
    counts = parameter_counts(preset(name))
    assert (counts.total, counts.active, counts.embedding) == EXACT[name]
    assert (counts.total, counts.active) == closed_form(preset(name))


@pytest.mark.parametrize("name", NAMED)
def test_a_name_tells_the_total_within_five_percent(name: str) -> None:
    billions = float(name.rsplit("-", 1)[1].removesuffix("b"))
    assert abs(EXACT[name][0] / 1e9 / billions - 1) < 0.05


@pytest.mark.parametrize("name", NAMED)
def test_shapes_suit_quantised_rows_and_fast_attention(name: str) -> None:
    config = preset(name)
    widths = (config.hidden_size, config.expert_hidden_size, config.heads * config.head_dim)
    assert all(width % 256 == 0 for width in widths)
    assert config.head_dim in (64, 128)
    assert config.heads > config.kv_heads


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("per_token", [1, 3, 4])
def test_active_parameters_are_those_that_one_token_touches(tied: bool, per_token: int) -> None:
    """Brute force: the gradient of one token's logits is nonzero where its computation went."""
    config = ModelConfig(
        vocab_size=50, hidden_size=8, layers=3, heads=2, kv_heads=1, head_dim=4, experts=4,
        experts_per_token=per_token, expert_hidden_size=6, max_positions=4, tie_embeddings=tied,
    )  # fmt: skip
    model = Decoder(config, torch.Generator().manual_seed(0))
    touched = 0
    model(torch.tensor([[7]])).square().sum().backward()
    for name, parameter in model.named_parameters():
        if ".gate_up." in name or ".down." in name:
            assert parameter.grad is not None
            hit = parameter.grad.flatten(1).abs().sum(1) > 0
            touched += int(hit.sum()) * parameter[0].numel()
        else:  # embedding tables count in full by definition
            touched += parameter.numel()
    assert parameter_counts(config).active == touched
    assert parameter_counts(config).total == sum(p.numel() for p in model.parameters())


def test_memory_per_precision() -> None:
    assert weight_bytes(1001) == {"fp32": 4004, "bf16": 2002, "int8": 1001, "int4": 501}


def closed_form(config: ModelConfig) -> tuple[int, int]:
    """(total, active), written down from the architecture."""
    hidden, width = config.hidden_size, config.head_dim
    attention = hidden * width * (2 * config.heads + 2 * config.kv_heads) + 2 * width
    expert = 3 * hidden * config.expert_hidden_size
    layer = attention + 2 * hidden + config.experts * hidden
    rest = config.vocab_size * hidden * (1 if config.tie_embeddings else 2) + hidden
    return (
        rest + config.layers * (layer + config.experts * expert),
        rest + config.layers * (layer + config.experts_per_token * expert),
    )
