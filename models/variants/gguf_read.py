"""The weights of a GGUF file, as llama.cpp expands them."""

from pathlib import Path

import torch

from models.decoder import Block, Decoder
from models.variants.extras import VariantError, need
from models.variants.gguf_tensors import ROPE, places, tensors
from models.variants.gguf_types import LARGEST_ERROR
from models.variants.readback import Readback, check_names, rounding


@torch.no_grad()
def read_gguf(path: Path, exact: Decoder) -> Readback:
    """Read a file back.

    Args:
        exact: the model that the file was made of.

    Raises:
        MissingExtraError: `gguf` is not installed.
        VariantError: a damaged file, other tensors than the model's, or other shapes.

    """
    gguf = need("gguf", "edge")
    try:
        found = {each.name: each for each in gguf.GGUFReader(path).tensors}
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise VariantError(
            f"Expected a whole GGUF file, got a damaged {path.name} ({error}). Export it again."
        ) from error
    wanted, copy = dict(tensors(exact)), Decoder(exact.config)
    for block in copy.blocks:  # a single expert's router is not in the file
        assert isinstance(block, Block)
        block.experts.router.weight.zero_()
    check_names(set(found), set(wanted))
    filled = {place.name: place for place in places(copy)}
    roundings = []
    for name, tensor in wanted.items():
        each = found[name]
        expanded = gguf.quants.dequantize(each.data, each.tensor_type)
        stored = torch.from_numpy(expanded.copy()).reshape(tensor.shape)
        limit = LARGEST_ERROR[each.tensor_type.name]
        roundings.append(rounding(name, tensor, stored, limit))
        if name != ROPE:
            filled[name].fill(stored)
    return Readback(copy, tuple(roundings))
