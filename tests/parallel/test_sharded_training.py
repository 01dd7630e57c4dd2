"""Two processes with half the chunks each give the clipped sum of one process with all of them."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from client.sharded_training import ShardedTrainer
from client.training import LocalTrainer, UnitRows
from models.config import ModelConfig
from models.decoder import Decoder
from models.parallel import ParallelError, World
from models.recipe import prepare
from models.tokenizer import Row
from models.training_settings import Recipe
from models.vector import read_vector, views_by_name, write_vector
from privacy.dp import clipping
from privacy.dp.clipping import ClippingError
from privacy.dp.plan import PrivateStep
from tests.parallel.conftest import Gang

# Five experts and 61 words: FSDP must shard what two processes cannot share evenly.
CONFIG = ModelConfig(
    vocab_size=61, hidden_size=16, layers=3, heads=2, kv_heads=1, head_dim=8, experts=5,
    experts_per_token=2, expert_hidden_size=12, max_positions=32, initializer_range=0.3,
)  # fmt: skip
UNITS = 7
NOISY = PrivateStep(
    clipping_norm=1.0, noise_multiplier=1.0, sampling_probability=0.5, expected_batch=4.0,
    honest_survivors=1, releases=1, unit="person",
)  # fmt: skip
UNCLIPPED = NOISY.model_copy(update={"clipping_norm": 1e6})
PLAIN = NOISY.model_copy(update={"noise_multiplier": 0.0, "ring_bits": 32})
AUTOMATIC, PLAIN_AUTOMATIC = (
    s.model_copy(update={"clipping": "automatic"}) for s in (NOISY, PLAIN)
)
DRAWS = ([], [3], [0, 2, 3, 4, 6], list(range(UNITS)))
RECIPES = {
    "full": Recipe(sequence_length=12, sequences_per_unit=2),
    "lora": Recipe(kind="lora", lora_rank=3, sequence_length=12, sequences_per_unit=2),
}
RECIPES["lora on bf16"] = RECIPES["lora"]


def units() -> UnitRows:
    """Seven units of one or two random sequences of various lengths."""
    generator = np.random.default_rng(5)
    return UnitRows(
        tuple(
            tuple(
                Row(tuple(generator.integers(0, 61, generator.integers(3, 13)).tolist()), 1)
                for _ in range(1 + place % 2)
            )
            for place in range(UNITS)
        )
    )


def model(kind: str, tied: bool = True) -> Decoder:
    config = CONFIG.model_copy(update={"tie_embeddings": tied})
    decoder = Decoder(config, torch.Generator().manual_seed(1))
    prepare(decoder, RECIPES[kind])
    for parameter in decoder.parameters():
        if kind == "lora on bf16" and not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return decoder


def start(kind: str) -> torch.Tensor:
    """Parameters away from LoRA's zeros, of which half the gradients would be zero too."""
    vector_D = read_vector(model(kind))
    noise_D = torch.empty_like(vector_D).normal_(
        0, 0.05, generator=torch.Generator().manual_seed(2)
    )
    return vector_D + noise_D


def sharded(world: World, kind: str, pad: bool, checkpointed: bool = False) -> ShardedTrainer:
    options = {"chunk_sequences": 4, "pad_draws": pad}
    decoder = model(kind)
    decoder.checkpoint_blocks = checkpointed
    return ShardedTrainer(decoder, units(), RECIPES[kind], world, **options)


def sums(
    world: World,
    kind: str,
    pad: bool,
    asked: list[tuple[list[int], PrivateStep]],
    checkpointed: bool = False,
) -> list[np.ndarray]:
    trainer = sharded(world, kind, pad, checkpointed)
    if not world.is_first:
        trainer.serve()
        return []
    trainer.set_vector(start(kind))
    found = [trainer.clipped_sum(np.array(drawn, np.int64), step) for drawn, step in asked]
    trainer.close()
    return found


@cache
def alone(kind: str, pad: bool, place: int, step: PrivateStep) -> np.ndarray:
    decoder = model(kind)
    write_vector(decoder, start(kind))
    trainer = LocalTrainer(decoder, units(), RECIPES[kind], chunk_sequences=4, pad_draws=pad)
    return trainer.clipped_sum(np.array(DRAWS[place], np.int64), step)


@pytest.mark.parametrize("pad", [True, False], ids=["padded", "tight"])
@pytest.mark.parametrize("kind", ["full", "lora", "lora on bf16"])
def test_two_processes_equal_one(gang: Gang, kind: str, pad: bool) -> None:
    asked = [(place, NOISY) for place in range(len(DRAWS))] + [(2, UNCLIPPED), (2, PLAIN)]
    asked += [(2, AUTOMATIC), (2, PLAIN_AUTOMATIC)]
    found, nothing = gang.run(sums, kind, pad, [(DRAWS[place], step) for place, step in asked])
    assert nothing == []
    for (place, step), ours in zip(asked, found, strict=True):
        expected = alone(kind, pad, place, step)
        assert ours.dtype == np.float32
        # Plain autograd rounds each chunk's gradient to bf16; clipped ones are summed in fp32.
        rounded = kind == "lora on bf16" and not step.is_private
        tolerance = 1e-2 if rounded else 1e-5
        assert np.linalg.norm(ours - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_checkpointed_blocks_change_nothing(gang: Gang, kind: str) -> None:
    (ours,), _ = gang.run(sums, kind, True, [(DRAWS[2], NOISY)], True)
    expected = alone(kind, True, 2, NOISY)
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_draws_test_what_they_should(kind: str) -> None:
    """Clipping bites, every draw but the empty one has a sum, and the draws differ."""
    assert not alone(kind, True, 0, NOISY).any()
    for place in (1, 2, 3):
        clipped, free = alone(kind, True, place, NOISY), alone(kind, True, place, UNCLIPPED)
        assert 0.5 < np.linalg.norm(clipped) <= 1.001 * len(DRAWS[place])
        assert np.linalg.norm(free) > 1.5 * np.linalg.norm(clipped)


def lay_out(world: World, kind: str) -> tuple[float, list[str]]:
    trainer = sharded(world, kind, pad=True)
    parameters = dict(trainer.model.named_parameters())
    local = [p.to_local().numel() for p in parameters.values() if isinstance(p, DTensor)]
    assert len(local) == len(parameters)
    return sum(local) / sum(p.numel() for p in parameters.values()), list(parameters)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_each_process_keeps_half_of_every_weight(gang: Gang, kind: str) -> None:
    (first, names), (second, _) = gang.run(lay_out, kind)
    assert first + second == 1.0
    assert 0.4 < second <= first < 0.6  # five experts: three and two
    assert names == [name for name, _ in model(kind).named_parameters()]


def passes(world: World, pad: bool, draws: list[list[int]]) -> list[list[tuple[int, ...]]]:
    """The shape of every pass of each draw, and how many units were present."""
    seen: list[list[tuple[int, ...]]] = []
    real = clipping.unit_losses

    def spy(decoder: Any, chunk: clipping.Chunk) -> torch.Tensor:
        seen[-1].append((*chunk.token_BT.shape, int(chunk.present_U.sum())))
        return real(decoder, chunk)

    clipping.unit_losses = spy
    trainer = sharded(world, "lora", pad)
    obey = trainer._obey
    trainer._obey = lambda *order: (seen.append([]), obey(*order))[1]  # type: ignore[method-assign]
    if world.is_first:
        for drawn in draws:
            trainer.clipped_sum(np.array(drawn, np.int64), NOISY)
        trainer.close()
    else:
        trainer.serve()
    clipping.unit_losses = real
    return seen[: len(draws)]


@pytest.mark.parametrize("pad", [True, False], ids=["padded", "tight"])
def test_every_unit_is_at_one_process_and_all_take_as_many_passes(gang: Gang, pad: bool) -> None:
    by_rank = gang.run(passes, pad, list(DRAWS))
    for place, drawn in enumerate(DRAWS):
        first, second = (seen[place] for seen in by_rank)
        assert len(first) == len(second)
        assert sum(present for *_, present in (*first, *second)) == len(drawn)
        if pad:
            assert [shape[:2] for shape in first + second] == [(4, 12)] * 4
        else:
            assert len(first) == math.ceil(len(drawn) / 4)


def whole_vector(world: World) -> np.ndarray | None:
    trainer = sharded(world, "full", pad=True)
    if not world.is_first:
        trainer.serve()
    else:
        trainer.set_vector(start("full"))
        trainer.close()
    parts = [p.full_tensor().flatten() for p in trainer.model.parameters() if p.requires_grad]
    return torch.cat(parts).detach().numpy()


def test_rank_0_sets_the_parameters_of_all(gang: Gang) -> None:
    for got in gang.run(whole_vector):
        assert np.array_equal(got, start("full").numpy())


def refusals(world: World) -> str:
    trainer = sharded(world, "full", pad=True)
    if world.is_first:
        with pytest.raises(ValueError, match="trainable elements") as caught:
            trainer.set_vector(torch.zeros(3))
        trainer.close()
    else:
        with pytest.raises(ParallelError, match="rank 0") as caught:
            trainer.clipped_sum(np.array([0]), NOISY)
        trainer.serve()
    return str(caught.value)


def test_wrong_orders_reach_nobody(gang: Gang) -> None:
    assert all(gang.run(refusals))


def escaped(world: World) -> str:
    """A weight outside the recorded operations, used by every rank."""
    decoder = model("full")
    decoder.blocks[1].escaped = torch.nn.Parameter(torch.ones(2))
    original = decoder.blocks[1].attention_norm.forward
    decoder.blocks[1].attention_norm.forward = lambda x: (
        original(x) * decoder.blocks[1].escaped.sum()
    )
    trainer = ShardedTrainer(decoder, units(), RECIPES["full"], world)
    work = (lambda: trainer.clipped_sum(np.array([0]), NOISY)) if world.is_first else trainer.serve
    with pytest.raises(ClippingError, match="escaped"):
        work()
    if world.is_first:
        with pytest.raises(ParallelError, match="after a failure"):
            trainer.clipped_sum(np.array([0]), NOISY)
    return "refused"


def test_a_weight_outside_the_seam_is_refused_by_all(gang: Gang) -> None:
    assert gang.run(escaped) == ["refused"] * 2


def differing(world: World) -> str:
    decoder = model("full")
    decoder.norm.weight.data[0] += world.rank * 1e-6
    with pytest.raises(ParallelError, match="same weights"):
        ShardedTrainer(decoder, units(), RECIPES["full"], world)
    return "refused"


def test_different_weights_are_refused(gang: Gang) -> None:
    assert gang.run(differing) == ["refused"] * 2


def other_order(world: World) -> str:
    """Index 0 is one unit here and another there: drawn 0 and 6, one unit would count twice."""
    rows = units().rows if world.is_first else units().rows[::-1]
    with pytest.raises(ParallelError, match="same units"):
        ShardedTrainer(model("full"), UnitRows(rows), RECIPES["full"], world)
    return "refused"


def other_layout(world: World) -> str:
    with pytest.raises(ParallelError, match="same units, recipe and chunks"):
        ShardedTrainer(
            model("full"), units(), RECIPES["full"], world, chunk_sequences=4 + 4 * world.rank
        )
    return "refused"


@pytest.mark.parametrize("differing", [other_order, other_layout])
def test_different_units_or_chunks_are_refused(gang: Gang, differing: Any) -> None:
    assert gang.run(differing) == ["refused"] * 2


def untied(world: World) -> np.ndarray:
    trainer = ShardedTrainer(
        model("full", tied=False), units(), RECIPES["full"], world, chunk_sequences=4
    )
    if not world.is_first:
        trainer.serve()
        return np.zeros(0)
    total = trainer.clipped_sum(np.arange(UNITS), NOISY)
    trainer.close()
    return total


def test_an_untied_head(gang: Gang) -> None:
    ours, _ = gang.run(untied)
    trainer = LocalTrainer(model("full", tied=False), units(), RECIPES["full"], chunk_sequences=4)
    expected = trainer.clipped_sum(np.arange(UNITS), NOISY)
    assert np.linalg.norm(ours - expected) <= 1e-5 * np.linalg.norm(expected)
    assert "head" in views_by_name(trainer.model, torch.from_numpy(expected))
