"""How much memory training takes, said before it begins: shapes decide, no weight is read.

The constants are measured on processors, over runs of the service: `benchmarks.footprint`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from models.language_model import LanguageModel
from models.recipe import prepare
from models.training_settings import Recipe
from models.vector import vector_length

ROOM = 2 << 30
"""Bytes that what is processed at once may need beside weights and sums, on a processor."""
MOST_SEQUENCES = 32
"""Sequences processed at once where that needs less than the room."""

Shape: TypeAlias = Sequence[int]

_BYTES = 4  # of an fp32 number
_BYTES_AT_WORK = 9  # fp32 and its gradient, and an eighth for what attention compares
_BYTES_OF_MAP = 36  # of a pair of positions: some nine fp32 numbers where attention is in steps
_PROCESS = 480_000_000  # Python, torch and what a party holds beside models
_NODE_SUMS = 1.7  # vectors as long as an upload: the clipped sum, and its masked words as they go
_DRIVER_MODELS = 2.0  # the base, and the model whose vector is sent
_DRIVER_VECTORS = 5.3  # the sum, Adam's moments, the state that is written and what is sent


def trained_numbers(model: LanguageModel, recipe: Recipe) -> int:
    """Return D, the coordinates of a release.

    Args:
        model: of the base, without adapters; it may lie on the meta device. Trained in full, its
            parameters are marked as `models.recipe.prepare` does.

    Raises:
        ValueError: see `models.recipe.prepare`.

    """
    model.check_length(recipe.sequence_length)
    if recipe.kind == "lora":
        return sum(math.prod(shape) for shape in _adapters(model, recipe))
    prepare(model, recipe)
    return vector_length(model)


def sequence_bytes(model: LanguageModel, length: int) -> int:
    """Return about what a sequence needs while it is processed, beside weights and sums.

    Args:
        model: prepared: what adapters add counts. length: in tokens.

    """
    return _work(model, [parameter.shape for parameter in model.parameters()], length)


def sequences_in(room: int, each: int) -> int:
    """Return how many sequences of `each` bytes are processed at once in the room, 1 to 32."""
    return min(max(room // each, 1), MOST_SEQUENCES)


def node_bytes(model: LanguageModel, recipe: Recipe, chunk_sequences: int | None = None) -> int:
    """Return about how much memory a node's process takes while it trains on a processor.

    Args:
        model: as in `trained_numbers`.
        chunk_sequences: processed at once; None leaves it to the node.

    """
    own = [tuple(parameter.shape) for parameter in model.parameters()]
    added = list(_adapters(model, recipe)) if recipe.kind == "lora" else []
    if chunk_sequences is None:
        chunk_sequences = sequences_in(ROOM, _work(model, own + added, recipe.sequence_length))
    held = sum(map(math.prod, own)) + _NODE_SUMS * trained_numbers(model, recipe)
    work = chunk_sequences * _work(model, own, recipe.sequence_length)
    return _PROCESS + round(_BYTES * held) + work


def most_bytes(weights: int) -> int:
    """Return about what a node takes at most whose model has so many weights and trains adapters.

    For models whose shapes are not known without reading them. A sequence that alone needs more
    than the room takes more.
    """
    return _PROCESS + _BYTES * weights + ROOM


def driver_bytes(model: LanguageModel, recipe: Recipe) -> int:
    """Return about how much memory the process takes that drives a run; `model` as above."""
    vectors = _DRIVER_VECTORS * trained_numbers(model, recipe)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return _PROCESS + round(_BYTES * (_DRIVER_MODELS * weights + vectors))


def _work(model: LanguageModel, shapes: Iterable[Shape], length: int) -> int:
    """Bytes of a sequence at work in parameters of these shapes, [experts,] outputs, inputs."""
    matrices = [shape for shape in shapes if len(shape) > 1]  # vectors do not count
    width = sum(sum(s[-2:]) * min([model.experts_per_token, *s[:-2]]) for s in matrices if s[:-2])
    width += sum(map(sum, (shape for shape in matrices if not shape[:-2])))
    maps = length**2 * model.attention_maps * _BYTES_OF_MAP
    return length * width * _BYTES_AT_WORK + maps


def _adapters(model: LanguageModel, recipe: Recipe) -> Iterator[Shape]:
    """Yield the shapes of `models.lora.add_lora`'s parameters."""
    for _, layer in model.adapted_layers():
        *experts, outputs, inputs = layer.weight.shape
        yield (*experts, recipe.lora_rank, inputs)
        yield (*experts, outputs, recipe.lora_rank)
