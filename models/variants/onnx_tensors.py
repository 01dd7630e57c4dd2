"""A decoder's weights as ONNX Runtime's operators take them, and their rounding to blocks.

Matrices keep their layout [outputs, inputs]. Rounded ones are cut along the inputs into blocks of
32 numbers with an fp32 scale each, without an offset: code = round(w / scale) + 2^(bits-1), where
the block's largest number becomes 2^(bits-1) - 1. Four-bit codes lie two in a byte, the first in
the low half. That is what com.microsoft's MatMulNBits, QMoE and GatherBlockQuantized read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from models.decoder import Block, Decoder
from models.variants.extras import VariantError

OnnxFormat = Literal["f32", "int8", "int4"]
ONNX_FORMATS: tuple[OnnxFormat, ...] = get_args(OnnxFormat)
BLOCK = 32
TABLE, HEAD, NORM = "embedding", "head", "norm"
CODES, SCALES = ".codes", ".scales"


@dataclass(frozen=True)
class Place:
    """Where an initialiser comes from.

    Attributes:
        view: of our parameter. paired: ONNX Runtime wants a gate's row beside its up row, where we
            stack all gates on all ups.

    """

    name: str
    view: Tensor
    paired: bool = False

    def read(self) -> Tensor:
        """The weights as ONNX Runtime orders them."""
        return _turned(self.view, 2, -1) if self.paired else self.view

    def fill(self, weights: Tensor) -> None:
        """Put weights in ONNX Runtime's order into our parameter."""
        self.view.copy_(_turned(weights, -1, 2) if self.paired else weights)


def _turned(weight_EGD: Tensor, outer: int, inner: int) -> Tensor:
    experts, _, wide = weight_EGD.shape
    return weight_EGD.reshape(experts, outer, inner, wide).transpose(1, 2).flatten(1, 2)


def places(model: Decoder) -> Iterator[Place]:
    """Yield the place of every initialiser that holds weights."""
    yield Place(TABLE, model.embedding.data)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        prefix, attention, experts = f"layers.{index}.", block.attention, block.experts
        yield Place(prefix + "attention_norm", block.attention_norm.weight.data)
        yield Place(prefix + "qkv", attention.qkv.weight.data)
        yield Place(prefix + "out", attention.out.weight.data)
        if attention.q_norm is not None and attention.k_norm is not None:
            yield Place(prefix + "q_norm", attention.q_norm.weight.data)
            yield Place(prefix + "k_norm", attention.k_norm.weight.data)
        yield Place(prefix + "experts_norm", block.experts_norm.weight.data)
        if model.config.experts > 1:
            yield Place(prefix + "router", experts.router.weight.data)
            yield Place(prefix + "gate_up", experts.gate_up.weight.data, paired=True)
            yield Place(prefix + "down", experts.down.weight.data)
        else:  # a matrix like others, and no choice
            yield Place(prefix + "gate_up", experts.gate_up.weight.data[0])
            yield Place(prefix + "down", experts.down.weight.data[0])
    yield Place(NORM, model.norm.weight.data)
    if not model.config.tie_embeddings:
        yield Place(HEAD, model.head.data)


def bits_of(name: str, kind: OnnxFormat) -> int:
    """Return the bits of a tensor: norms and routers have 32; with int4, table and head have 8."""
    if kind == "f32" or "norm" in name or "router" in name:
        return 32
    return 8 if kind == "int8" or name in {TABLE, HEAD} else 4


def check_blocks(model: Decoder, kind: OnnxFormat) -> None:
    """Refuse rows that do not divide into blocks.

    Raises:
        VariantError: naming the first.

    """
    for place in places(model):
        if bits_of(place.name, kind) < 32 and place.view.shape[-1] % BLOCK:
            raise VariantError(
                f"Expected rows of a multiple of {BLOCK} numbers in {place.name}, got "
                f"{place.view.shape[-1]}. Export fp32 (--bits 32), or GGUF (--format gguf)."
            )


def tensor_bytes(shape: Sequence[int], bits: int) -> int:
    """Bytes of a tensor, scales included."""
    numbers = prod(shape)
    return numbers * 4 if bits == 32 else numbers * bits // 8 + numbers // BLOCK * 4


def stored_shapes(name: str, shape: tuple[int, ...], bits: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the initialisers that a tensor of `shape` becomes, by name."""
    if bits == 32:
        return {name: shape}
    *rows, wide = shape
    return {name + CODES: (*rows, wide * bits // 8), name + SCALES: (*rows, wide // BLOCK)}


def largest_error(bits: int) -> float:
    """Half a step, over the block's largest magnitude; and the rounding of one product."""
    return 0.0 if bits == 32 else 0.5 / (2 ** (bits - 1) - 1) + 2**-20


def rounded(tensor: Tensor, bits: int) -> tuple["np.ndarray", "np.ndarray"]:
    """Return (codes, uint8 [..., inputs x bits / 8]; scales, fp32 [..., inputs / 32])."""
    blocks = _blocks(tensor.detach().float())
    top = 2 ** (bits - 1) - 1
    scale = blocks.abs().amax(-1) / top
    codes = (blocks / scale.clamp_min(1e-30)[..., None]).round().clamp(-top, top) + top + 1
    codes = codes.to(torch.uint8).flatten(-2)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes.numpy(), scale.numpy()


def expanded(codes: "np.ndarray", scales: "np.ndarray", bits: int) -> Tensor:
    """Undo `rounded`: the numbers that the runtime computes with."""
    found: Tensor = torch.from_numpy(codes.copy())
    if bits == 4:
        found = torch.stack((found & 15, found >> 4), -1).flatten(-2)
    numbers = _blocks(found.float()) - 2 ** (bits - 1)
    values: Tensor = numbers * torch.from_numpy(scales.copy())[..., None]
    return values.flatten(-2)


def _blocks(tensor: Tensor) -> Tensor:
    """[..., inputs] as [..., inputs / 32, 32]."""
    found: Tensor = tensor.reshape(*tensor.shape[:-1], -1, BLOCK)
    return found
