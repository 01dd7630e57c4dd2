"""The shape of a model: a frozen description, named presets, and Hugging Face's spelling of it."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ModelConfig(BaseModel):
    """Sizes of a sparse decoder in the Qwen3-MoE mathematics.

    Attributes:
        qk_norm: "head" normalises queries and keys per head (Qwen3-MoE); "none" does not (Mixtral).
        initializer_range: standard deviation of freshly drawn weights.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    experts: int = Field(gt=0)
    experts_per_token: int = Field(gt=0)
    expert_hidden_size: int = Field(gt=0)
    max_positions: int = Field(gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    tie_embeddings: bool = True
    qk_norm: Literal["head", "none"] = "head"
    initializer_range: float = Field(default=0.02, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        if self.heads % self.kv_heads:
            raise ValueError(
                f"Expected heads to be a multiple of kv_heads, got {self.heads} and "
                f"{self.kv_heads}. Set kv_heads to a divisor of heads."
            )
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"Expected experts_per_token <= experts, got {self.experts_per_token} of "
                f"{self.experts}. Lower experts_per_token."
            )
        if self.head_dim % 2:
            raise ValueError(f"Expected an even head_dim for RoPE, got {self.head_dim}.")
        return self


def preset(name: str) -> ModelConfig:
    """Return the preset `name`, or raise ValueError listing the presets there are."""
    presets = _presets()
    if name not in presets:
        raise ValueError(f"Expected a preset out of {', '.join(presets)}, got {name!r}.")
    return ModelConfig(**presets[name])


def preset_names() -> tuple[str, ...]:
    """Names of the presets, in the order of their file."""
    return tuple(_presets())


def _presets() -> dict[str, Any]:
    return tomllib.loads(resources.files("models").joinpath("presets.toml").read_text())


# Ours -> transformers' Qwen3MoeConfig.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "expert_hidden_size": "moe_intermediate_size",
    "max_positions": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
}

# What a Qwen3-MoE folder must say for our mathematics to be its mathematics.
_FIXED = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_act": "silu",
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_bias": False,
    "use_sliding_window": False,
}


def to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """Return the `config.json` of a Qwen3-MoE folder; renamed keys appear in both spellings."""
    if config.qk_norm != "head":
        raise ValueError(
            "Expected qk_norm = 'head' for a Qwen3-MoE folder, got 'none': that class always "
            "normalises queries and keys. Train with qk_norm = 'head' to export."
        )
    hf = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    hf["num_local_experts"] = config.experts
    hf["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    hf["intermediate_size"] = config.expert_hidden_size
    hf["router_aux_loss_coef"] = 0.0
    hf["torch_dtype"] = "float32"
    return {**hf, **_FIXED}


def from_huggingface(hf: Mapping[str, Any]) -> ModelConfig:
    """Read a Qwen3-MoE `config.json`.

    Raises:
        ValueError: another architecture, or an option this decoder does not compute.

    """
    for key, expected in _FIXED.items():
        if hf.get(key, expected) != expected:
            raise ValueError(
                f"Expected {key} = {expected!r} in config.json, got {hf[key]!r}. "
                "Only Qwen3-MoE folders with every layer sparse are read."
            )
    spelled = dict(hf)
    spelled.setdefault("num_experts", hf.get("num_local_experts"))
    rope = hf.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"Expected rope_type 'default', got {rope['rope_type']!r}.")
    spelled.setdefault("rope_theta", rope.get("rope_theta", 10_000.0))
    missing = [theirs for theirs in _FIELDS.values() if spelled.get(theirs) is None]
    if missing:
        raise ValueError(f"Expected {', '.join(missing)} in config.json, got none of them.")
    return ModelConfig(**{ours: spelled[theirs] for ours, theirs in _FIELDS.items()})
