"""An institution's shard as records: text, privacy unit, and the group a split keeps together.

A shard is a folder or a file of JSON lines, Parquet or text (`client.shards` says how each is
read). `DataConfig` says which fields hold the text and whose data a record is. Reading is all or
nothing: an error anywhere yields no records.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.data_config import (
    DataConfig,
    describe,
    detect_config,
    detect_layout,
    load_config,
    template_fields,
)
from client.shards import MAX_LINE_BYTES, DataError, Row, iter_rows

__all__ = [
    "DataConfig",
    "DataError",
    "Record",
    "Split",
    "describe",
    "detect_config",
    "detect_layout",
    "load_config",
    "read_shard",
    "split_records",
]


@dataclass(frozen=True, slots=True)
class Record:
    """One training record.

    Attributes:
        text: what the model learns from; not empty, valid Unicode.
        unit: key of the privacy unit.
        group: what a held-out split keeps together.
        source: "file:line" in the shard.

    """

    text: str
    unit: str
    group: str
    source: str


@dataclass(frozen=True)
class Split:
    """Three parts of a shard; no group (upper and lower case alike) is in two of them."""

    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    heldout: tuple[Record, ...]


def read_shard(
    path: Path, config: DataConfig, *, max_line_bytes: int = MAX_LINE_BYTES
) -> tuple[Record, ...]:
    """Read all records of a shard, in a fixed order, or none of them.

    Args:
        path: a data file or a folder of them.
        config: what the fields mean.
        max_line_bytes: longest line or Parquet value, in bytes.

    Returns:
        At least one record, sorted by file path, then line.

    Raises:
        DataError: anything at all is wrong with any record; the message names file and line.

    """
    rows = iter_rows(path, max_line_bytes=max_line_bytes)
    return tuple(_record(row, config) for row in rows)


def _record(row: Row, config: DataConfig) -> Record:
    text = _text(row, config)
    unit = _key(row, config.unit_field) if config.unit_field else row.source
    return Record(text, unit, _group(row, config, unit, text), row.source)


def _group(row: Row, config: DataConfig, unit: str, text: str) -> str:
    value = _present(row, config.group_field) if config.group_field else None
    if config.group_field and value is not None and str(value).strip():
        return _key(row, config.group_field)
    if config.unit_field:
        return unit
    # Equal texts share a group: a duplicate must not be trained on and held out.
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()


def _text(row: Row, config: DataConfig) -> str:
    values = {name: _value(row, name) for name in config.text_fields}
    if config.template:
        text = _filled(config.template, values).strip()
    else:
        text = "\n\n".join(filter(None, values.values()))
    if not text or not any(values.values()):
        raise DataError(
            f"{row.source}: Expected text, got only empty fields. Remove the record or fill it in."
        )
    if "\0" in text or not _is_unicode(text):
        raise DataError(
            f"{row.source}: Expected Unicode text, got a NUL or a lone surrogate. "
            "Remove such escapes from the record."
        )
    return text


def _filled(template: str, values: Mapping[str, str]) -> str:
    if all(values.values()):
        return template.format_map(values)
    lines = (line for line in template.split("\n") if _says_something(line, values))
    return "\n".join(lines).format_map(values)


def _says_something(line: str, values: Mapping[str, str]) -> bool:
    names = template_fields(line)
    return not names or any(values[name] for name in names)


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _value(row: Row, name: str) -> str:
    value = _present(row, name)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return "\n".join(_message(row, name, message) for message in value)
    raise _wrong_type(row, name, value, "text or a list of {role, content}")


def _message(row: Row, name: str, message: Any) -> str:
    parts = message if isinstance(message, dict) else {}
    role, content = parts.get("role"), parts.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise _wrong_type(row, name, message, "messages of the form {role: text, content: text}")
    return f"{role.strip().capitalize()}: {content.strip()}"


def _key(row: Row, name: str) -> str:
    value = _present(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _wrong_type(row, name, value, "text or a whole number")
    key = str(value).strip()
    if not key or not _is_unicode(key):
        raise DataError(
            f"{row.source}: Expected a key in field {name!r}, got an empty one or a lone "
            "surrogate. Fill it in."
        )
    return key


def _present(row: Row, name: str) -> Any:
    if name not in row.fields:
        raise DataError(
            f"{row.source}: Expected the field {name!r}, got fields {sorted(row.fields)}. "
            "Fill it in, or correct the names in data.toml."
        )
    return row.fields[name]


def _wrong_type(row: Row, name: str, value: Any, expected: str) -> DataError:
    got = "null" if value is None else type(value).__name__
    return DataError(
        f"{row.source}: Expected {expected} in field {name!r}, got {got}. "
        "Correct the record, or correct the names in data.toml."
    )


def split_records(
    records: Iterable[Record],
    *,
    heldout: float = 0.10,
    validation: float = 0.10,
    salt: str = "arion-split-v1",
) -> Split:
    """Split records by the hash of their group, the same way at every institution and every time.

    A group's side depends on the salt and the group alone: new records move no old one, and a
    topic that two institutions share is held out at both. The shares hold in expectation; a part
    may be empty when there are few groups.

    Args:
        records: of one shard.
        heldout: share of groups never trained on, in [0, 1).
        validation: share of groups for choosing settings, in [0, 1); heldout + validation < 1.
        salt: another salt is another split.

    Raises:
        DataError: the shares are out of range.

    """
    if not (heldout >= 0 and validation >= 0 and heldout + validation < 1):
        raise DataError(
            f"Expected shares >= 0 that leave some to train on, got heldout={heldout} and "
            f"validation={validation}. Lower them."
        )
    parts: tuple[list[Record], ...] = ([], [], [])
    for record in records:
        position = _position(salt, record.group)
        parts[(position >= heldout) + (position >= heldout + validation)].append(record)
    return Split(heldout=tuple(parts[0]), validation=tuple(parts[1]), train=tuple(parts[2]))


def _position(salt: str, group: str) -> float:
    digest = hashlib.sha256(f"{salt}\0{group.casefold()}".encode()).digest()
    # 53 bits: the quotient is exact, and below 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
