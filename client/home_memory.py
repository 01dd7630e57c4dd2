"""How much memory training takes at a node, and how much there is."""

import math
import os
from pathlib import Path

from client.config import NodeConfig
from models.device import Device
from models.folders import is_ours, shape_of
from models.footprint import most_bytes, node_bytes
from models.formats.shards import read_headers
from models.training_settings import Recipe

_USUAL_LENGTH = 128  # tokens of a sequence, where no run has said how many


def training_bytes(config: NodeConfig) -> tuple[int, int | None]:
    """Bytes that training takes with adapters, and in full; None of a class that cannot.

    What a GPU needs of its own memory does not count.
    """
    chunk = 1 if config.device is Device.CUDA else config.chunk_sequences
    if not is_ours(config.base_model):
        headers = read_headers(config.base_model).values()
        return most_bytes(sum(math.prod(each.shape) for each in headers)), None
    model = shape_of(config.base_model)
    length = max(2, min(_USUAL_LENGTH, model.max_positions))
    adapters, whole = (Recipe(kind=kind, sequence_length=length) for kind in ("lora", "full"))
    return node_bytes(model, adapters, chunk), node_bytes(model, whole, chunk)


def available_memory() -> int:
    """Bytes that the system can give, as Linux says."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
