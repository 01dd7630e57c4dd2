"""What an artefact's own files say of themselves: architecture, shape, tokenizer."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer as Backend

from models.checkpoint import inspect_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.formats.files import CheckpointError
from models.names import Digest
from models.tokenizer import Tokenizer
from models.variants.extras import VariantError, need
from models.variants.gguf_tensors import HEAD, ROPE, tensors
from models.variants.onnx_file import read_initialisers
from models.variants.readback import check_names

_WITH_NORMS, _WITHOUT = ("qwen3", "qwen3moe"), ("llama",)
_TOKENIZER = ("model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id")


class Contents(BaseModel):
    """An artefact's own description, checked against the tensors that are there.

    Attributes:
        tokenizer: SHA-256 of all that decides how text is cut.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: str
    layers: int = Field(gt=0)
    experts: int = Field(gt=0)
    experts_per_token: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    tokenizer: Digest


def contents_of_hf(folder: Path) -> Contents:
    """Describe a Hugging Face folder; no weight is read.

    Raises:
        VariantError: see `models.checkpoint.inspect_model`.

    """
    try:
        found, tokenizer = inspect_model(folder), Tokenizer.load(folder)
    except CheckpointError as error:
        raise VariantError(str(error)) from error
    described = {"file": tokenizer.description(), "stops": tokenizer.stop_ids}
    return _contents(found.family.model_type, found.config, described)


def contents_of_gguf(path: Path) -> Contents:
    """Describe a GGUF file; no weight is read.

    Raises:
        MissingExtraError: `gguf` is not installed.
        VariantError: a damaged file, an architecture that is not written here, other tensors or
            shapes than the file's description asks for.

    """
    gguf = need("gguf", "edge")
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: each.contents() for name, each in reader.fields.items()}
        shapes = {each.name: tuple(map(int, reversed(each.shape))) for each in reader.tensors}
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise VariantError(
            f"Expected a whole GGUF file, got a damaged {path.name} ({error}). Take the artefact "
            "from where it was published."
        ) from error
    architecture = fields.get("general.architecture")
    if architecture not in (*_WITH_NORMS, *_WITHOUT):
        raise VariantError(
            f"Expected an architecture out of {', '.join((*_WITH_NORMS, *_WITHOUT))}, got "
            f"{architecture!r}. The file was not made here."
        )
    config = _config(architecture, fields, tied=HEAD not in shapes)
    _check_shapes(config, shapes)
    said = {name: fields.get(f"tokenizer.ggml.{name}") for name in _TOKENIZER}
    return _contents(architecture, config, said)


def contents_of_onnx(folder: Path) -> Contents:
    """Describe an ONNX decoder.

    Raises:
        MissingExtraError: `onnx` is not installed.
        VariantError: see `read_initialisers`; or no tokenizer.

    """
    config, _, _ = read_initialisers(folder)
    try:
        described = Backend.from_file(str(folder / "tokenizer.json")).to_str()
    except Exception as error:  # the library raises nothing narrower
        raise VariantError(
            f"Expected tokenizer.json beside the ONNX file, got none that holds ({error}). Take "
            "the artefact from where it was published."
        ) from error
    return _contents("onnx decoder", config, described)


def _config(architecture: str, fields: dict[str, Any], *, tied: bool) -> ModelConfig:
    said = {name.removeprefix(architecture + "."): each for name, each in fields.items()}
    try:
        return ModelConfig(
            vocab_size=said["vocab_size"],
            hidden_size=said["embedding_length"],
            layers=said["block_count"],
            heads=said["attention.head_count"],
            kv_heads=said["attention.head_count_kv"],
            head_dim=said["attention.key_length"],
            experts=said.get("expert_count", 1),
            experts_per_token=said.get("expert_used_count", 1),
            expert_hidden_size=said["feed_forward_length"],
            max_positions=said["context_length"],
            tie_embeddings=tied,
            qk_norm="head" if architecture in _WITH_NORMS else "none",
        )
    except (KeyError, ValidationError) as error:
        raise VariantError(
            f"Expected a GGUF file's description of its shape, got none that holds ({error}). Take "
            "the artefact from where it was published."
        ) from error


def _check_shapes(config: ModelConfig, shapes: dict[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in tensors(Decoder(config))}
    check_names(set(shapes) - {ROPE}, set(wanted))
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise VariantError(
                f"Expected shape {shape} of {name} as the file describes itself, got "
                f"{shapes[name]}. An expert is missing, or the file was put together from several."
            )


def _contents(architecture: str, config: ModelConfig, tokenizer: Any) -> Contents:
    said = json.dumps(tokenizer, sort_keys=True, ensure_ascii=False, default=str).encode()
    return Contents(
        architecture=architecture,
        layers=config.layers,
        experts=config.experts,
        experts_per_token=config.experts_per_token,
        vocabulary=config.vocab_size,
        tokenizer=hashlib.sha256(said).hexdigest(),
    )
