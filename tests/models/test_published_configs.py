"""The `config.json` of published models is read, and counted to the last parameter.

Totals: as the models' pages on the Hugging Face Hub state them. Active: "12.9B" of Mixtral 8x7B
(arXiv 2401.04088), "3.3B" of Qwen3-30B-A3B (arXiv 2505.09388).
"""

from typing import Any

import pytest

from models.counts import parameter_counts
from models.formats.configs import read_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
SCALING = {
    "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
QWEN: dict[str, Any] = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "head_dim": 128,
    "eos_token_id": 151645, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-06,
    "max_position_embeddings": 40960, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": None, "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {**QWEN, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}

# name: (config.json, parameters, active parameters in units of 1e8)
PUBLISHED: dict[str, tuple[dict[str, Any], int, int]] = {
    "Llama-3.2-1B": ({
        **LLAMA, "head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "rope_scaling": {**SCALING, "factor": 32.0},
        "tie_word_embeddings": True,
    }, 1_235_814_400, 12),
    "Llama-3.1-8B": ({
        **LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "rope_scaling": SCALING, "tie_word_embeddings": False,
    }, 8_030_261_248, 80),
    "Qwen3-0.6B": ({
        **QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "tie_word_embeddings": True,
    }, 596_049_920, 6),
    "Qwen3-8B": ({
        **QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
        "num_hidden_layers": 36, "num_key_value_heads": 8, "tie_word_embeddings": False,
    }, 8_190_735_360, 82),
    "Qwen3-30B-A3B": ({
        **QWEN, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "decoder_sparse_step": 1, "hidden_size": 2048, "intermediate_size": 6144,
        "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "tie_word_embeddings": False,
    }, 30_532_122_624, 34),
    "Mixtral-8x7B": ({
        "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral",
        "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
        "tie_word_embeddings": False, "use_cache": True, "vocab_size": 32000,
    }, 46_702_792_704, 129),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_counted_exactly(name: str) -> None:
    hf, total, active = PUBLISHED[name]
    family, config = read_config(hf)
    counts = parameter_counts(config)
    # A dense model gets a router of one row per layer, which decides nothing.
    routers = config.layers * config.hidden_size if family.router is None else 0
    assert counts.total - routers == total
    assert round(counts.active / 1e8) == active
