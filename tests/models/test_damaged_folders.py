"""What is wrong with an imported folder is told in one clear error, and nothing is written."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import load_model
from models.formats.configs import read_config
from models.formats.files import CheckpointError
from tests.models.foreign_folders import LLAMA3, edit_config, make_folder

pytest.importorskip("transformers")

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Damage = Callable[[Path], object]

CONFIGS: dict[str, tuple[str, dict[str, Any], str]] = {
    # kind, changes, what the error says
    "another family": ("llama", {"model_type": "gpt2"}, "model_type"),
    "no family": ("llama", {"model_type": 3}, "model_type"),
    "another head": ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "causal"),
    "quantised": ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantization"),
    "attention bias": ("llama", {"attention_bias": True}, "attention_bias"),
    "feed-forward bias": ("llama", {"mlp_bias": True}, "mlp_bias"),
    "gelu": ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    "text as size": ("llama", {"hidden_size": "32"}, "hidden_size"),
    "text as heads": ("llama", {"num_key_value_heads": "2"}, "num_key_value_heads"),
    "bool as layers": ("llama", {"num_hidden_layers": True}, "num_hidden_layers"),
    "fraction as vocabulary": ("llama", {"vocab_size": 320.5}, "vocab_size"),
    "text as bool": ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    "list as eps": ("llama", {"rms_norm_eps": [1e-6]}, "rms_norm_eps"),
    "no layers": ("llama", {"num_hidden_layers": None}, "num_hidden_layers"),
    "negative": ("llama", {"num_hidden_layers": -2}, "num_hidden_layers"),
    "a billion layers": ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "groups that do not divide": ("llama", {"num_key_value_heads": 3}, "kv_heads"),
    "odd head": ("llama", {"head_dim": 15}, "head_dim"),
    "infinite theta": ("llama", {"rope_parameters": {"rope_theta": float("inf")}}, "rope_theta"),
    "yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
    "rope of a part": ("llama", {"partial_rotary_factor": 0.5}, "part of"),
    "rope per layer": ("llama", {"rope_parameters": {"full_attention": LLAMA3}}, "rotary"),
    "rope as list": ("llama", {"rope_parameters": [1]}, "rotary"),
    "two thetas": ("llama", {"rope_theta": 7.0}, "one rope_theta"),
    "two scalings": ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 9.0}}, "agree"),
    "no factor": ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "factor"),
    "factors out of order": (
        "llama", {"rope_parameters": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor",
    ),
    "unscaled weights": ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    "unsaid norm_topk_prob": ("qwen3_moe", {"norm_topk_prob": None}, "norm_topk_prob"),
    "dense layers between": ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    "a dense layer": ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
    "too many per token": ("qwen3_moe", {"num_experts_per_tok": 5}, "experts_per_token"),
    "two numbers of experts": ("qwen3_moe", {"num_experts": 4, "num_local_experts": 5}, "agree"),
    "sliding qwen": ("qwen3", {"use_sliding_window": True}, "use_sliding_window"),
    "sliding layers": ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
    "narrow window": ("mixtral", {"sliding_window": 63}, "sliding_window"),
    "text as window": ("mixtral", {"sliding_window": "64"}, "sliding_window"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("folders")
    for kind in ("llama", "qwen3", "qwen3_moe", "mixtral"):
        make_folder(base / kind, kind)
    return {path.name: path for path in base.iterdir()}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_not_computed_exactly_is_refused(
    case: str, folders: dict[str, Path]
) -> None:
    kind, changes, text = CONFIGS[case]
    config = json.loads((folders[kind] / "config.json").read_text())
    read_config(config)
    with pytest.raises(CheckpointError, match=text) as caught:
        read_config({**config, **changes})
    assert len(str(caught.value)) < 400


def write(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        found = load_file(folder / WHOLE)
        change(found)
        save_file(found, folder / WHOLE, {"format": "pt"})

    return damage


def spoil(value: float) -> Damage:
    return tensors(lambda found: found["model.layers.1.mlp.up_proj.weight"][2].fill_(value))


WEIGHTS: dict[str, tuple[Damage, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config not JSON": (write("config.json", "{"), "JSON"),
    "config not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "JSON"),
    "config not an object": (write("config.json", "[1]"), "object"),
    "config nested without end": (write("config.json", "[" * 100_000), "JSON"),
    "nan": (spoil(float("nan")), "finite"),
    "infinity": (spoil(float("-inf")), "finite"),
    "missing tensor": (tensors(lambda found: found.pop("model.norm.weight")), "missing"),
    "surplus tensor": (
        tensors(lambda found: found.update(other=torch.zeros(2))), "surplus .'other'.",
    ),
    "attention bias in the file": (
        tensors(lambda f: f.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})),
        "surplus",
    ),
    "wrong shape": (lambda folder: edit_config(folder, vocab_size=321), "shape"),
    "huge shape": (lambda folder: edit_config(folder, vocab_size=2**24), "shape"),
    "many layers": (lambda folder: edit_config(folder, num_hidden_layers=1024), "1024 layers"),
    "integer weights": (
        tensors(lambda f: f.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)})),
        "I8",
    ),
    "truncated": (lambda f: (f / WHOLE).write_bytes((f / WHOLE).read_bytes()[:-100]), "damaged"),
    "empty": (lambda folder: (folder / WHOLE).write_bytes(b""), "damaged"),
    "a pickle only": (
        lambda folder: (folder / WHOLE).rename(folder / "pytorch_model.bin"), "pickle.*Convert",
    ),
    "no weights": (lambda folder: (folder / WHOLE).unlink(), "none"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "AutoTokenizer"),
}  # fmt: skip


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-00002-of-*.safetensors"))[0]


def point(folder: Path, target: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = target
    (folder / INDEX).write_text(json.dumps(index))


def forget(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index))


def move_out(folder: Path) -> None:
    inner = shard(folder)
    outer = folder.parent / "elsewhere.safetensors"
    inner.rename(outer)
    inner.symlink_to(outer)


SHARDS: dict[str, tuple[Damage, str]] = {
    "missing shard": (lambda folder: shard(folder).unlink(), "model-00002-of"),
    "truncated shard": (
        lambda f: shard(f).write_bytes(shard(f).read_bytes()[:-1]), "model-00002-of",
    ),
    "shard of another model": (
        lambda folder: save_file({"x": torch.zeros(2)}, shard(folder)), "Copy the folder",
    ),
    "absolute path": (lambda f: point(f, str(shard(f).absolute())), "name of a file"),
    "path upwards": (lambda folder: point(folder, "../model-00002.safetensors"), "name of a file"),
    "the folder above": (lambda folder: point(folder, ".."), "name of a file"),
    "empty path": (lambda folder: point(folder, ""), "name of a file"),
    "zero byte": (lambda folder: point(folder, "a\0.safetensors"), "name of a file"),
    "a pickle in the index": (lambda folder: point(folder, "model.bin"), "safetensors file"),
    "number as path": (lambda folder: point(folder, 3), "weight_map"),
    "link out of the folder": (move_out, "link"),
    "index not JSON": (write(INDEX, "{"), "JSON"),
    "index without map": (write(INDEX, "{}"), "weight_map"),
    "index without a tensor": (forget, "Copy the folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_a_damaged_folder_is_a_clear_error(case: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "m", "llama")
    damage, text = WEIGHTS[case]
    damage(tmp_path / "m")
    with pytest.raises(CheckpointError, match=text):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("case", SHARDS)
def test_a_damaged_index_or_shard_is_a_clear_error(case: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "m", "llama", shard="20KB")
    load_model(tmp_path / "m")
    damage, text = SHARDS[case]
    damage(tmp_path / "m")
    with pytest.raises(CheckpointError, match=text):
        load_model(tmp_path / "m")


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, "llama", vocab_size=292)
    with pytest.raises(CheckpointError, match="at most 292 tokens"):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_moe", "mixtral"])
def test_no_value_of_any_key_gets_past_as_another_exception(
    kind: str, folders: dict[str, Path]
) -> None:
    config = json.loads((folders[kind] / "config.json").read_text())
    rope = {"rope_parameters": {**LLAMA3}}
    odd: list[Any] = ["x", [], {}, [{}], -1, 0, 2.5, 10**30, float("nan"), None, True]
    for value in odd:
        for key in [*config, "rope_scaling", "rope_theta", "partial_rotary_factor", "layer_types"]:
            refused_or_read({**config, key: value})
        for key in LLAMA3:
            refused_or_read({**config, **rope, "rope_parameters": {**LLAMA3, key: value}})


def refused_or_read(config: dict[str, Any]) -> None:
    with contextlib.suppress(CheckpointError):
        read_config(config)
