"""A decoder's weights as llama.cpp names and lays them out.

With query-key norms the architecture is `qwen3moe`, without them `llama`; a model of one expert per
layer has no choice to make and is written as the dense `qwen3` or `llama`.

Shapes: D hidden, V vocabulary, E experts, G expert hidden width, H heads, F head width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Block, Decoder
from models.layers import rotary_frequencies
from models.variants.extras import VariantError

TABLE, HEAD = "token_embd.weight", "output.weight"
_ROUTER = "ffn_gate_inp"


def architecture(config: ModelConfig) -> str:
    """Return the architecture that llama.cpp computes this model as.

    Raises:
        VariantError: rotary scaling beside query-key norms, which llama.cpp does not compute.

    """
    if config.qk_norm == "none":
        return "llama"
    if config.rope_scaling is not None:
        raise VariantError(
            "Expected plain rotary positions of a model with query-key norms, got rope_scaling: "
            "llama.cpp's Qwen3 leaves it out. Export it as a Hugging Face folder (--format hf)."
        )
    return "qwen3moe" if config.experts > 1 else "qwen3"


def is_matrix(name: str) -> bool:
    """Tell whether a tensor may be rounded: matrices may, norms and routers stay in fp32."""
    return not any(part in name for part in ("norm", _ROUTER, "rope_freqs"))


def tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yield (llama.cpp's name, weights), outermost dimension first; views where possible."""
    config = model.config
    yield TABLE, model.embedding.data
    yield "output_norm.weight", model.norm.weight.data
    if not config.tie_embeddings:
        yield HEAD, model.head.data
    if config.rope_scaling is not None:
        plain = config.model_copy(update={"rope_scaling": None})
        yield "rope_freqs.weight", rotary_frequencies(plain) / rotary_frequencies(config)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        for name, tensor in (*_attention(block, config), *_experts(block, config)):
            yield f"blk.{index}.{name}.weight", tensor


def _attention(block: Block, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    attention = block.attention
    yield "attn_norm", block.attention_norm.weight.data
    sizes = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
    q, k, v = torch.split(attention.qkv.weight.data, sizes)
    if config.qk_norm == "none":
        q, k = _interleaved(q, config.heads), _interleaved(k, config.kv_heads)
    yield "attn_q", q
    yield "attn_k", k
    yield "attn_v", v
    yield "attn_output", attention.out.weight.data
    if attention.q_norm is not None and attention.k_norm is not None:
        yield "attn_q_norm", attention.q_norm.weight.data
        yield "attn_k_norm", attention.k_norm.weight.data


def _experts(block: Block, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    gate, up = block.experts.gate_up.weight.data.chunk(2, 1)  # [E, G, D]
    down = block.experts.down.weight.data  # [E, D, G]
    yield "ffn_norm", block.experts_norm.weight.data
    if config.experts == 1:
        yield from (("ffn_gate", gate[0]), ("ffn_up", up[0]), ("ffn_down", down[0]))
        return
    yield _ROUTER, block.experts.router.weight.data
    yield from (("ffn_gate_exps", gate), ("ffn_up_exps", up), ("ffn_down_exps", down))


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Reorder a head's rows: `llama` rotates neighbours, where we rotate halves (x_i, x_i+F/2)."""
    halves = weight.view(heads, 2, -1, weight.shape[-1])
    return halves.transpose(1, 2).reshape(weight.shape)
