"""Number formats of GGUF files: which type each tensor gets, and the bytes that makes.

Block formats cut a row into blocks of 32 or 256 numbers with a scale each; a row that does not
divide into blocks is kept in the next wider type, as llama.cpp does. Matrices are rounded to the
nearest, without data (RTN); K-quants are made by llama.cpp itself.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal, get_args

from models.variants.gguf_tensors import HEAD, TABLE, is_matrix

GgufFormat = Literal["f32", "f16", "bf16", "q8_0", "q4_k_m", "q4_0"]
GGUF_FORMATS: tuple[GgufFormat, ...] = get_args(GgufFormat)

# (numbers of a block, its bytes), from llama.cpp's ggml-common.h.
_BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q5_0": (32, 22),
    "Q5_1": (32, 24), "Q4_0": (32, 18), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
}  # fmt: skip
_SCALE = 2**-11  # a block's scale is in fp16
# Largest error of a number over its tensor's largest magnitude. Blocks of b bits without an offset
# step by 1/2^(b-1) of their largest number: half a step off, or a whole one where the number of the
# other sign is cut off (Q4_0, Q5_0). K-quants look for the scale of least mean square error, which
# has no such bound: of normal, Laplace, Student-t, uniform, shifted and sparse weights llama.cpp
# was at most 0.023 off in Q6_K, 0.058 in Q5_K and 0.118 in Q4_K, about half of the limits.
LARGEST_ERROR = {
    "F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254 + _SCALE, "Q5_0": 1 / 16 + _SCALE,
    "Q5_1": 1 / 16 + _SCALE, "Q4_0": 1 / 8 + _SCALE, "Q6_K": 1 / 16, "Q5_K": 1 / 9, "Q4_K": 1 / 5,
}  # fmt: skip
_WIDER = {
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q5_0": "F16", "Q5_1": "F16", "Q4_0": "F16",
    "Q8_0": "F16",
}  # fmt: skip
# K-quants' mixture: these tensors of half of the layers are in six bits, the others in four. Of
# models with 8 experts, whose attention is a small part, attention has more (llama-quant.cpp).
_SENSITIVE = ("attn_v.", "ffn_down")
_OF_EIGHT_EXPERTS = {"attn_v.": "Q8_0", "attn_k.": "Q8_0", "attn_output": "Q5_K"}


def type_of(name: str, shape: Sequence[int], kind: GgufFormat, experts: int = 1) -> str:
    """Return the type of a tensor in a file of a format.

    For q4_k_m it is the widest that llama.cpp may choose: an upper bound of the size.

    Args:
        name: llama.cpp's. shape: outermost first. experts: per layer.

    """
    if not is_matrix(name):
        return "F32"
    wide = name in {TABLE, HEAD}
    chosen = {
        "f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0",
        "q4_0": "Q8_0" if wide else "Q4_0",
        "q4_k_m": "Q6_K" if wide or any(part in name for part in _SENSITIVE) else "Q4_K",
    }[kind]  # fmt: skip
    if kind == "q4_k_m" and experts == 8:
        chosen = next((t for part, t in _OF_EIGHT_EXPERTS.items() if part in name), chosen)
    while shape[-1] % _BLOCKS[chosen][0]:
        chosen = _WIDER[chosen]
    return chosen


def type_bytes(shape: Sequence[int], kind: str) -> int:
    """Return the bytes of a tensor of a type."""
    numbers, size = _BLOCKS[kind]
    return prod(shape) // numbers * size
