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
    "Q4_0": (32, 18), "Q4_K": (256, 144), "Q6_K": (256, 210),
}  # fmt: skip
_WIDER = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q5_0": "F16", "Q4_0": "F16", "Q8_0": "F16"}
# K-quants' mixture: these tensors of half of the layers are in six bits, the others in four.
_SENSITIVE = ("attn_v.", "ffn_down")


def type_of(name: str, shape: Sequence[int], kind: GgufFormat) -> str:
    """Return the type of a tensor in a file of a format.

    For q4_k_m it is the widest that llama.cpp may choose: an upper bound of the size.

    Args:
        name: llama.cpp's. shape: outermost first.

    """
    if not is_matrix(name):
        return "F32"
    wide = name in {TABLE, HEAD}
    chosen = {
        "f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0",
        "q4_0": "Q8_0" if wide else "Q4_0",
        "q4_k_m": "Q6_K" if wide or any(part in name for part in _SENSITIVE) else "Q4_K",
    }[kind]  # fmt: skip
    while shape[-1] % _BLOCKS[chosen][0]:
        chosen = _WIDER[chosen]
    return chosen


def type_bytes(shape: Sequence[int], kind: str) -> int:
    """Return the bytes of a tensor of a type."""
    numbers, size = _BLOCKS[kind]
    return prod(shape) // numbers * size
