"""The shape of a model: a frozen description, and named presets."""

import tomllib
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RopeScaling(BaseModel):
    """Llama 3's stretching of rotary positions to more of them than were trained first.

    Attributes:
        factor: by which frequencies with few turns are divided.
        low_freq_factor, high_freq_factor: turns over original_max_positions below which a frequency
            is divided, and above which it is kept; between, the two are blended.
        original_max_positions: positions of the first training.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    factor: float = Field(ge=1, allow_inf_nan=False)
    low_freq_factor: float = Field(gt=0, allow_inf_nan=False)
    high_freq_factor: float = Field(gt=0, allow_inf_nan=False)
    original_max_positions: int = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> "RopeScaling":
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"Expected low_freq_factor < high_freq_factor, got {self.low_freq_factor} and "
                f"{self.high_freq_factor}."
            )
        return self


class ModelConfig(BaseModel):
    """Sizes of a sparse decoder in the Qwen3-MoE mathematics.

    Attributes:
        rope_scaling: None keeps rotary frequencies as rope_theta gives them.
        qk_norm: "head" normalises queries and keys per head (Qwen3-MoE); "none" does not (Mixtral).
        initializer_range: standard deviation of freshly drawn weights.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    vocab_size: int = Field(gt=0, le=2**24)
    hidden_size: int = Field(gt=0, le=2**20)
    layers: int = Field(gt=0, le=1024)
    heads: int = Field(gt=0, le=2**16)
    kv_heads: int = Field(gt=0, le=2**16)
    head_dim: int = Field(gt=0, le=2**16)
    experts: int = Field(gt=0, le=2**16)
    experts_per_token: int = Field(gt=0)
    expert_hidden_size: int = Field(gt=0, le=2**20)
    max_positions: int = Field(gt=0, le=2**22)
    rope_theta: float = Field(default=10_000.0, gt=0, allow_inf_nan=False)
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    tie_embeddings: bool = True
    qk_norm: Literal["head", "none"] = "head"
    initializer_range: float = Field(default=0.02, gt=0, allow_inf_nan=False)

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
        raise ValueError(
            f"Expected a preset out of {', '.join(presets)}, or a model folder on disk, got "
            f"{name!r}. Nothing is downloaded by name."
        )
    return ModelConfig(**presets[name])


def preset_names() -> tuple[str, ...]:
    """Names of the presets, in the order of their file."""
    return tuple(_presets())


def _presets() -> dict[str, Any]:
    return tomllib.loads(resources.files("models").joinpath("presets.toml").read_text())
