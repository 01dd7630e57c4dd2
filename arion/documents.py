"""Documents to evaluate a model on, file by file; whole ones, unlike the records of training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from arion.institutions import own_config
from client.data import DataConfig, detect_layout, read_shard
from client.shards import data_files, is_text, read_text


@dataclass(frozen=True)
class DocumentFile:
    """A file's documents; `name` is its path in the folder that was asked for."""

    name: str
    texts: tuple[str, ...]


def read_documents(path: Path) -> tuple[DocumentFile, ...]:
    """Read all documents of a file or folder, or none of them.

    A text file is one document, byte for byte. JSON lines and Parquet hold one per record, put
    together as training puts it together: by the folder's `data.toml`, or by common field names.

    Args:
        path: a data file, or a folder searched with its subfolders.

    Raises:
        DataError: anything at all is wrong with any file; the message names it.

    """
    files = data_files(path)
    root = path.resolve() if path.is_dir() else path.parent
    config = own_config(path) if path.is_dir() else None
    return tuple(_read(files, root, config))


def _read(files: tuple[Path, ...], root: Path, config: DataConfig | None) -> Iterator[DocumentFile]:
    for file in files:
        name = file.relative_to(root).as_posix()
        if is_text(file):
            yield DocumentFile(name, (read_text(file, name),))
        else:
            records = read_shard(file, config or detect_layout(file))
            yield DocumentFile(name, tuple(record.text for record in records))
