"""Model folders: a Hugging Face folder is our file format, read and written exactly.

Qwen3-MoE, Mixtral, Qwen3 and Llama 3 folders are read and written. Only safetensors are read. A
folder appears whole or not at all: written beside its place, synced, and renamed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.config import ModelConfig
from models.decoder import Decoder
from models.experts import SparseExperts
from models.formats.configs import read_config, write_config
from models.formats.families import Family, writing_family
from models.formats.files import CheckpointError, inside, read_object, whole_folder
from models.formats.fp8 import FP8, SCALE, encoded, expanded, fp8_config, is_fp8, scale_shapes
from models.formats.shards import (
    SHARD_BYTES,
    Advance,
    Stored,
    check_finite,
    check_headers,
    read_headers,
    read_tensors,
    write_tensors,
)
from models.formats.tensors import named_views
from models.tokenizer import Tokenizer

_HEAD, _TABLE = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class Inspected:
    """What a model folder says of itself, checked against the headers of its weights."""

    family: Family
    config: ModelConfig
    headers: Mapping[str, Stored]


def inspect_model(folder: Path) -> Inspected:
    """Read a model folder's description; no weight is read or allocated.

    Raises:
        CheckpointError: see `load_model`, except for values and the tokenizer.

    """
    path = inside(folder, "config.json")
    hf = read_object(path)
    try:
        family, config = read_config(hf)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    headers = read_headers(folder, fp8=is_fp8(hf))
    if config.layers * config.experts > len(headers):
        raise CheckpointError(
            f"Expected {config.layers} layers of {config.experts} experts as config.json says, got "
            f"{len(headers)} tensors. The weights belong to another configuration."
        )
    with torch.device("meta"):
        shape = Decoder(config)
    wanted = {name: tuple(view.shape) for name, view in named_views(shape, family)}
    if config.tie_embeddings and _HEAD in headers:
        wanted[_HEAD] = wanted[_TABLE]
    wanted |= scale_shapes({name: (each.shape, each.type) for name, each in headers.items()})
    check_headers(headers, wanted)
    return Inspected(family, config, headers)


def load_model(
    folder: Path, advance: Advance = lambda done, total: None
) -> tuple[Decoder, Tokenizer]:
    """Read a model folder; fp16, bf16 and fp8 weights become fp32.

    A dense model becomes one expert per layer, which every token is sent to.

    Args:
        folder: a folder of a family of `models.formats.families`.
        advance: called with (tensors read, tensors in all).

    Raises:
        CheckpointError: a missing or damaged file, a pickle, a path out of the folder, another
            architecture, missing or surplus tensors, wrong shapes, values that are not finite, a
            tokenizer larger than the model's vocabulary.

    """
    found = inspect_model(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > found.config.vocab_size:
        raise CheckpointError(
            f"Expected a tokenizer of at most {found.config.vocab_size} tokens, which the model "
            f"has embeddings for, got {tokenizer.vocab_size}. Use the tokenizer of this model."
        )
    model = Decoder(found.config)
    _fill(model, found, advance)
    return model, tokenizer


def save_model(
    model: Decoder,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int = SHARD_BYTES,
    advance: Advance = lambda done, total: None,
) -> None:
    """Write a folder that transformers loads unmodified; replaces `folder` atomically.

    With query-key norms it is a Qwen3-MoE folder, without them a Mixtral folder; a model of one
    expert per layer, behind a router of zeros, is a Qwen3 or a Llama folder.

    Args:
        dtype: of the weights on disk; float8_e4m3fn for the layout of `models.formats.fp8`.
        shard_bytes: beyond it, they are split over several files.
        advance: called with (tensors written, tensors in all).

    Raises:
        CheckpointError: adapters are not merged, owned experts are in training, a weight is not
            finite, or has a shape that fp8 cannot be written in.

    """
    if any(layer.lora_A is not None for _, layer in model.adapted_layers()):
        raise CheckpointError("Expected merged weights, got adapters. Call merge_lora first.")
    if any(block.owned is not None for block in _expert_blocks(model)):
        raise CheckpointError(
            "Expected a model without a bank of owned experts, got one. Write the bank as a module "
            "and compose it with the base."
        )
    family = written_as(model)
    views = dict(named_views(model, family))
    for name, view in views.items():
        check_finite(name, view)
    hf = _config_object(model.config, family, tokenizer, torch.bfloat16 if dtype == FP8 else dtype)
    tensors, stored = (encoded(views), None) if dtype == FP8 else (views, dtype)
    if stored is None:
        hf["quantization_config"] = fp8_config(tensors)
    with whole_folder(folder) as part:
        write_tensors(tensors.items(), part, stored, shard_bytes, advance)
        (part / "config.json").write_text(json.dumps(hf, indent=2, sort_keys=True) + "\n")
        tokenizer.save(part)


def written_as(model: Decoder) -> Family:
    """Return the family that `save_model` writes a model as; what it leaves out is zero."""
    idle = model.config.experts == 1 and not any(
        block.router.weight.any() for block in _expert_blocks(model)
    )
    return writing_family(model.config, dense=idle)


def model_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all that a folder holds of a model, as hex.

    That is its parameters in order, then the buffers that other classes store.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = ((n, b) for n, b in model.state_dict().items() if n not in parameters)
    digest = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), buffers):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _fill(model: Decoder, found: Inspected, advance: Advance) -> None:
    """Copy the folder's weights into the model, one tensor at a time."""
    places = dict(named_views(model, found.family))
    if found.family.router is None:
        model.still_idle_routers()
    late, total = None, sum(not name.endswith(SCALE) for name in found.headers)
    for done, (name, tensor) in enumerate(expanded(read_tensors(found.headers)), 1):
        if name in places:
            places[name].copy_(tensor)
        else:
            late = tensor
        advance(done, total)
    if late is not None and not torch.equal(late.float(), model.embedding):
        raise CheckpointError(
            f"Expected {_HEAD} to equal {_TABLE} where tie_word_embeddings is true, got other "
            "values. Set tie_word_embeddings to false in config.json."
        )


def _expert_blocks(model: Decoder) -> Iterator[SparseExperts]:
    return (module for module in model.modules() if isinstance(module, SparseExperts))


def _config_object(
    config: ModelConfig, family: Family, tokenizer: Tokenizer, dtype: torch.dtype
) -> dict[str, Any]:
    stops = tokenizer.stop_ids
    hf = write_config(config, family)
    hf["torch_dtype"] = str(dtype).removeprefix("torch.")
    hf["bos_token_id"] = tokenizer.begin_of_text_id
    hf["eos_token_id"] = stops[0] if len(stops) == 1 else list(stops)
    return hf
