"""Memory said beforehand, against shapes of prepared models and tensors alive while they train."""

import math
import weakref
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from client.training import LocalTrainer, UnitRows, sequences_at_once
from models.config import ModelConfig, preset
from models.decoder import Decoder
from models.folders import open_model, shape_of
from models.footprint import driver_bytes, most_bytes, node_bytes, trained_numbers
from models.formats.shards import read_headers
from models.recipe import prepare
from models.tokenizer import Row
from models.training_settings import Recipe
from models.vector import vector_length
from privacy.dp.plan import PrivateStep
from tests.foreign.families import FAMILIES, write_family
from tests.models.foreign_folders import make_folder

WIDE = ModelConfig(
    vocab_size=300, hidden_size=256, layers=6, heads=4, kv_heads=2, head_dim=64, experts=4,
    experts_per_token=2, expert_hidden_size=280, max_positions=512,
)  # fmt: skip
STEP = PrivateStep(
    clipping_norm=1.0, noise_multiplier=1.0, sampling_probability=1.0, expected_batch=32.0,
    honest_survivors=1, releases=1, unit="record",
)  # fmt: skip


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still held, and the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._held:
            self._held[key] = storage.nbytes()
            weakref.finalize(storage, self._held.pop, key, None)
            self.most = max(self.most, sum(self._held.values()))


def most_alive(kind: Literal["full", "lora"], length: int) -> int:
    """Bytes alive at once while 32 sequences are processed together."""
    recipe = Recipe(kind=kind, sequence_length=length)
    model = Decoder(WIDE, torch.Generator().manual_seed(0))
    prepare(model, recipe)
    units = UnitRows(((Row(tuple(range(length + 1)), 1),),) * 32)
    trainer = LocalTrainer(model, units, recipe, chunk_sequences=32)
    with Alive() as alive:
        trainer.clipped_sum(np.arange(32), STEP)
    return alive.most


def meta(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_shapes_say_what_a_prepared_model_has(kind: Literal["full", "lora"], name: str) -> None:
    recipe = Recipe(kind=kind, lora_rank=3, sequence_length=128)
    model = Decoder(preset(name), torch.Generator().manual_seed(0))
    prepare(model, recipe)
    assert trained_numbers(meta(preset(name)), recipe) == vector_length(model)
    chosen = sequences_at_once(model, 128)
    planned = meta(preset(name))
    assert node_bytes(planned, recipe) == node_bytes(planned, recipe, chosen)
    assert node_bytes(planned, recipe) != node_bytes(planned, recipe, chosen + 1)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_sequences_that_the_model_does_not_take_are_refused(kind: Literal["full", "lora"]) -> None:
    with pytest.raises(ValueError, match="at most 512 tokens"):
        trained_numbers(meta(WIDE), Recipe(kind=kind, sequence_length=513))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_work_grows_as_the_tensors_that_are_alive_at_once(kind: Literal["full", "lora"]) -> None:
    """A process takes some 1.6 times of those (docs/service.md has what processes took)."""
    lengths = (64, 192)
    alive = [most_alive(kind, length) for length in lengths]
    said = [
        node_bytes(meta(WIDE), Recipe(kind=kind, sequence_length=length), 32) for length in lengths
    ]
    assert 0.45 < (alive[1] - alive[0]) / (said[1] - said[0]) < 0.7


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "gpt2", "gemma2"])
def test_a_folder_says_its_shapes_without_its_weights(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    if kind in FAMILIES:
        write_family(kind, tmp_path)
    else:
        make_folder(tmp_path, kind)
    shape, (model, _) = shape_of(tmp_path), open_model(tmp_path)
    assert [p.shape for p in shape.parameters()] == [p.shape for p in model.parameters()]
    recipe = Recipe(kind="lora", sequence_length=32)
    assert node_bytes(shape, recipe) == node_bytes(model, recipe)
    assert driver_bytes(shape, recipe) == driver_bytes(model, recipe)
    stored = sum(math.prod(each.shape) for each in read_headers(tmp_path).values())
    assert most_bytes(stored) > node_bytes(shape, recipe)
    assert (shape.attention_maps > 0) == (kind == "gemma2")  # which caps what it compares
