"""Weights as 8-bit floats with a scale per block, as Qwen3 and DeepSeek folders are published.

A matrix of e4m3 numbers lies beside NAME_scale_inv, which holds one scale for each block of
128 x 128; a weight is its number times its block's scale (DeepSeek-V3, arXiv 2412.19437, section
3.3.2). Tables, head, norms and routers stay in bf16.

Shapes: O, I rows and columns of a matrix; P, Q those of its blocks.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from models.formats.files import CheckpointError

FP8 = torch.float8_e4m3fn
FP8_TYPE = "F8_E4M3"
"""As safetensors calls it."""
SCALE = "_scale_inv"
BLOCK = 128
LARGEST_ERROR = 16.01 / 448
"""Half the step between the largest numbers, over the largest; the hundredth is for the scale's own
rounding."""

_LARGEST = torch.finfo(FP8).max
_SCHEME = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}


def is_fp8(hf: Mapping[str, Any]) -> bool:
    """Tell whether a `config.json` announces these blocks; False where weights are plain.

    Raises:
        CheckpointError: weights are quantised otherwise.

    """
    said = hf.get("quantization_config")
    if said is None:
        return False
    found = said if isinstance(said, dict) else {}
    if any(found.get(key, value) != value for key, value in _SCHEME.items()) or not (
        _SCHEME.keys() - {"fmt"} <= found.keys()
    ):
        raise CheckpointError(
            "Expected plain weights, or fp8 in blocks of 128 x 128, got another "
            "quantization_config. Use the folder it was made from."
        )
    return True


def fp8_config(tensors: Iterable[str]) -> dict[str, Any]:
    """Return the `quantization_config` of a folder of these tensors."""
    names = set(tensors)
    plain = {n for n in names if n + SCALE not in names and not n.endswith((SCALE, "norm.weight"))}
    modules = {name.removesuffix(".weight") for name in plain} | {"lm_head"}
    return {**_SCHEME, "modules_to_not_convert": sorted(modules)}


def encoded(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a folder's tensors: numbers and scales of experts and attention, the rest in bf16.

    Attention whose projections are not whole blocks stays in bf16: vLLM joins its query, key and
    value, and can do so only where each ends with a block.

    Args:
        views: all of a decoder's (`models.formats.tensors.named_views`); on the meta device for
            sizes alone.

    Raises:
        CheckpointError: the experts' matrices are not whole blocks.

    """
    attention = [name for name, view in views.items() if ".self_attn." in name and view.ndim == 2]
    experts = [name for name in views if _is_of_expert(name)]
    for name in experts:
        if not _is_whole(views[name]):
            raise CheckpointError(
                f"Expected experts whose sizes are multiples of {BLOCK} for fp8, got "
                f"{tuple(views[name].shape)}. Export --bits 16, or GGUF with --bits 8."
            )
    chosen = {*experts, *(attention if all(_is_whole(views[n]) for n in attention) else ())}
    found: dict[str, Tensor] = {}
    for name, view in views.items():
        if name in chosen:
            found[name], found[name + SCALE] = to_blocks(view)
        else:
            found[name] = view.to(torch.bfloat16)
    return found


def _is_of_expert(name: str) -> bool:
    """Whether a tensor is an expert's, or of a dense model's layer, which is its only expert."""
    return ".experts." in name or (".mlp." in name and "_proj." in name)


def to_blocks(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Round a matrix of whole blocks to (e4m3 numbers [O, I], fp32 scales [P, Q])."""
    rows, columns = weight_OI.shape
    blocks = weight_OI.float().reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    tiny = torch.finfo(torch.float32).tiny
    scale_PQ = (blocks.abs().amax((1, 3)) / _LARGEST).clamp_min(tiny)
    numbers = (blocks / scale_PQ[:, None, :, None]).clamp(-_LARGEST, _LARGEST)
    return numbers.reshape(rows, columns).to(FP8), scale_PQ


def from_blocks(number_OI: Tensor, scale_PQ: Tensor) -> Tensor:
    """Return the weights of numbers and scales, fp32 [O, I]; a last block may be cut off."""
    rows, columns = number_OI.shape
    scale_OI = scale_PQ.float().repeat_interleave(BLOCK, 0)[:rows]
    return number_OI.float() * scale_OI.repeat_interleave(BLOCK, 1)[:, :columns]


def scale_shapes(types: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, tuple[int, int]]:
    """Return the scales that a folder must hold.

    Args:
        types: shape and safetensors type of each of its tensors.

    Raises:
        CheckpointError: 8-bit numbers in something other than a matrix.

    """
    found = {}
    for name, (shape, kind) in types.items():
        if kind != FP8_TYPE:
            continue
        if len(shape) != 2:
            raise CheckpointError(
                f"Expected 8-bit weights in matrices alone, got {name} of shape {shape}. Use the "
                "folder it was made from."
            )
        found[name + SCALE] = (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))
    return found


def expanded(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight, numbers joined with their scales; a half waits for its other half."""
    waiting: dict[str, Tensor] = {}
    for name, tensor in tensors:
        weight = name.removesuffix(SCALE)
        if weight == name and tensor.dtype != FP8:
            yield name, tensor
        elif weight in waiting:
            halves = (tensor, waiting.pop(weight))
            yield weight, from_blocks(*(halves if tensor.dtype == FP8 else halves[::-1]))
        else:
            waiting[weight] = tensor


def _is_whole(view: Tensor) -> bool:
    return all(size % BLOCK == 0 for size in view.shape)
