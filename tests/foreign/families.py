"""Tiny random models of other classes, in folders as transformers saves them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from models.tokenizer import Tokenizer

TEXTS = ("the left knee was stable at night", "a mild cough, no scan was needed", "dose of pain")
_LLAMA_LIKE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
_GEMMA = {**_LLAMA_LIKE, "head_dim": 16, "sliding_window": 8}
# `initializer_range` far above the usual one: activations of a trained model's size.
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "olmo2": _LLAMA_LIKE,
    "gemma2": {**_GEMMA, "query_pre_attn_scalar": 16},
    "gemma3_text": _GEMMA,
    "qwen2": _LLAMA_LIKE,
    "opt": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48,
        "max_position_embeddings": 64, "word_embed_proj_dim": 32,
    },
    "phi3": {**_LLAMA_LIKE, "original_max_position_embeddings": 16, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0,
        "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}},
    "olmoe": {**_LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2},
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 48, "max_position_embeddings": 64},
}  # fmt: skip
FAMILIES = ("gpt2", "olmo2", "gemma2", "gemma3_text", "qwen2")


def write_family(model_type: str, folder: Path, **changes: Any) -> Path:
    """Write a folder of 2 layers, 32 wide, with a tokenizer of 300 tokens; return it."""
    tokenizer = Tokenizer.train(TEXTS, 300)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    vocabulary = {"vocab_size": tokenizer.vocab_size, "initializer_range": 0.2}
    values = {**_SIZES[model_type], **vocabulary, **ids, **changes}
    config = transformers.AutoConfig.for_model(model_type, **values)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # transformers draws from the global generator
        network = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    network.save_pretrained(folder)
    tokenizer.save(folder)
    return folder
