"""A decoder and its tokenizer as one GGUF file, which llama.cpp runs.

The specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Tensors are rounded
and written one at a time.
"""

import ctypes
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.formats.shards import Advance, check_finite
from models.tokenizer import Tokenizer
from models.variants.extras import VariantError, need
from models.variants.gguf_tensors import architecture, tensors
from models.variants.gguf_tokenizer import Vocabulary, vocabulary
from models.variants.gguf_types import GgufFormat, type_bytes, type_of
from models.variants.llama_runtime import llama_cpp

_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "bf16": 32}
_EXTRA: Final = "edge"


def write_gguf(
    model: Decoder,
    tokenizer: Tokenizer,
    path: Path,
    kind: GgufFormat,
    advance: Advance = lambda done, total: None,
) -> None:
    """Write a GGUF file of a format.

    Args:
        model: merged, on CPU in fp32.
        path: to be written; whoever calls makes it appear whole.
        advance: called with (tensors written, tensors in all).

    Raises:
        MissingExtraError: `gguf` is not installed, or for q4_k_m llama-cpp-python.
        VariantError: an architecture or a tokenizer that llama.cpp does not have.
        CheckpointError: a weight is not finite.

    """
    if kind != "q4_k_m":
        _write(model, tokenizer, path, kind, advance)
        return
    llama_cpp()  # is it there, before the work
    exact = path.with_name(path.name + ".f32")
    try:
        _write(model, tokenizer, exact, "f32", advance)
        quantise(exact, path, _FILE_TYPES[kind])
    finally:
        exact.unlink(missing_ok=True)


def _write(
    model: Decoder, tokenizer: Tokenizer, path: Path, kind: GgufFormat, advance: Advance
) -> None:
    gguf = need("gguf", _EXTRA)
    config = model.config
    words = vocabulary(tokenizer, config.vocab_size)
    writer = gguf.GGUFWriter(path, architecture(config))
    try:
        _describe(writer, config, kind)
        _describe_tokenizer(writer, words, gguf.TokenType)
        types = {}
        for name, tensor in tensors(model):
            chosen = type_of(name, tensor.shape, kind)
            types[name] = gguf.GGMLQuantizationType[chosen]
            size = type_bytes(tensor.shape, chosen)
            shape = tuple(tensor.shape)
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (name, tensor) in enumerate(tensors(model), 1):
            writer.write_tensor_data(_rounded(name, tensor, types[name]))
            advance(done, len(types))
    finally:
        writer.close()


def _rounded(name: str, tensor: Tensor, chosen: Any) -> Any:
    """Return a tensor's bytes in a type, as a numpy array."""
    quants = need("gguf.quants", _EXTRA)
    check_finite(name, tensor)
    exact = tensor.detach().to(torch.float32).contiguous()
    if chosen.name == "F16" and not torch.isfinite(exact.half()).all():
        raise VariantError(
            f"Expected weights within fp16's range, got larger ones in {name}. Export bf16."
        )
    return quants.quantize(exact.numpy(), chosen)


def _describe(writer: Any, config: ModelConfig, kind: GgufFormat) -> None:
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(2)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.expert_hidden_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.experts > 1:
        writer.add_expert_count(config.experts)
        writer.add_expert_used_count(config.experts_per_token)
        writer.add_expert_feed_forward_length(config.expert_hidden_size)


def _describe_tokenizer(writer: Any, words: Vocabulary, kinds: Any) -> None:
    types = [kinds.NORMAL] * len(words.tokens)
    for ids, kind in (
        (words.control, kinds.CONTROL),
        (words.added, kinds.USER_DEFINED),
        (words.unused, kinds.UNUSED),
    ):
        for number in ids:
            types[number] = kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(types)
    writer.add_token_merges(words.merges)
    writer.add_bos_token_id(words.begin)
    writer.add_add_bos_token(True)  # as every document of training begins
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, stop in zip(adders, words.stops, strict=False):
        add(stop)
    if words.chat_template is not None:
        writer.add_chat_template(words.chat_template)


def quantise(source: Path, target: Path, file_type: int) -> None:
    """Let llama.cpp round an exact GGUF file to one of its file types (llama.h, llama_ftype).

    Raises:
        MissingExtraError: llama-cpp-python is not installed. VariantError: llama.cpp fails.

    """
    llama = llama_cpp()
    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, torch.get_num_threads()
    failed = llama.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if failed:
        raise VariantError(
            f"Expected llama.cpp to quantise {source.name}, got its error {failed}. Export q8_0."
        )
