"""A decoder's weights under a family's names, as views into our fused parameters."""

from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Block, Decoder
from models.experts import ExpertBank
from models.formats.families import Family

Named: TypeAlias = Iterator[tuple[str, Tensor]]


def named_views(model: Decoder, family: Family) -> Named:
    """Yield (name in the family's folder, view of our parameter), in a fixed order."""
    config = model.config
    yield "model.embed_tokens.weight", model.embedding.data
    yield "model.norm.weight", model.norm.weight.data
    if not config.tie_embeddings:
        yield "lm_head.weight", model.head.data
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        prefix = f"model.layers.{index}."
        yield from _attention_views(prefix, block, config)
        yield prefix + "post_attention_layernorm.weight", block.experts_norm.weight.data
        yield from bank_views(prefix, block.experts, family)


def bank_views(prefix: str, bank: ExpertBank, family: Family) -> Named:
    """Yield (name, view) of a layer's router rows and experts; `prefix` names the layer."""
    if family.router is not None:
        yield f"{prefix}{family.router}.weight", bank.router.weight.data
    for index, fused in enumerate(bank.gate_up.weight.data):
        gate, up = fused.chunk(2)
        expert = prefix + family.expert.format(index)
        yield f"{expert}{family.gate}.weight", gate
        yield f"{expert}{family.up}.weight", up
        yield f"{expert}{family.down}.weight", bank.down.weight.data[index]


def _attention_views(prefix: str, block: Block, config: ModelConfig) -> Named:
    attention = block.attention
    yield prefix + "input_layernorm.weight", block.attention_norm.weight.data
    sizes = [n * config.head_dim for n in (config.heads, config.kv_heads, config.kv_heads)]
    parts = torch.split(attention.qkv.weight.data, sizes)
    for letter, part in zip("qkv", parts, strict=True):
        yield f"{prefix}self_attn.{letter}_proj.weight", part
    yield prefix + "self_attn.o_proj.weight", attention.out.weight.data
    if attention.q_norm is not None and attention.k_norm is not None:
        yield prefix + "self_attn.q_norm.weight", attention.q_norm.weight.data
        yield prefix + "self_attn.k_norm.weight", attention.k_norm.weight.data
