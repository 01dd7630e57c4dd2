"""How much memory training takes, said before it begins: shapes decide, no weight is read.

The constants are measured, on processors, over runs of the service: models of 6, 25 and 135 million
parameters, in full and with adapters, sequences of 64 to 256 tokens. What is said was 0.88 to 1.05
of the largest resident size of nodes and drivers (docs/service.md, "Runs").
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from models.decoder import Decoder
from models.language_model import LanguageModel
from models.recipe import Recipe, prepare
from models.vector import vector_length

ROOM = 2 << 30
"""Bytes that what is processed at once may need beside weights and sums, on a processor."""
MOST_SEQUENCES = 32
"""Sequences processed at once where that needs less than the room."""

Shape: TypeAlias = Sequence[int]

_BYTES = 4  # of an fp32 number
_BYTES_AT_WORK = 9  # fp32 and its gradient, and an eighth for what attention compares
_PROCESS = 480_000_000  # Python, torch and what a party holds beside models
_NODE_SUMS = 1.7  # vectors as long as an upload: the clipped sum, and its masked words as they go
_DRIVER_MODELS = 2.0  # the base, and the model whose vector is sent
_DRIVER_VECTORS = 5.3  # the sum, Adam's moments, the state that is written and what is sent


def trained_numbers(model: LanguageModel, recipe: Recipe) -> int:
    """Return D, the coordinates of a release.

    Args:
        model: of the base, without adapters; it may lie on the meta device. Trained in full, its
            parameters are marked as `models.recipe.prepare` does.

    """
    if recipe.kind == "lora":
        return sum(math.prod(shape) for shape in _adapters(model, recipe))
    prepare(model, recipe)
    return vector_length(model)


def sequences_in(room: int, width: int, length: int) -> int:
    """Return how many sequences of `length` tokens are processed at once, 1 to 32.

    Args:
        room: bytes. width: `matrix_width`, of the prepared model.

    """
    return min(max(room // (width * length * _BYTES_AT_WORK), 1), MOST_SEQUENCES)


def matrix_width(model: LanguageModel) -> int:
    """Return how many numbers go into and come out of the matrices that a token passes."""
    return _width([p.shape for p in model.parameters()], _per_token(model))


def _width(shapes: Iterable[Shape], per_token: int) -> int:
    """As above, of parameters' shapes, [experts,] outputs, inputs; vectors do not count."""
    widths = ((sum(s[-2:]), min(per_token, *s[:-2]) if s[:-2] else 1) for s in shapes if len(s) > 1)
    return sum(width * passed for width, passed in widths)


def _per_token(model: LanguageModel) -> int:
    return model.config.experts_per_token if isinstance(model, Decoder) else 1


def node_bytes(model: LanguageModel, recipe: Recipe, chunk_sequences: int | None = None) -> int:
    """Return about how much memory a node's process takes while it trains on a processor.

    Args:
        model: as in `trained_numbers`.
        chunk_sequences: processed at once; None leaves it to the node.

    """
    own = [tuple(parameter.shape) for parameter in model.parameters()]
    added = list(_adapters(model, recipe)) if recipe.kind == "lora" else []
    sums = round(_BYTES * _NODE_SUMS * trained_numbers(model, recipe))
    width, wider = (_width(shapes, _per_token(model)) for shapes in (own, [*own, *added]))
    if chunk_sequences is None:
        chunk_sequences = sequences_in(ROOM, wider, recipe.sequence_length)
    return sums + _at_work(own, width, recipe.sequence_length, chunk_sequences)


def adapting_bytes(shapes: Sequence[Shape], length: int, chunk_sequences: int | None) -> int:
    """Return `node_bytes` of a model that trains through adapters, of which shapes are known.

    Args:
        shapes: of its weights. length: of a sequence, in tokens. chunk_sequences: as above.

    """
    width = _width(shapes, 1)
    return _at_work(shapes, width, length, chunk_sequences or sequences_in(ROOM, width, length))


def driver_bytes(model: LanguageModel, recipe: Recipe) -> int:
    """Return about how much memory the process takes that drives a run; `model` as above."""
    vectors = _DRIVER_VECTORS * trained_numbers(model, recipe)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return _PROCESS + round(_BYTES * (_DRIVER_MODELS * weights + vectors))


def _at_work(shapes: Iterable[Shape], width: int, length: int, sequences: int) -> int:
    """Bytes of a process that holds weights of these shapes and works on so many sequences."""
    work = sequences * length * width * _BYTES_AT_WORK
    return _PROCESS + _BYTES * sum(map(math.prod, shapes)) + work


def _adapters(model: LanguageModel, recipe: Recipe) -> Iterator[Shape]:
    """Yield the shapes of `models.lora.add_lora`'s parameters."""
    for _, layer in model.adapted_layers():
        *experts, outputs, inputs = layer.weight.shape
        yield (*experts, recipe.lora_rank, inputs)
        yield (*experts, outputs, recipe.lora_rank)
