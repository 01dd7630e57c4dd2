"""Folders of 8-bit floats: exact against brute force and transformers; damaged ones refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import inspect_model, load_model, save_model
from models.formats.files import CheckpointError
from models.formats.fp8 import BLOCK, FP8, LARGEST_ERROR, SCALE, from_blocks, to_blocks
from tests.variants.models import decoder, tokenizer

WORDS = tokenizer()
WEIGHTS = "model.safetensors"
WHOLE = {"hidden": 128, "expert_hidden_size": 128, "kv_heads": 4, "initializer_range": 0.05}
DOWN = "model.layers.0.mlp.experts.0.down_proj.weight"


def matrix(rows: int, columns: int) -> torch.Tensor:
    numbers = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    numbers[:BLOCK] *= 1e-6  # blocks of very different size
    return numbers


def test_every_block_has_the_scale_of_its_largest_weight() -> None:
    weight_OI = matrix(2 * BLOCK, 3 * BLOCK)
    weight_OI[:BLOCK, :BLOCK] = 0.0
    number_OI, scale_PQ = to_blocks(weight_OI)
    stored_OI = from_blocks(number_OI, scale_PQ)
    assert (number_OI.dtype, scale_PQ.shape) == (FP8, (2, 3))
    for p in range(2):
        for q in range(3):
            place = (slice(p * BLOCK, (p + 1) * BLOCK), slice(q * BLOCK, (q + 1) * BLOCK))
            block, largest = weight_OI[place], weight_OI[place].abs().max()
            torch.testing.assert_close(scale_PQ[p, q] * 448, largest, atol=1e-30, rtol=1e-6)
            wanted = (block / scale_PQ[p, q]).to(FP8).float() * scale_PQ[p, q]
            torch.testing.assert_close(stored_OI[place], wanted, atol=0, rtol=0)
            assert (stored_OI[place] - block).abs().max() <= LARGEST_ERROR * largest
    assert not (weight_OI / weight_OI.abs().max() * 448)[:BLOCK].to(FP8).float().any()  # one scale


@pytest.mark.parametrize("shape", ["qwen3moe", "llama moe", "qwen3", "llama"])
def test_transformers_reads_the_weights_that_we_read(shape: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = decoder(shape, **WHOLE)
    save_model(model, WORDS, tmp_path / "m", dtype=FP8)
    types = {name: each.type for name, each in inspect_model(tmp_path / "m").headers.items()}
    eights = {name for name, kind in types.items() if kind == "F8_E4M3"}
    # Layers of four projections and all experts.
    assert len(eights) == 2 * (4 + model.config.experts * 3)
    assert {name + SCALE for name in eights} <= types.keys()
    ours, _ = load_model(tmp_path / "m")
    options = transformers.FineGrainedFP8Config(dequantize=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, quantization_config=options, local_files_only=True
    ).eval()
    ids = torch.tensor([WORDS.encode(["The patient was seen on ward seven"])[0]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
        assert (ours(ids) - model(ids)).abs().max() > 1e-3


def test_attention_of_other_sizes_stays_in_bf16(tmp_path: Path) -> None:
    save_model(decoder("qwen3moe", **{**WHOLE, "kv_heads": 2}), WORDS, tmp_path / "m", dtype=FP8)
    types = {name: each.type for name, each in inspect_model(tmp_path / "m").headers.items()}
    assert types["model.layers.0.self_attn.q_proj.weight"] == "BF16"
    assert types[DOWN] == "F8_E4M3"
    said = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert {"model.layers.1.self_attn.k_proj", "model.layers.0.mlp.gate", "lm_head"} <= set(
        said["modules_to_not_convert"]
    )
    assert not any("experts" in each or "norm" in each for each in said["modules_to_not_convert"])


def test_experts_that_are_no_whole_blocks_are_refused_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    model = decoder("qwen3moe", hidden=128, expert_hidden_size=96)
    with pytest.raises(CheckpointError, match=r"multiples of 128 for fp8, got \(96, 128\)"):
        save_model(model, WORDS, tmp_path / "m", dtype=FP8)
    assert not list(tmp_path.iterdir())


def test_numbers_and_scales_may_lie_in_different_files(tmp_path: Path) -> None:
    model = decoder("qwen3moe", **WHOLE)
    save_model(model, WORDS, tmp_path / "whole", dtype=FP8)
    save_model(model, WORDS, tmp_path / "split", dtype=FP8, shard_bytes=BLOCK * BLOCK)
    headers = inspect_model(tmp_path / "split").headers
    assert any(headers[n].path != headers[n + SCALE].path for n in headers if n + SCALE in headers)
    seen: list[tuple[int, int]] = []
    split, _ = load_model(tmp_path / "split", lambda *done: seen.append(done))
    whole, _ = load_model(tmp_path / "whole")
    assert seen[-1][0] == seen[-1][1]
    for (name, one), (_, other) in zip(
        split.named_parameters(), whole.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_published_folders_may_end_in_part_of_a_block(tmp_path: Path) -> None:
    model = decoder("qwen3moe", hidden=192, expert_hidden_size=160)
    save_model(model, WORDS, tmp_path / "m", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "m" / WEIGHTS)
    numbers = (tensors[DOWN].float() * 100).clamp(-448, 448).to(FP8)
    scale = torch.tensor([[0.01, 0.02], [0.03, 0.04]])
    _save(tmp_path / "m", {**tensors, DOWN: numbers, DOWN + SCALE: scale.bfloat16()}, announced())
    found, _ = load_model(tmp_path / "m")
    stored = found.get_submodule("blocks.0.experts.down").get_parameter("weight")[0]
    for row, column in ((0, 0), (127, 127), (128, 127), (191, 128), (191, 159)):
        wanted = numbers[row, column].float() * scale.bfloat16()[row // BLOCK, column // BLOCK]
        assert stored[row, column] == wanted


def announced(**changes: Any) -> dict[str, Any]:
    scheme = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return {**scheme, "weight_block_size": [BLOCK, BLOCK], **changes}


def _save(folder: Path, tensors: dict[str, torch.Tensor], scheme: dict[str, Any] | None) -> None:
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    said = {} if scheme is None else {"quantization_config": scheme}
    (folder / "config.json").write_text(json.dumps({**config, **said}))


def _shaped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, DOWN + SCALE: torch.ones(2, 1)}


def _without(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: each for name, each in tensors.items() if name != DOWN + SCALE}


def _no_number(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    numbers = tensors[DOWN].view(torch.uint8).clone()
    numbers[3, 5] = 0x7F  # e4m3's NaN
    return {**tensors, DOWN: numbers.view(FP8)}


def _eight_bit_norm(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**tensors, "model.norm.weight": tensors["model.norm.weight"].to(FP8)}


@pytest.mark.parametrize(
    ("damage", "scheme", "said"),
    [
        (dict, None, "Expected F32, F16, BF16 weights, got F8_E4M3"),
        (dict, announced(weight_block_size=[64, 64]), "blocks of 128 x 128"),
        (dict, announced(activation_scheme="static"), "blocks of 128 x 128"),
        (dict, {"quant_method": "fp8"}, "blocks of 128 x 128"),
        (dict, {"quant_method": "gptq", "bits": 4}, "blocks of 128 x 128"),
        (_without, announced(), "missing.*scale_inv"),
        (_shaped, announced(), r"Expected shape \(1, 1\).*scale_inv"),
        (_no_number, announced(), "NaN or infinity in .*down_proj"),
        (_eight_bit_norm, announced(), "matrices alone, got model.norm.weight"),
    ],
)
def test_a_damaged_folder_is_refused(
    damage: Any, scheme: dict[str, Any] | None, said: str, tmp_path: Path
) -> None:
    save_model(decoder("qwen3moe", **WHOLE), WORDS, tmp_path / "m", dtype=FP8)
    _save(tmp_path / "m", damage(load_file(tmp_path / "m" / WEIGHTS)), scheme)
    with pytest.raises(CheckpointError, match=said):
        load_model(tmp_path / "m")
