"""Institutions out of a folder, for simulation: each subfolder or data file is one of them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.data import (
    DataConfig,
    Record,
    detect_config,
    detect_layout,
    load_config,
    read_shard,
)
from client.shards import (
    CONFIG_NAME,
    SUFFIXES,
    DataError,
    data_files,
    data_suffix,
    is_ignored,
    refuse_escaping_link,
)

_NAME_LIMIT = 63


@dataclass(frozen=True)
class Institution:
    """One institution's shard.

    Attributes:
        name: node name, `[a-z0-9-]{1,63}`.
        label: the folder's or file's own name, for people.
        path: the shard.
        config: what its fields mean.

    """

    name: str
    label: str
    path: Path
    config: DataConfig

    def records(self) -> tuple[Record, ...]:
        """Read the shard.

        Raises:
            DataError: as `client.data.read_shard`; it names the institution.

        """
        with _naming(self.path):
            return read_shard(self.path, self.config)


def find_institutions(data_dir: Path, config: DataConfig | None = None) -> tuple[Institution, ...]:
    """Find the institutions in a folder, sorted by name.

    A config comes from, in this order: the argument, `data.toml` in the institution's own folder,
    `data.toml` in `data_dir`, detection by common names. Hidden files, DATA.md, README and licence
    files are no data.

    Args:
        data_dir: the folder; each subfolder or data file in it is one institution.
        config: if given, applies to all.

    Raises:
        DataError: nothing found, two names collide, an entry is no data, or a config is missing
            and cannot be detected.

    """
    if not data_dir.is_dir():
        raise DataError(
            f"{data_dir}: Expected a folder of institutions, got none there. Check the path."
        )
    common = config or own_config(data_dir)
    found: dict[str, Institution] = {}
    for path in _entries(data_dir):
        institution = _institution(path, config, common)
        if institution.name in found:
            raise DataError(
                f"{path.name}: Expected a name of its own, got {institution.name!r}, also the name "
                f"of {found[institution.name].path.name}. Rename one of them."
            )
        found[institution.name] = institution
    if not found:
        raise DataError(
            f"{data_dir}: Expected institutions, got an empty folder. Add a subfolder or a "
            f"{', '.join(SUFFIXES)} file for each."
        )
    return tuple(found[name] for name in sorted(found))


def _entries(data_dir: Path) -> Iterator[Path]:
    for path in sorted(data_dir.iterdir()):
        refuse_escaping_link(path, data_dir)
        hidden = path.name.startswith(".") if path.is_dir() else is_ignored(path)
        if not hidden:
            yield path


def _institution(path: Path, config: DataConfig | None, common: DataConfig | None) -> Institution:
    suffix = data_suffix(path) if path.is_file() else None
    label = path.name.removesuffix(path.name[-len(suffix) :]) if suffix else path.name
    with _naming(path):
        data_files(path)  # an empty folder or an unknown kind of file is refused here, not later
        own = own_config(path) if path.is_dir() else None
        chosen = config or own or common or detect_config(path)
    return Institution(_node_name(label), label, path, chosen)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in whose folder a file is: several institutions may have one of that name."""
    try:
        yield
    except DataError as error:
        if not path.is_dir():
            raise
        raise DataError(f"{path.name}: {error}") from error


def own_config(folder: Path) -> DataConfig | None:
    """Read the `data.toml` of a folder, if it has one."""
    file = folder / CONFIG_NAME
    return load_config(file) if file.is_file() else None


def _node_name(label: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:_NAME_LIMIT].rstrip("-")
    if not name:
        raise DataError(
            f"{label}: Expected a name with letters a-z or digits, got none. Rename it."
        )
    return name


def read_public(paths: Sequence[Path]) -> tuple[str, ...]:
    """Read public documents, for the tokenizer and the warm-up.

    Args:
        paths: data files or folders in the formats of a shard. A folder's `data.toml` applies to
            it; otherwise each file's text fields are detected.

    Returns:
        The documents' texts, in the order of `paths`, then by file path and line.

    Raises:
        DataError: a file cannot be read or detected, or there is no path.

    """
    if not paths:
        raise DataError("Expected paths of public text, got none. Name a file or a folder.")
    documents: list[str] = []
    for path in paths:
        config = own_config(path) if path.is_dir() else None
        for file in data_files(path):
            records = read_shard(file, config or detect_layout(file))
            documents.extend(record.text for record in records)
    return tuple(documents)
