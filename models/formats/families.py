"""The families whose Hugging Face folders are read: names of tensors, and what they leave out.

They are our decoder with and without query-key norms, with several experts per layer or with one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from models.config import ModelConfig
from models.formats.files import CheckpointError
from models.formats.fp8 import is_fp8


@dataclass(frozen=True)
class Family:
    """A class of transformers that computes what our decoder computes.

    Attributes:
        model_type, architecture: as in `config.json`.
        qk_norm: as in ModelConfig.
        router: a layer's router, or None for a dense feed-forward block, which is one expert.
        expert: prefix of an expert's maps; `{}` is its index. gate, up, down: their names.
        expert_width: the key of an expert's hidden width.
        required: what our mathematics asks of other keys.
        defaults: the class's own values of keys that a `config.json` may leave out.

    """

    model_type: str
    architecture: str
    qk_norm: Literal["head", "none"]
    router: str | None
    expert: str
    gate: str
    up: str
    down: str
    expert_width: str
    required: Mapping[str, Any]
    defaults: Mapping[str, Any]


_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
_QWEN: dict[str, Any] = {"attention_bias": False, "use_sliding_window": False}

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    qk_norm="head",
    router="mlp.gate",
    expert="mlp.experts.{}.",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
    expert_width="moe_intermediate_size",
    required={
        "hidden_act": "silu",
        **_QWEN,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    defaults={
        **_DEFAULTS,
        **_QWEN,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
)
MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    qk_norm="none",
    router="block_sparse_moe.gate",
    expert="block_sparse_moe.experts.{}.",
    gate="w1",
    up="w3",
    down="w2",
    expert_width="intermediate_size",
    required={"hidden_act": "silu"},
    defaults={**_DEFAULTS, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0},
)
QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    qk_norm="head",
    router=None,
    expert="mlp.",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
    expert_width="intermediate_size",
    required={"hidden_act": "silu", **_QWEN},
    defaults={**_DEFAULTS, **_QWEN, "head_dim": 128},
)
LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    qk_norm="none",
    router=None,
    expert="mlp.",
    gate="gate_proj",
    up="up_proj",
    down="down_proj",
    expert_width="intermediate_size",
    required={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    defaults={**_DEFAULTS, "attention_bias": False, "mlp_bias": False},
)
FAMILIES = (QWEN3_MOE, MIXTRAL, QWEN3, LLAMA)


def family_of(hf: Mapping[str, Any]) -> Family:
    """Return the family of a `config.json`.

    Raises:
        CheckpointError: none of ours, a model with another head, or weights quantised otherwise
            than `models.formats.fp8` reads.

    """
    known = {family.model_type: family for family in FAMILIES}
    kind = hf.get("model_type")
    family = known.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise CheckpointError(
            f"Expected model_type out of {', '.join(known)}, got {kind!r}. Only these become this "
            "decoder, which generation here, owned experts, upcycling and exports need. Any other "
            "causal model trains in its own class through LoRA: arion simulate --model DIR."
        )
    if hf.get("architectures") not in (None, [family.architecture]):
        raise CheckpointError(
            f"Expected architectures = ['{family.architecture}'], got {hf['architectures']!r}. "
            "Only causal language models are read."
        )
    is_fp8(hf)
    return family


def writing_family(config: ModelConfig, *, dense: bool) -> Family:
    """Return the family that a decoder is written as.

    Args:
        dense: one expert per layer, and routers of zeros, which decide nothing and are left out.

    """
    if dense:
        return QWEN3 if config.qk_norm == "head" else LLAMA
    return QWEN3_MOE if config.qk_norm == "head" else MIXTRAL
