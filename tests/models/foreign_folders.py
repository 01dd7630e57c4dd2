"""Small random models of transformers' classes, saved as their folders."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.models.tokenizers import qwen

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
_CLASSES = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
}
_SIZES: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
_MORE: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "llama": {"rope_parameters": LLAMA3},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24},
}  # fmt: skip


def make_folder(
    folder: Path,
    kind: str,
    *,
    shard: str = "5GB",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Any:
    """Save a random model of a kind with a tokenizer; returns transformers' model in fp32."""
    import transformers  # noqa: PLC0415

    config_name, class_name = _CLASSES[kind]
    config = getattr(transformers, config_name)(**{**_SIZES, **_MORE[kind], **changes})
    model = getattr(transformers, class_name)(config).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        norm = "norm" in name
        parameter.data.normal_(1.0 if norm else 0.0, 0.2, generator=generator)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    qwen(folder)
    return model.float()


def edit_config(folder: Path, remove: tuple[str, ...] = (), **changes: Any) -> None:
    """Change keys of a folder's config.json."""
    path = folder / "config.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in remove}
    path.write_text(json.dumps({**kept, **changes}))
