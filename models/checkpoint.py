"""Model folders: a Hugging Face Qwen3-MoE folder is our file format, read and written exactly.

Only safetensors are read. A folder appears whole or not at all: it is written beside its place,
synced, and renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.config import ModelConfig, from_huggingface, to_huggingface
from models.decoder import Block, Decoder
from models.tokenizer import Tokenizer

_WEIGHTS = "model.safetensors"


class CheckpointError(ValueError):
    """A model folder is incomplete, damaged or of another architecture."""


def save_model(model: Decoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Qwen3-MoE folder that transformers loads unmodified; replaces `folder` atomically.

    Raises:
        CheckpointError: adapters are not merged, or a weight is not finite.

    """
    if any(layer.lora_A is not None for _, layer in model.adapted_layers()):
        raise CheckpointError("Expected merged weights, got adapters. Call merge_lora first.")
    tensors = to_tensors(model)
    _check_finite(tensors)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(tensors, part / _WEIGHTS, metadata={"format": "pt"})
    config = json.dumps(to_huggingface(model.config), indent=2, sort_keys=True) + "\n"
    (part / "config.json").write_text(config)
    tokenizer.save(part)
    for path in part.iterdir():
        _sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    _sync(folder.parent)


def load_model(folder: Path) -> tuple[Decoder, Tokenizer]:
    """Read a model folder.

    Raises:
        CheckpointError: a missing file, another architecture, missing or surplus tensors, wrong
            shapes, values that are not finite, a truncated file.

    """
    config_path, weights = folder / "config.json", folder / _WEIGHTS
    for path in (config_path, weights):
        if not path.is_file():
            raise CheckpointError(
                f"Expected {path.name} in {folder}, got none. Point at a folder that holds "
                "config.json, model.safetensors and tokenizer.json."
            )
    try:
        config = from_huggingface(json.loads(config_path.read_text()))
    except ValueError as error:
        raise CheckpointError(f"{config_path}: {error}") from error
    model = Decoder(config)
    from_tensors(model, _read(weights))
    return model, Tokenizer.load(folder)


def to_tensors(model: Decoder) -> dict[str, Tensor]:
    """Return the weights under Hugging Face's names."""
    tensors = {}
    for name, views in _hf_views(model):
        tensors[name] = views.detach().clone(memory_format=torch.contiguous_format)
    return tensors


@torch.no_grad()
def from_tensors(model: Decoder, tensors: Mapping[str, Tensor]) -> None:
    """Fill `model` from Hugging Face-named tensors; checks names, shapes and finiteness first."""
    wanted = dict(_hf_views(model))
    missing, surplus = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if model.config.tie_embeddings and surplus == ["lm_head.weight"]:
        surplus = []
    if missing or surplus:
        raise CheckpointError(
            f"Expected exactly the tensors of config.json, got missing {missing[:3]}, surplus "
            f"{surplus[:3]}. The weights belong to another configuration."
        )
    for name, place in wanted.items():
        if tensors[name].shape != place.shape:
            raise CheckpointError(
                f"Expected shape {tuple(place.shape)} for {name}, got "
                f"{tuple(tensors[name].shape)}. The weights belong to another configuration."
            )
    _check_finite(tensors)
    for name, place in wanted.items():
        place.copy_(tensors[name])


def model_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters in order, as hex."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}:{tuple(parameter.shape)}:{parameter.dtype};".encode())
        digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hf_views(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, view into our fused parameter)."""
    config = model.config
    yield "model.embed_tokens.weight", model.embedding.data
    yield "model.norm.weight", model.norm.weight.data
    if not config.tie_embeddings:
        yield "lm_head.weight", model.head.data
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        yield from _block_views(f"model.layers.{index}.", block, config)


def _block_views(prefix: str, block: Block, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    attention, experts = block.attention, block.experts
    yield prefix + "input_layernorm.weight", block.attention_norm.weight.data
    yield prefix + "post_attention_layernorm.weight", block.experts_norm.weight.data
    sizes = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
    parts = torch.split(attention.qkv.weight.data, sizes)
    for letter, part in zip("qkv", parts, strict=True):
        yield f"{prefix}self_attn.{letter}_proj.weight", part
    yield prefix + "self_attn.o_proj.weight", attention.out.weight.data
    if attention.q_norm is not None and attention.k_norm is not None:
        yield prefix + "self_attn.q_norm.weight", attention.q_norm.weight.data
        yield prefix + "self_attn.k_norm.weight", attention.k_norm.weight.data
    yield prefix + "mlp.gate.weight", experts.router.weight.data
    for expert in range(config.experts):
        gate, up = experts.gate_up.weight.data[expert].chunk(2)
        yield f"{prefix}mlp.experts.{expert}.gate_proj.weight", gate
        yield f"{prefix}mlp.experts.{expert}.up_proj.weight", up
        yield f"{prefix}mlp.experts.{expert}.down_proj.weight", experts.down.weight.data[expert]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"Expected a whole safetensors file, got a damaged {path} ({error}). Copy it again."
        ) from error


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"Expected finite weights, got NaN or infinity in {name}. The model is damaged."
            )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
