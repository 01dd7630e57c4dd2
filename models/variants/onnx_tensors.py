"""A decoder's weights as ONNX Runtime's operators take them, and their rounding to blocks.

Matrices keep their layout [outputs, inputs]. Rounded ones are cut along the inputs into blocks of
32 numbers with an fp32 scale each; a number is (code - zero) scale. In 8 bits zero is 128, and the
block's largest magnitude gets the code 255 or 1. In 4 bits every block has its own zero, so that
the sixteen codes span its smallest to its largest number (and 0, which stays 0): of weights that
lie normal, the squared error is 0.69 of what it is without. Codes and zeros of four bits lie two in
a byte, the first in the low half. That is what com.microsoft's MatMulNBits, QMoE and
GatherBlockQuantized read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.decoder import Block, Decoder
from models.variants.extras import VariantError

OnnxFormat = Literal["f32", "int8", "int4"]
ONNX_FORMATS: tuple[OnnxFormat, ...] = get_args(OnnxFormat)
BLOCK = 32
TABLE, HEAD, NORM = "embedding", "head", "norm"
CODES, SCALES, ZEROS = ".codes", ".scales", ".zeros"
_BYTE_ZERO = 128
_HALF_BYTE = 15
_LEAST_STEP = 1e-30  # of a block of zeros


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
    """Bytes of a tensor, scales and zeros included."""
    parts = stored_shapes("", tuple(shape), bits)
    return sum(prod(part) * (1 if name in {CODES, ZEROS} else 4) for name, part in parts.items())


def stored_shapes(name: str, shape: tuple[int, ...], bits: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the initialisers that a tensor of `shape` becomes, by name."""
    if bits == 32:
        return {name: shape}
    *rows, wide = shape
    blocks = wide // BLOCK
    found = {name + CODES: (*rows, wide * bits // 8), name + SCALES: (*rows, blocks)}
    return found if bits == 8 else {**found, name + ZEROS: (*rows, (blocks + 1) // 2)}


def largest_error(bits: int) -> float:
    """Half a step, over the block's largest magnitude; and the rounding of one product."""
    return 0.0 if bits == 32 else {8: 0.5 / 127, 4: 1 / 15}[bits] + 2**-20


def rounded(tensor: Tensor, bits: int) -> dict[str, "np.ndarray"]:
    """Round each number to the nearest of its block's.

    Returns:
        Arrays by the ends of their names: codes, uint8 [..., inputs x bits / 8]; scales, fp32
        [..., inputs / 32]; in 4 bits zeros, uint8 [..., inputs / 64 rounded up].

    """
    blocks = _blocks(tensor.detach().float())
    if bits == 8:
        scale = blocks.abs().amax(-1) / (_BYTE_ZERO - 1)
        zero, top = torch.full_like(scale, _BYTE_ZERO), 2 * _BYTE_ZERO - 1
    else:
        least, most = blocks.amin(-1).clamp_max(0), blocks.amax(-1).clamp_min(0)
        scale, top = (most - least) / _HALF_BYTE, _HALF_BYTE
        zero = (-least / scale.clamp_min(_LEAST_STEP)).round()
    steps = blocks / scale.clamp_min(_LEAST_STEP)[..., None]
    codes = (steps.round() + zero[..., None]).clamp(0, top).to(torch.uint8).flatten(-2)
    if bits == 8:
        return {CODES: codes.numpy(), SCALES: scale.numpy()}
    zeros = _in_pairs(zero.to(torch.uint8))
    return {CODES: _in_pairs(codes).numpy(), SCALES: scale.numpy(), ZEROS: zeros.numpy()}


def expanded(parts: Mapping[str, "np.ndarray"], bits: int) -> Tensor:
    """Undo `rounded`: the numbers that the runtime computes with."""
    codes, scales = (torch.from_numpy(parts[name].copy()) for name in (CODES, SCALES))
    zero = torch.full_like(scales, _BYTE_ZERO)
    if bits == 4:
        codes = _out_of_pairs(codes)
        zero = _out_of_pairs(torch.from_numpy(parts[ZEROS].copy()))[..., : scales.shape[-1]].float()
    numbers = _blocks(codes.float()) - zero[..., None]
    values: Tensor = numbers * scales[..., None]
    return values.flatten(-2)


def _in_pairs(codes: Tensor) -> Tensor:
    """Two codes of four bits in a byte; the last byte of an odd row has one."""
    even = F.pad(codes, (0, codes.shape[-1] % 2))
    found: Tensor = even[..., 0::2] | (even[..., 1::2] << 4)
    return found


def _out_of_pairs(found: Tensor) -> Tensor:
    codes: Tensor = torch.stack((found & _HALF_BYTE, found >> 4), -1).flatten(-2)
    return codes


def _blocks(tensor: Tensor) -> Tensor:
    """[..., inputs] as [..., inputs / 32, 32]."""
    found: Tensor = tensor.reshape(*tensor.shape[:-1], -1, BLOCK)
    return found
