"""Which of the institution's records a node trains on."""

import hashlib
from collections.abc import Sequence

from client.config import NodeConfig, NodeError
from client.data import Record, read_shard, split_records


def training_records(config: NodeConfig) -> list[Record]:
    """The records that this node trains on: its own part, without held-out and validation groups.

    Raises:
        DataError: unreadable data. NodeError: nothing is left to train on.

    """
    records = own_part(read_shard(config.data, config.fields), config.part, config.parts)
    split = split_records(records, heldout=config.heldout, validation=config.validation)
    if not split.train:
        raise NodeError(
            f"Expected records to train on in {config.data}, got none after the held-out split. "
            "Add records, or lower heldout and validation in node.toml."
        )
    return list(split.train)


def own_part(records: Sequence[Record], part: int, parts: int) -> list[Record]:
    """The records of the units whose hash falls to this part; all of a unit goes to one part."""
    return [r for r in records if parts == 1 or _part_of(r.unit, parts) == part]


def _part_of(unit: str, parts: int) -> int:
    return int.from_bytes(hashlib.sha256(unit.encode()).digest()[:8], "big") % parts
