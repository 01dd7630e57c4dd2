"""A decoder as an ONNX file, with its weights beside it, and the weights read back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from models.config import ModelConfig
from models.decoder import Block, Decoder
from models.formats.shards import Advance, check_finite
from models.layers import rotary_frequencies
from models.variants.extras import VariantError, need
from models.variants.onnx_graph import CONSTANT, COS, SIN, Graph
from models.variants.onnx_tensors import (
    ZEROS,
    OnnxFormat,
    bits_of,
    check_blocks,
    expanded,
    largest_error,
    places,
    rounded,
    stored_shapes,
    tensor_bytes,
)
from models.variants.readback import Readback, Rounding, check_names, rounding

_EXTRA: Final = "mobile"
_GRAPH_BYTES, _LAYER_BYTES = 8_000, 6_000  # of the nodes and names
ONNX_FILE, DATA_FILE, SHAPE, FORMAT = "model.onnx", "model.onnx.data", "config", "number_format"


def write_onnx(
    model: Decoder, folder: Path, kind: OnnxFormat, advance: Advance = lambda done, total: None
) -> None:
    """Write `model.onnx` and `model.onnx.data` into a folder.

    Args:
        model: merged, on CPU in fp32.
        advance: called with (tensors rounded, tensors in all).

    Raises:
        MissingExtraError: `onnx` is not installed.
        VariantError: rows that do not divide into blocks.
        CheckpointError: a weight is not finite.

    """
    onnx = need("onnx", _EXTRA)
    check_blocks(model, kind)
    every, initialisers = list(places(model)), list(_rotary(onnx, model.config))
    for done, place in enumerate(every, 1):
        name, tensor, bits = place.name, place.read(), bits_of(place.name, kind)
        check_finite(name, tensor)
        if bits == 32:
            initialisers.append(_initialiser(onnx, name, tensor.detach().float().numpy()))
        else:
            parts = rounded(tensor, bits).items()
            initialisers += [_initialiser(onnx, name + part, values) for part, values in parts]
        advance(done, len(every))
    said = {SHAPE: model.config.model_dump_json(), FORMAT: kind}
    onnx.save_model(
        Graph(onnx, model.config, kind).model(initialisers, said),
        folder / ONNX_FILE,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=DATA_FILE,
        size_threshold=1024,
    )
    if (folder / DATA_FILE).exists():  # the library shuts it; who may read the graph may read it
        (folder / DATA_FILE).chmod((folder / ONNX_FILE).stat().st_mode)


def onnx_bytes(config: ModelConfig, kind: OnnxFormat) -> int:
    """Return the bytes of both files, at most; no weight is allocated."""
    with torch.device("meta"):
        every = [(place.name, place.view.shape) for place in places(Decoder(config))]
    numbers = sum(tensor_bytes(shape, bits_of(name, kind)) for name, shape in every)
    rotary = config.max_positions * config.head_dim * 4
    return numbers + rotary + _GRAPH_BYTES + config.layers * _LAYER_BYTES


def _initialiser(onnx: Any, name: str, values: Any) -> Any:
    return onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)


def _rotary(onnx: Any, config: ModelConfig) -> Iterator[Any]:
    position_T = torch.arange(config.max_positions, dtype=torch.float32)
    angle = position_T[:, None] * rotary_frequencies(config)
    yield _initialiser(onnx, COS, angle.cos().numpy())
    yield _initialiser(onnx, SIN, angle.sin().numpy())


@torch.no_grad()
def read_onnx(folder: Path, exact: Decoder) -> Readback:
    """Read the weights back.

    Args:
        exact: the model that the file was made of.

    Raises:
        MissingExtraError: `onnx` is not installed.
        VariantError: a damaged file, another shape than the model's, or other tensors.

    """
    config, kind, found = read_initialisers(folder)
    if config != exact.config:
        raise VariantError(
            "Expected the model's own shape and constants in the ONNX file, got others. Export it "
            "again."
        )
    copy, roundings = Decoder(config), list[Rounding]()
    for block in copy.blocks:  # a single expert's router is not in the file
        assert isinstance(block, Block)
        block.experts.router.weight.zero_()
    for wanted, place in zip(places(exact), places(copy), strict=True):
        name, bits = place.name, bits_of(place.name, kind)
        if bits == 32:
            stored = torch.from_numpy(found[name].copy())
        else:
            names = stored_shapes("", tuple(place.view.shape), bits)
            stored = expanded({part: found[name + part] for part in names}, bits)
        roundings.append(rounding(name, wanted.read(), stored, largest_error(bits)))
        place.fill(stored)
    return Readback(copy, tuple(roundings))


def read_initialisers(folder: Path) -> tuple[ModelConfig, OnnxFormat, dict[str, Any]]:
    """Return the file's own description and its tensors by name.

    Raises:
        MissingExtraError: `onnx` is not installed.
        VariantError: a damaged file, or one that was not made here.

    """
    onnx = need("onnx", _EXTRA)
    try:
        model = onnx.load(folder / ONNX_FILE)
        said = {each.key: each.value for each in model.metadata_props}
        config, kind = ModelConfig.model_validate_json(said[SHAPE], strict=False), said[FORMAT]
        found = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    except Exception as error:  # protobuf, onnx and numpy each have errors of their own
        raise VariantError(
            f"Expected an ONNX file that was made here, got another or a damaged {ONNX_FILE} "
            f"({type(error).__name__}). Take the artefact from where it was published."
        ) from error
    with torch.device("meta"):
        empty = Decoder(config)
    wanted: dict[str, tuple[int, ...]] = {}
    for place in places(empty):
        bits = bits_of(place.name, kind)
        wanted |= stored_shapes(place.name, tuple(place.view.shape), bits)
    if not any(name.endswith(ZEROS) for name in found):  # as in earlier files: 8 in every block
        wanted = {name: shape for name, shape in wanted.items() if not name.endswith(ZEROS)}
    check_names({name for name in found if not name.startswith(CONSTANT)}, set(wanted))
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise VariantError(
                f"Expected shape {shape} of {name} as the file describes itself, got "
                f"{found[name].shape}. An expert is missing, or the file was put together from "
                "several."
            )
    return config, kind, found
