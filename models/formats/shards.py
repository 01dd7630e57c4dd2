"""Weights on disk: one or several safetensors files and their index, read tensor by tensor.

Headers are compared with what is wanted before any weight is read. Pickles are never opened.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from models.formats.files import CheckpointError, inside, read_object
from models.formats.fp8 import FP8, FP8_TYPE
from models.formats.tensor_file import save_tensors

SHARD_BYTES = 5_000_000_000

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TYPES = ("F32", "F16", "BF16")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Buffers that old Llama folders carry, computed from config.json.
_COMPUTED = ".rotary_emb.inv_freq"

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Stored:
    """A tensor's header: its file, shape and safetensors type."""

    path: Path
    shape: tuple[int, ...]
    type: str


def read_headers(folder: Path, *, fp8: bool = False) -> dict[str, Stored]:
    """Return what a folder's safetensors files hold, without reading a weight.

    Args:
        fp8: its config.json announces 8-bit floats (`models.formats.fp8`).

    Raises:
        CheckpointError: only pickles, a missing, damaged or foreign file, an index that disagrees
            with its files, a type other than fp32, fp16, bf16 and those that were announced.

    """
    types = (*_TYPES, FP8_TYPE) if fp8 else _TYPES
    whole = inside(folder, _WHOLE)
    if whole.is_file():
        return _file_headers(whole, types)
    weight_map = _weight_map(folder)
    headers: dict[str, Stored] = {}
    for path in {name: inside(folder, name) for name in sorted(set(weight_map.values()))}.values():
        headers |= _file_headers(path, types)
    placed = {name: stored.path.name for name, stored in headers.items()}
    wanted = {name: file for name, file in weight_map.items() if not name.endswith(_COMPUTED)}
    if placed != wanted:
        wrong = sorted(dict(placed.items() ^ wanted.items()))
        raise CheckpointError(
            f"Expected every tensor where {_INDEX} says, got {wrong[:3]} elsewhere, missing or "
            "surplus. Copy the folder again."
        )
    return headers


def check_headers(headers: Mapping[str, Stored], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless exactly the wanted tensors are there, in their shapes."""
    missing, surplus = sorted(wanted.keys() - headers), sorted(headers.keys() - wanted.keys())
    if missing or surplus:
        raise CheckpointError(
            f"Expected exactly the tensors of config.json, got missing {missing[:3]}, surplus "
            f"{surplus[:3]}. The weights belong to another configuration."
        )
    for name, shape in wanted.items():
        if headers[name].shape != shape:
            raise CheckpointError(
                f"Expected shape {shape} for {name}, got {headers[name].shape}. The weights belong "
                "to another configuration."
            )


def read_tensors(headers: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor, one file after the other; each is read when it is asked for.

    Raises:
        CheckpointError: values that are not finite, a file that changed meanwhile.

    """
    for path in sorted({stored.path for stored in headers.values()}):
        with _opened(path) as file:
            for name in (name for name, stored in headers.items() if stored.path == path):
                tensor = file.get_tensor(name)
                check_finite(name, tensor)
                yield name, tensor


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise CheckpointError where a weight is NaN or infinite."""
    if not torch.isfinite(tensor.float() if tensor.dtype == FP8 else tensor).all():
        raise CheckpointError(
            f"Expected finite weights, got NaN or infinity in {name}. The model is damaged."
        )


def write_tensors(
    tensors: Iterable[tuple[str, Tensor]],
    folder: Path,
    dtype: torch.dtype | None,
    shard_bytes: int,
    advance: Advance,
) -> None:
    """Write tensors into `folder`, in files of at most `shard_bytes` where a tensor allows it.

    Args:
        tensors: may be views of one storage; one file's worth of them is copied at a time.
        dtype: what they are written as; None for what each is.
        advance: called with (tensors written, tensors in all).

    """
    shards = _split(dict(tensors), shard_bytes, dtype)
    total, done = sum(map(len, shards)), 0
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05}-of-{len(shards):05}.safetensors"
        name = several if len(shards) > 1 else _WHOLE
        _write_file(shard, folder / name, dtype)
        weight_map |= dict.fromkeys(shard, name)
        done += len(shard)
        advance(done, total)
    if len(shards) > 1:
        size = sum(_bytes(t, dtype) for shard in shards for t in shard.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _write_file(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None) -> None:
    """Write one file; its copies are gone before the next file's are made."""
    copies = {
        name: tensor.detach().to(
            dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format
        )
        for name, tensor in tensors.items()
    }
    save_tensors(copies, path)


def _split(
    tensors: Mapping[str, Tensor], shard_bytes: int, dtype: torch.dtype | None
) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        added = _bytes(tensor, dtype)
        if shards[-1] and size + added > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += added
    return shards


def _weight_map(folder: Path) -> dict[str, str]:
    """Read the index of a folder without a single weights file."""
    path = inside(folder, _INDEX)
    if not path.is_file():
        pickles = sorted(found.name for kind in _PICKLES for found in folder.glob(kind))
        hint = (
            f"{pickles[0]}, a pickle, which can run code and is never opened. Convert it where you "
            "trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)"
            if pickles
            else "none. Point at a folder that holds config.json, safetensors and tokenizer.json"
        )
        raise CheckpointError(f"Expected {_WHOLE} or {_INDEX} in {folder}, got {hint}.")
    found = read_object(path).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise CheckpointError(f"Expected a weight_map of file names in {path}. Copy it again.")
    return found


def _file_headers(path: Path, types: Sequence[str]) -> dict[str, Stored]:
    if path.suffix != ".safetensors" or not path.is_file():
        raise CheckpointError(
            f"Expected the safetensors file {path}, got none. Copy the whole folder."
        )
    with _opened(path) as file:
        headers = {}
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            if name.endswith(_COMPUTED):
                continue
            part = file.get_slice(name)
            headers[name] = Stored(path, tuple(part.get_shape()), part.get_dtype())
    for name, stored in headers.items():
        if stored.type not in types:
            raise CheckpointError(
                f"Expected {', '.join(types)} weights, got {stored.type} in {name}. Use the "
                "folder before it was quantised."
            )
    return headers


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"Expected a whole safetensors file, got a damaged {path} ({error}). Copy it again."
        ) from error
