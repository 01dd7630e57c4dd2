"""Long units in pieces and chunks in two passes: the same norms and sums as in one pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness import peak_mib
from models.config import ModelConfig
from models.decoder import Decoder
from models.language_model import IGNORED
from models.lora import add_lora
from privacy.dp.clipping import Chunk, ChunkOutcome, ClippingError, add_clipped_gradients
from privacy.dp.passes import add_clipped_twice, add_clipped_unit
from privacy.dp.records import UnitLayout

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4,
    experts_per_token=2, expert_hidden_size=24, max_positions=64, initializer_range=0.2,
)  # fmt: skip
Sums = dict[str, Tensor]


def build(variant: str, config: ModelConfig = CONFIG) -> Decoder:
    generator = torch.Generator().manual_seed(1)
    model = Decoder(config.model_copy(update={"tie_embeddings": variant == "tied"}), generator)
    if variant == "lora":
        add_lora(model, 4, 8.0, generator)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.data.normal_(0, 0.1, generator=generator)
    model.checkpoint_blocks = variant == "checkpointed"
    return model


def batch(units: list[int], positions: int = 20) -> Chunk:
    generator = torch.Generator().manual_seed(7)
    token = torch.randint(0, 12, (len(units), positions + 1), generator=generator)
    target = token[:, 1:].clone()
    target[0, positions // 2 :] = IGNORED
    layout = UnitLayout(torch.tensor(units), max(units) + 1)
    return Chunk(token[:, :-1], target, layout, torch.ones(layout.units, dtype=torch.bool))


def zeros(model: Decoder) -> Sums:
    return {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.requires_grad}


def compare(model: Decoder, chunk: Chunk, clip: float, clipped: Callable[[Sums], Tensor]) -> None:
    expected, found = zeros(model), zeros(model)
    norms = add_clipped_gradients(model, chunk, clip, expected).norm_U
    torch.testing.assert_close(clipped(found), norms, rtol=2e-6, atol=0)
    for name, total in found.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-4, atol=2e-6, msg=name)
    assert all(parameter.grad is None for parameter in model.parameters())


VARIANTS = ["tied", "untied", "lora", "checkpointed"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("units", [[0, 1, 2, 3], [0, 0, 1, 2, 2, 2]], ids=["records", "patients"])
@pytest.mark.parametrize("clip", [0.05, 1e3], ids=["clipped", "whole"])
def test_two_passes_add_what_one_adds(variant: str, units: list[int], clip: float) -> None:
    model, chunk = build(variant), batch(units)
    compare(
        model, chunk, clip, lambda sums: add_clipped_twice(model, chunk, clip, sums).norm_U
    )  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sequences", [1, 2, 4, 5])
@pytest.mark.parametrize("clip", [0.05, 1e3], ids=["clipped", "whole"])
def test_a_unit_in_pieces_is_clipped_as_one(variant: str, sequences: int, clip: float) -> None:
    model, chunk = build(variant), batch([0, 0, 0, 0, 0])
    compare(
        model,
        chunk,
        clip,
        lambda sums: add_clipped_unit(model, chunk, clip, sums, sequences).norm_U,
    )


def length(sums: Sums) -> float:
    return float(torch.cat([total.flatten() for total in sums.values()]).norm())


def test_a_unit_whose_pieces_were_clipped_apart_would_exceed_the_clipping_norm() -> None:
    model, whole, clip = build("tied"), batch([0, 0, 0, 0]), 1e-3
    together, apart = zeros(model), zeros(model)
    add_clipped_unit(model, whole, clip, together, 2)
    single = UnitLayout(torch.tensor([0, 0]), 1)
    for begin in (0, 2):
        rows = slice(begin, begin + 2)
        part = Chunk(whole.token_BT[rows], whole.target_BT[rows], single, whole.present_U)
        add_clipped_unit(model, part, clip, apart, 2)
    assert length(together) == pytest.approx(clip, rel=1e-4)
    assert length(apart) > 1.3 * clip


def test_absent_units_add_nothing() -> None:
    model, chunk = build("tied"), batch([0, 0])
    absent = Chunk(chunk.token_BT, chunk.target_BT, chunk.layout, torch.tensor([False]))
    sums = zeros(model)
    add_clipped_unit(model, absent, 1.0, sums, 1)
    add_clipped_twice(model, absent, 1.0, sums)
    assert length(sums) == 0


def poisoned() -> tuple[Decoder, Chunk]:
    """Unit 1 alone holds a token whose embedding is not a number."""
    model, chunk = build("untied"), batch([0, 1, 2])
    model.embedding.data[63] = float("nan")
    token = chunk.token_BT.clone()
    token[1, 3] = 63
    return model, Chunk(token, chunk.target_BT, chunk.layout, chunk.present_U)


def test_an_infinite_unit_adds_nothing_in_two_passes_and_spoils_nothing() -> None:
    model, chunk = poisoned()
    expected, found = zeros(model), zeros(model)
    add_clipped_gradients(model, chunk, 0.5, expected)
    assert not torch.isfinite(add_clipped_twice(model, chunk, 0.5, found).norm_U[1])
    for name, total in found.items():
        torch.testing.assert_close(total, expected[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("positions", [4, 40], ids=["factors kept", "gradients kept"])
@pytest.mark.parametrize("add", [add_clipped_gradients, add_clipped_twice])
def test_an_infinite_unit_spoils_none_of_fewer_sequences_than_others(
    positions: int, add: Callable[..., ChunkOutcome]
) -> None:
    """Units of one, two and three sequences, padded to three: padding must hold nobody's rows."""
    model, chunk = build("untied"), batch([0, 1, 1, 2, 2, 2], positions)
    expected = add(model, chunk, 0.5, zeros(model)).norm_U
    model.embedding.data[63] = float("nan")
    chunk.token_BT[0, 1] = 63  # unit 0 alone holds it
    sums = zeros(model)
    norm_U = add(model, chunk, 0.5, sums).norm_U
    assert not torch.isfinite(norm_U[0])
    torch.testing.assert_close(norm_U[1:], expected[1:], rtol=1e-5, atol=0)
    assert 0.5 < length(sums) <= 2 * 0.5 * 1.001


def test_where_nothing_is_finite_nothing_is_added() -> None:
    model, chunk = build("untied"), batch([0, 0, 0])
    model.norm.weight.data.fill_(float("inf"))
    sums = zeros(model)
    add_clipped_twice(model, chunk, 0.5, sums)
    add_clipped_unit(model, chunk, 0.5, sums, 2)
    assert length(sums) == 0


def test_two_passes_refuse_what_autograd_would_round_and_what_it_would_miss() -> None:
    model, chunk = build("untied"), batch([0, 1])
    model.compute_dtype = torch.bfloat16
    with pytest.raises(ClippingError, match="fp32"):
        add_clipped_twice(model, chunk, 1.0, zeros(model))
    model.compute_dtype = None
    model.blocks[1].attention.qkv = model.blocks[0].attention.qkv
    with pytest.raises(ClippingError, match="used once"):
        add_clipped_twice(model, chunk, 1.0, zeros(model))
    with pytest.raises(ClippingError, match="one unit"):
        add_clipped_unit(build("tied"), chunk, 1.0, zeros(build("tied")), 1)


def test_two_passes_hold_less() -> None:
    """Short sequences of a deep model: its layers' factors are most of what one pass holds."""
    wide = {"hidden_size": 128, "head_dim": 32, "expert_hidden_size": 192, "layers": 10}
    model = build("checkpointed", CONFIG.model_copy(update=wide))
    chunk, sums = batch(list(range(32)), 32), zeros(model)
    once = peak_mib(lambda: add_clipped_gradients(model, chunk, 1.0, sums))
    twice = peak_mib(lambda: add_clipped_twice(model, chunk, 1.0, sums))
    assert twice < 0.5 * once
