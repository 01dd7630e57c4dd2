"""Memory said beforehand, against shapes of prepared models and against processes that train."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from client.training import sequences_at_once
from models.config import ModelConfig, preset
from models.decoder import Decoder
from models.folders import open_model, shape_of
from models.footprint import adapting_bytes, driver_bytes, node_bytes, trained_numbers
from models.formats.shards import read_headers
from models.recipe import Recipe, prepare
from models.vector import vector_length
from tests.foreign.families import FAMILIES, write_family
from tests.models.foreign_folders import make_folder

WIDE = ModelConfig(
    vocab_size=300, hidden_size=256, layers=6, heads=4, kv_heads=2, head_dim=64, experts=4,
    experts_per_token=2, expert_hidden_size=280, max_positions=512,
)  # fmt: skip
TRAIN = """
import resource, sys, numpy, torch
from arion.memory import keep_freed_memory
from client.training import LocalTrainer, UnitRows
from models.decoder import Decoder
from models.recipe import Recipe, prepare
from models.tokenizer import Row
from tests.models.test_footprint import WIDE
from privacy.dp.plan import PrivateStep
keep_freed_memory()  # as every command does
torch.set_num_threads(1)
step = PrivateStep(
    clipping_norm=1.0, noise_multiplier=1.0, sampling_probability=1.0, expected_batch=32.0,
    honest_survivors=1, releases=1, unit="record",
)
recipe = Recipe(kind=sys.argv[1], sequence_length=int(sys.argv[2]))
model = Decoder(WIDE, torch.Generator().manual_seed(0))
prepare(model, recipe)
row = Row(tuple(range(recipe.sequence_length + 1)), 1)
trainer = LocalTrainer(model, UnitRows(((row,),) * 32), recipe, chunk_sequences=32)
trainer.clipped_sum(numpy.arange(32), step)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


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
def test_work_grows_as_processes_that_train_do(kind: str) -> None:
    measured, said = [], []
    for length in (64, 256):
        command = [sys.executable, "-c", TRAIN, kind, str(length)]
        measured.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
        recipe = Recipe.model_validate({"kind": kind, "sequence_length": length})
        said.append(node_bytes(meta(WIDE), recipe, 32))
    assert 0.6 < (measured[1] - measured[0]) / (said[1] - said[0]) < 1.25
    assert said[1] - said[0] > 500_000_000


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
    headers = [each.shape for each in read_headers(tmp_path).values()]
    known = adapting_bytes(headers, 32, 4)
    assert known == pytest.approx(node_bytes(shape, recipe, 4), rel=0.02)
