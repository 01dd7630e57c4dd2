"""The kinds of artefact: how each is sized, written, read back and opened in its runtime."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from models.checkpoint import save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.formats.families import writing_family
from models.formats.files import CheckpointError
from models.formats.fp8 import FP8, encoded
from models.formats.shards import Advance
from models.formats.tensors import named_views
from models.tokenizer import Tokenizer
from models.variants.contents import Contents, contents_of_gguf, contents_of_hf, contents_of_onnx
from models.variants.extras import Extra, VariantError
from models.variants.gguf_file import write_gguf
from models.variants.gguf_read import read_gguf
from models.variants.gguf_tensors import tensors
from models.variants.gguf_tokenizer import vocabulary
from models.variants.gguf_types import GGUF_FORMATS, GgufFormat, type_bytes, type_of
from models.variants.hf_read import read_hf
from models.variants.llama_runtime import LlamaRuntime
from models.variants.names import Container
from models.variants.onnx_file import ONNX_FILE, onnx_bytes, read_onnx, write_onnx
from models.variants.onnx_runtime import OnnxRuntime
from models.variants.onnx_tensors import ONNX_FORMATS, OnnxFormat
from models.variants.readback import Readback
from models.variants.runtime import Runtime
from models.variants.transformers_runtime import TransformersRuntime

GGUF_FILE = "model.gguf"

_HF_TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp8": FP8}
_HEADER_BYTES = 160  # of a tensor beside its name, in either kind of file
_CONFIG_BYTES = 4096  # config.json


@dataclass(frozen=True)
class Opening:
    """How an artefact is opened.

    Attributes:
        positions: longest sequence. begin: id of begin-of-text.
        exact: with the runtime's most precise arithmetic, instead of its usual one.
        every_logit: logits of every position are going to be asked for, not the next token only.

    """

    positions: int
    begin: int
    exact: bool = False
    every_logit: bool = True


class Kind(Protocol):
    """A kind of artefact.

    Attributes:
        extra: brings the runtime. number_formats: by bits, the most precise first.

    """

    extra: Extra
    number_formats: Mapping[int, tuple[str, ...]]

    def cache_width(self, number_format: str) -> int:
        """Bytes of one cached number in the runtime."""

    def size(self, config: ModelConfig, tokenizer: Tokenizer, number_format: str) -> int:
        """Bytes of all files, at most; no weight is allocated."""

    def write(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        folder: Path,
        number_format: str,
        advance: Advance,
    ) -> None:
        """Make `folder` with the artefact's files; whoever calls makes it appear whole."""

    def read_back(self, folder: Path, exact: Decoder) -> Readback:
        """Read the weights that were written, and how far they are from `exact`."""

    def inspect(self, folder: Path) -> Contents:
        """Say what the artefact's files say of themselves; no weight is read."""

    def open(self, folder: Path, opening: Opening) -> Runtime:
        """Open the artefact of a folder in its runtime."""


class Gguf:
    """A GGUF file for llama.cpp."""

    extra: Extra = "edge"
    number_formats: Mapping[int, tuple[str, ...]] = {
        32: ("f32",),
        16: ("f16", "bf16"),
        8: ("q8_0",),
        4: ("q4_k_m", "q4_0"),
    }

    def cache_width(self, number_format: str) -> int:
        """See `Kind.cache_width`: llama.cpp's own default is fp16."""
        return 2

    def size(self, config: ModelConfig, tokenizer: Tokenizer, number_format: str) -> int:
        """See `Kind.size`."""
        words = vocabulary(tokenizer, config.vocab_size)
        texts = (*words.tokens, *words.merges, words.chat_template or "")
        described = sum(len(text.encode()) + 12 for text in texts) + _CONFIG_BYTES
        with torch.device("meta"):
            model = Decoder(config)
        return described + sum(
            type_bytes(
                tensor.shape, type_of(name, tensor.shape, _gguf(number_format), config.experts)
            )
            + len(name)
            + _HEADER_BYTES
            for name, tensor in tensors(model)
        )

    def write(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        folder: Path,
        number_format: str,
        advance: Advance,
    ) -> None:
        """See `Kind.write`."""
        folder.mkdir(parents=True)
        write_gguf(model, tokenizer, folder / GGUF_FILE, _gguf(number_format), advance)

    def read_back(self, folder: Path, exact: Decoder) -> Readback:
        """See `Kind.read_back`."""
        return read_gguf(folder / GGUF_FILE, exact)

    def inspect(self, folder: Path) -> Contents:
        """See `Kind.inspect`."""
        return contents_of_gguf(folder / GGUF_FILE)

    def open(self, folder: Path, opening: Opening) -> Runtime:
        """See `Kind.open`: exact keeps keys and values in fp32."""
        return LlamaRuntime(
            folder / GGUF_FILE,
            opening.positions,
            exact_cache=opening.exact,
            every_logit=opening.every_logit,
        )


class HuggingFace:
    """A Hugging Face folder for transformers and vLLM."""

    extra: Extra = "foreign"
    number_formats: Mapping[int, tuple[str, ...]] = {32: ("f32",), 16: ("bf16",), 8: ("fp8",)}

    def cache_width(self, number_format: str) -> int:
        """See `Kind.cache_width`: as the activations."""
        return 4 if number_format == "f32" else 2

    def size(self, config: ModelConfig, tokenizer: Tokenizer, number_format: str) -> int:
        """See `Kind.size`."""
        with torch.device("meta"):
            views = dict(named_views(Decoder(config), writing_family(config, dense=False)))
        stored = _hf_tensors(views, _HF_TYPES[number_format])
        weights = sum(each.nbytes + len(name) + _HEADER_BYTES for name, each in stored.items())
        return weights + tokenizer.stored_bytes + _CONFIG_BYTES

    def write(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        folder: Path,
        number_format: str,
        advance: Advance,
    ) -> None:
        """See `Kind.write`."""
        save_model(model, tokenizer, folder, dtype=_HF_TYPES[number_format], advance=advance)

    def read_back(self, folder: Path, exact: Decoder) -> Readback:
        """See `Kind.read_back`."""
        return read_hf(folder, exact)

    def inspect(self, folder: Path) -> Contents:
        """See `Kind.inspect`."""
        return contents_of_hf(folder)

    def open(self, folder: Path, opening: Opening) -> Runtime:
        """See `Kind.open`: exact computes in fp32; fp8 is expanded first (it wants a GPU)."""
        return TransformersRuntime(folder, opening.begin, exact=opening.exact)


class Onnx:
    """An ONNX decoder for ONNX Runtime, with its tokenizer beside it."""

    extra: Extra = "mobile"
    number_formats: Mapping[int, tuple[str, ...]] = {32: ("f32",), 8: ("int8",), 4: ("int4",)}

    def cache_width(self, number_format: str) -> int:
        """See `Kind.cache_width`: keys and values are fp32."""
        return 4

    def size(self, config: ModelConfig, tokenizer: Tokenizer, number_format: str) -> int:
        """See `Kind.size`."""
        return onnx_bytes(config, _onnx(number_format)) + tokenizer.stored_bytes + _CONFIG_BYTES

    def write(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        folder: Path,
        number_format: str,
        advance: Advance,
    ) -> None:
        """See `Kind.write`."""
        folder.mkdir(parents=True)
        write_onnx(model, folder, _onnx(number_format), advance)
        tokenizer.save(folder)

    def read_back(self, folder: Path, exact: Decoder) -> Readback:
        """See `Kind.read_back`."""
        return read_onnx(folder, exact)

    def inspect(self, folder: Path) -> Contents:
        """See `Kind.inspect`."""
        return contents_of_onnx(folder)

    def open(self, folder: Path, opening: Opening) -> Runtime:
        """See `Kind.open`: its arithmetic is the file's."""
        return OnnxRuntime(folder / ONNX_FILE, opening.begin)


KINDS: Mapping[Container, Kind] = {"gguf": Gguf(), "hf": HuggingFace(), "onnx": Onnx()}


def _hf_tensors(views: Mapping[str, Tensor], dtype: torch.dtype) -> Mapping[str, Tensor]:
    """What a folder stores of views on the meta device."""
    if dtype != FP8:
        return {name: view.to(dtype) for name, view in views.items()}
    try:
        return encoded(views)
    except CheckpointError as error:
        raise VariantError(str(error)) from error


def _gguf(number_format: str) -> GgufFormat:
    return next(each for each in GGUF_FORMATS if each == number_format)


def _onnx(number_format: str) -> OnnxFormat:
    return next(each for each in ONNX_FORMATS if each == number_format)


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of an artefact's folder, in order of name."""
    yield from sorted(path for path in folder.iterdir() if path.is_file())
