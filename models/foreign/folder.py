"""Folders of other transformers classes: opened as they are, written with merged weights."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.foreign.model import ForeignModel, Source
from models.foreign.network import build_network, check_class
from models.foreign.trial import UnfitError, frozen_layers
from models.formats.files import CheckpointError, inside, read_object, whole_folder
from models.formats.shards import Stored, check_finite, read_headers, read_tensors
from models.formats.tensor_file import save_tensors

# What a released folder takes over besides its weights; never code, other weights or a model card.
_CARRIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")


def open_foreign(folder: Path) -> ForeignModel:
    """Read a Hugging Face folder of any causal language model that transformers knows.

    Raises:
        CheckpointError: transformers is not installed; a folder that is incomplete, damaged,
            quantised, an adapter, or not of a causal language model; a class in which no layer can
            take an adapter.

    """
    description = read_object(inside(folder, "config.json"))
    _check_plain(folder, description)
    tensors = dict(read_tensors(read_headers(folder)))
    network = build_network(description, tensors)
    try:
        frozen = frozen_layers(network)
    except UnfitError as error:
        raise CheckpointError(
            f"Expected a causal language model in {folder}, got a {type(network).__name__}: "
            f"{error}. Choose a decoder."
        ) from error
    source = _source(folder, network, frozen, tensors)
    if not source.tensors:
        raise CheckpointError(
            f"Expected linear layers that take adapters in {folder}, got none: "
            f"{'; '.join(f'{name}: {why}' for name, why in source.frozen.items())}."
        )
    return ForeignModel(network, source)


def save_foreign(model: ForeignModel, folder: Path) -> None:
    """Write the folder that the model came from with merged weights; replaces `folder` atomically.

    Adapted layers' weights are rounded to the type they are stored in; every other tensor, the
    configuration and the tokenizer are the source's, byte for byte.

    Raises:
        CheckpointError: adapters are not merged, a weight is not finite, or the source is damaged.

    """
    layers = dict(model.adapted_layers())
    if any(layer.lora_A is not None for layer in layers.values()):
        raise CheckpointError("Expected merged weights, got adapters. Call merge_lora first.")
    merged = {
        stored: layers[name].base.get_parameter("weight").detach()
        for name, stored in model.source.tensors.items()
    }
    with whole_folder(folder) as part:
        for pattern in _CARRIED:
            for path in model.source.folder.glob(pattern):
                shutil.copyfile(inside(model.source.folder, path.name), part / path.name)
        headers = read_headers(model.source.folder)
        for path in sorted({stored.path for stored in headers.values()}):
            own = {name: stored for name, stored in headers.items() if stored.path == path}
            _write_merged(own, part / path.name, merged)


def check_foreign(folder: Path) -> None:
    """Refuse a folder that `open_foreign` refuses for what it is, without reading its weights.

    Raises:
        CheckpointError: as `open_foreign`: quantised, an adapter, not of a causal language model.

    """
    description = read_object(inside(folder, "config.json"))
    _check_plain(folder, description)
    check_class(description)


def _check_plain(folder: Path, description: Mapping[str, Any]) -> None:
    if "quantization_config" in description:
        raise CheckpointError(
            f"Expected plain weights in {folder}, got quantised ones. Dequantise the model and "
            "save it again."
        )
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"Expected a whole model in {folder}, got an adapter. Merge it into its base and save "
            "that."
        )


def _source(
    folder: Path, network: nn.Module, frozen: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Source:
    """Leave an adapter to the layers whose weight is a tensor of its own in the folder."""
    stored, why = {}, dict(frozen)
    for name in [name for name, reason in frozen.items() if not reason]:
        found = _stored_name(network, name, tensors)
        if found is None:
            why[name] = "its weight is not stored under its own name"
        else:
            stored[name] = found
            del why[name]
    return Source(folder, stored, why)


def _stored_name(network: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The tensor that a layer's weight was read from, of the same values."""
    weight = network.get_parameter(f"{name}.weight")
    prefix = f"{network.base_model_prefix}."
    for candidate in (f"{name}.weight", f"{name}.weight".removeprefix(prefix)):
        found = tensors.get(candidate)
        if found is not None and torch.equal(found.float(), weight):
            return candidate
    return None


def _write_merged(own: Mapping[str, Stored], target: Path, merged: Mapping[str, Tensor]) -> None:
    """Write one file of the source again, with its adapted layers' weights merged."""
    tensors = dict(read_tensors(own))
    for name in merged.keys() & tensors.keys():
        tensors[name] = merged[name].to(tensors[name].dtype).contiguous()
        check_finite(name, tensors[name])
    save_tensors(tensors, target)
