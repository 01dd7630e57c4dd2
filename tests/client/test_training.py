"""Local training: what a unit contributes, however the draw is laid out."""

from typing import Any

import numpy as np
import pytest
import torch

import client.training
from client.data import Record
from client.training import LocalTrainer, UnitRows, sequences_at_once, unit_rows
from models.checkpoint import load_model
from models.config import preset
from models.decoder import Decoder
from models.recipe import prepare
from models.tokenizer import Tokenizer
from models.training_settings import Recipe
from privacy.dp.clipping import Chunk
from privacy.dp.plan import PrivateStep
from tests.small_federation import NO_NOISE, RECIPE, STEP, Ground

UNCLIPPED = PrivateStep(**{**STEP.model_dump(), "clipping_norm": 1e6})
PLAIN = PrivateStep(**{**STEP.model_dump(), **NO_NOISE})
TEXTS = ["left knee mild " * 9, "scan night", "cough dose stable pain ward " * 6, "pain"]


@pytest.fixture
def tokenizer(ground: Ground) -> Tokenizer:
    return Tokenizer.load(ground.base_model)


def records(*owners: str) -> list[Record]:
    """One record for each owner named, in this order."""
    return [
        Record(TEXTS[place % 4], owner, owner, f"shard:{place}")
        for place, owner in enumerate(owners)
    ]


def trainer(ground: Ground, units: UnitRows, **options: Any) -> LocalTrainer:
    model, _ = load_model(ground.base_model)
    prepare(model, RECIPE)
    return LocalTrainer(model, units, RECIPE, **options)


@pytest.fixture
def units(tokenizer: Tokenizer) -> UnitRows:
    return unit_rows(records(*"abcabdaefghij"), tokenizer, RECIPE)


def test_no_unit_has_more_sequences_than_the_cap(units: UnitRows) -> None:
    assert len(units) == 10
    assert {len(rows) for rows in units.rows} == {1, 2}
    assert all(len(row.ids) <= RECIPE.sequence_length + 1 for rows in units.rows for row in rows)


@pytest.mark.parametrize("cap", [1, 2, 3, 64])
def test_first_sequences_of_all_records_come_first(tokenizer: Tokenizer, cap: int) -> None:
    recipe = Recipe(sequence_length=8, sequences_per_unit=cap)
    long, short = "ward knee left mild scan night cough dose " * 4, "pain"
    given = [Record(short, "a", "a", "shard:2"), Record(long, "a", "a", "shard:1")]
    (rows,) = unit_rows(given, tokenizer, recipe).rows
    first, *rest = tokenizer.rows([long], 8, 64)[0]
    in_order = (first, *tokenizer.rows([short], 8, 64)[0], *rest)
    assert len(rest) >= 3
    assert rows == in_order[:cap]


def test_the_order_of_units_and_records_does_not_depend_on_how_they_were_read(
    tokenizer: Tokenizer, units: UnitRows
) -> None:
    again = unit_rows(reversed(records(*"abcabdaefghij")), tokenizer, RECIPE)
    assert again == units


@pytest.mark.parametrize("options", [{"chunk_sequences": 1}, {"two_passes": True}], ids=str)
def test_ways_that_hold_less_add_the_same(
    ground: Ground, units: UnitRows, options: dict[str, Any]
) -> None:
    """A unit of two sequences in pieces of one; and norms first, sums second."""
    drawn = np.array([0, 1, 4, 5], np.int64)
    expected = trainer(ground, units).clipped_sum(drawn, STEP)
    found = trainer(ground, units, **options).clipped_sum(drawn, STEP)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_larger_model_takes_fewer_sequences_at_once() -> None:
    """By its shape alone: a node that starts again adds up in the same order."""
    found = {}
    for name in ("nano", "tiny", "arion-1.2-0.5b", "arion-1.2-30b"):
        with torch.device("meta"):
            model = Decoder(preset(name))
        found[name] = [sequences_at_once(model, length) for length in (64, 512, 2048)]
        prepare(model, Recipe(kind="lora"))
        assert sequences_at_once(model, 64) <= found[name][0]
    assert found == {
        "nano": [32, 32, 13],
        "tiny": [32, 13, 3],
        "arion-1.2-0.5b": [9, 1, 1],
        "arion-1.2-30b": [1, 1, 1],
    }


@pytest.mark.parametrize("most", [1, 3])
def test_the_nodes_own_choice_adds_the_same(
    ground: Ground, units: UnitRows, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = np.arange(10)
    expected = trainer(ground, units, chunk_sequences=32).clipped_sum(drawn, STEP)
    monkeypatch.setattr(client.training, "sequences_at_once", lambda model, length: most)
    found = trainer(ground, units).clipped_sum(drawn, STEP)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("step", [STEP, PLAIN], ids=["clipped", "plain"])
@pytest.mark.parametrize("drawn", [[0], [1, 4, 5], list(range(10)), []], ids=len)
def test_padding_changes_nothing(
    ground: Ground, units: UnitRows, step: PrivateStep, drawn: list[int]
) -> None:
    sums = [
        trainer(ground, units, chunk_sequences=chunk, pad_draws=pad).clipped_sum(
            np.array(drawn, np.int64), step
        )
        for chunk, pad in ((32, True), (32, False), (4, True), (1, False))
    ]
    size = np.linalg.norm(sums[0])
    assert (size > 0.1) == bool(drawn)
    for other in sums[1:]:
        assert np.linalg.norm(other - sums[0]) <= 1e-5 * size


@pytest.mark.parametrize("pad", [True, False])
def test_an_empty_draw_gives_zeros(ground: Ground, units: UnitRows, pad: bool) -> None:
    total = trainer(ground, units, pad_draws=pad).clipped_sum(np.array([], np.int64), STEP)
    assert total.dtype == np.float32
    assert total.shape == (12592,)
    assert not total.any()


def test_all_sequences_of_a_unit_are_clipped_together(ground: Ground, tokenizer: Tokenizer) -> None:
    together = trainer(ground, unit_rows(records("a", "a"), tokenizer, RECIPE))
    apart = trainer(ground, unit_rows(records("a", "b"), tokenizer, RECIPE))
    clipped = together.clipped_sum(np.array([0]), STEP)
    assert np.linalg.norm(clipped) == pytest.approx(STEP.clipping_norm, rel=1e-4)
    direction = together.clipped_sum(np.array([0]), UNCLIPPED)
    assert np.linalg.norm(direction) > 1.2 * STEP.clipping_norm
    assert np.allclose(clipped, direction / np.linalg.norm(direction), atol=1e-6)
    assert np.linalg.norm(apart.clipped_sum(np.array([0, 1]), STEP)) > 1.1


@pytest.mark.parametrize("pad", [True, False])
def test_the_chunks_processed_tell_nothing_of_a_padded_draw(
    ground: Ground, units: UnitRows, monkeypatch: pytest.MonkeyPatch, pad: bool
) -> None:
    shapes: list[tuple[Any, ...]] = []
    original = client.training.add_clipped_gradients

    def spy(model: Any, chunk: Chunk, *rest: Any, **options: Any) -> Any:
        shapes.append((*chunk.token_BT.shape, chunk.layout.units, len(chunk.present_U)))
        return original(model, chunk, *rest, **options)

    monkeypatch.setattr(client.training, "add_clipped_gradients", spy)
    local = trainer(ground, units, chunk_sequences=4, pad_draws=pad)
    seen = []
    for drawn in ([], [3], [0, 1, 2], list(range(10))):
        shapes.clear()
        local.clipped_sum(np.array(drawn, np.int64), STEP)
        seen.append(tuple(shapes))
    assert (len(set(seen)) == 1) is pad
    assert not pad or seen[0] == ((4, 24, 2, 2),) * 5


def test_training_leaves_no_gradients_and_no_change_behind(ground: Ground, units: UnitRows) -> None:
    local = trainer(ground, units)
    before = [p.detach().clone() for p in local.model.parameters()]
    for step in (STEP, PLAIN):
        local.clipped_sum(np.arange(10), step)
    assert all(p.grad is None for p in local.model.parameters())
    for old, new in zip(before, local.model.parameters(), strict=True):
        assert torch.equal(old, new)
