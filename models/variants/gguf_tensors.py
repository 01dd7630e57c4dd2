"""A decoder's weights as llama.cpp names and lays them out.

With query-key norms the architecture is `qwen3moe`, without them `llama`; a model of one expert per
layer has no choice to make and is written as the dense `qwen3` or `llama`.

Shapes: D hidden, V vocabulary, E experts, G expert hidden width, H heads, F head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Block, Decoder
from models.layers import rotary_frequencies
from models.variants.extras import VariantError

TABLE, HEAD, ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"
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


@dataclass(frozen=True)
class Place:
    """Where a tensor of the file comes from.

    Attributes:
        name: llama.cpp's. view: of our parameter. heads: whose rows llama.cpp orders otherwise; 0
            where it does not.

    """

    name: str
    view: Tensor
    heads: int = 0

    def read(self) -> Tensor:
        """The weights as llama.cpp orders them; a view where it orders them as we do."""
        return _interleaved(self.view, self.heads) if self.heads else self.view

    def fill(self, weights: Tensor) -> None:
        """Put weights in llama.cpp's order into our parameter."""
        self.view.copy_(_halves(weights, self.heads) if self.heads else weights)


def tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Yield (llama.cpp's name, weights), outermost dimension first; views where possible."""
    config = model.config
    if config.rope_scaling is not None:
        plain = config.model_copy(update={"rope_scaling": None})
        yield ROPE, rotary_frequencies(plain) / rotary_frequencies(config)
    for place in places(model):
        yield place.name, place.read()


def places(model: Decoder) -> Iterator[Place]:
    """Yield the place of every tensor that holds weights."""
    config = model.config
    yield Place(TABLE, model.embedding.data)
    yield Place("output_norm.weight", model.norm.weight.data)
    if not config.tie_embeddings:
        yield Place(HEAD, model.head.data)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        for place in _attention(block, config):
            yield replace(place, name=f"blk.{index}.{place.name}.weight")
        for name, view in _experts(block, config):
            yield Place(f"blk.{index}.{name}.weight", view)


def _attention(block: Block, config: ModelConfig) -> Iterator[Place]:
    attention = block.attention
    yield Place("attn_norm", block.attention_norm.weight.data)
    sizes = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
    q, k, v = torch.split(attention.qkv.weight.data, sizes)
    turned = config.qk_norm == "none"
    yield Place("attn_q", q, config.heads * turned)
    yield Place("attn_k", k, config.kv_heads * turned)
    yield Place("attn_v", v)
    yield Place("attn_output", attention.out.weight.data)
    if attention.q_norm is not None and attention.k_norm is not None:
        yield Place("attn_q_norm", attention.q_norm.weight.data)
        yield Place("attn_k_norm", attention.k_norm.weight.data)


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


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Undo `_interleaved`."""
    pairs = weight.view(heads, -1, 2, weight.shape[-1])
    return pairs.transpose(1, 2).reshape(weight.shape)
