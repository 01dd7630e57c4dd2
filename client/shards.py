"""Raw rows out of an institution's files: JSON lines, Parquet and text, one bounded line at a time.

Nothing here knows what a field means; `client.data` turns rows into records. Messages name the
file, the line and the remedy, and never quote the data.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import pyarrow
import pyarrow.parquet

MAX_LINE_BYTES = 8 * 2**20
PARAGRAPH_CHARACTERS = 2_000
CONFIG_NAME = "data.toml"
PUBLIC_NAME = "public.toml"  # says that a folder's text is public (arion.public_text)

_JSON = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_TEXT = (".txt", ".txt.gz", ".md")
_PARQUET = (".parquet",)
SUFFIXES = _JSON + _TEXT + _PARQUET

_NOTE_STEMS = frozenset({"readme", "license", "licence", "notice"})
_NOTE_SUFFIXES = frozenset({"", ".md", ".txt", ".rst"})


class DataError(ValueError):
    """A shard or its description cannot be used; the message says where, why and what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read.

    Attributes:
        source: "file:line", the file relative to the shard; a Parquet row counts as a line.
        fields: field name to value; a text file has the single field "text".

    """

    source: str
    fields: dict[str, Any]


def data_suffix(path: Path) -> str | None:
    """Return the longest known suffix of `path`, or None: "notes.jsonl.gz" has ".jsonl.gz"."""
    name = path.name.lower()
    return max((s for s in SUFFIXES if name.endswith(s)), key=len, default=None)


def is_ignored(path: Path) -> bool:
    """Tell whether a file is no data: hidden, data.toml, public.toml, DATA.md, README, licence."""
    name = path.name.lower()
    if name.startswith(".") or name in {CONFIG_NAME, PUBLIC_NAME, "data.md"}:
        return True
    return path.stem.lower() in _NOTE_STEMS and path.suffix.lower() in _NOTE_SUFFIXES


def data_files(path: Path) -> tuple[Path, ...]:
    """List the data files of a shard, sorted by their path in it.

    Links that stay inside the folder are read once, as the file they point at.

    Args:
        path: a data file, or a folder searched with its subfolders.

    Raises:
        DataError: the path is missing, holds no data file or a file of an unknown kind, or has a
            symbolic link that leaves it.

    """
    if path.is_file():
        return (_known(path, path.name),)
    if not path.is_dir():
        raise DataError(
            f"{path}: Expected a data file or folder, got nothing there. Check the path."
        )
    root = path.resolve()
    found = {file.resolve(): file for file in sorted(_walk(root), reverse=True)}
    if not found:
        raise DataError(
            f"{path}: Expected data files, got an empty folder. Add {', '.join(SUFFIXES)} files."
        )
    files = sorted(found.values(), key=lambda file: file.relative_to(root).as_posix())
    return tuple(_known(file, file.relative_to(root).as_posix()) for file in files)


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders + files:
            refuse_escaping_link(Path(folder, name), root)
        yield from (Path(folder, name) for name in files if not is_ignored(Path(name)))


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(
        f"{error.filename}: Expected a readable folder, got {error.strerror}. "
        "Check its permissions."
    )


def refuse_escaping_link(path: Path, root: Path) -> None:
    """Raise DataError if `path` is a symbolic link to something outside `root`, or to nothing."""
    if not path.is_symlink():
        return
    target = path.resolve()
    if not target.is_relative_to(root.resolve()) or not target.exists():
        raise DataError(
            f"{path.relative_to(root)}: Expected data inside the folder, got a symbolic link that "
            "leaves it or points at nothing. Copy the data into the folder."
        )


def _known(file: Path, name: str) -> Path:
    if not file.is_file():  # opening a pipe would wait for ever
        raise DataError(f"{name}: Expected a regular file, got a pipe or device. Remove it.")
    if data_suffix(file) is None:
        raise DataError(
            f"{name}: Expected one of {', '.join(SUFFIXES)}, got the suffix {file.suffix!r}. "
            "Convert the file, or move it out of the data."
        )
    return file


def is_text(file: Path) -> bool:
    """Tell whether a data file holds plain text, not records."""
    return data_suffix(file) in _TEXT


def read_text(file: Path, name: str) -> str:
    """Return the whole content of a text file.

    Args:
        file: a text file, compressed or not. name: what messages call it.

    Raises:
        DataError: it cannot be read to its end, is no UTF-8 text, or says nothing.

    """
    text = "".join(line for _, line in _text_lines(file, name, MAX_LINE_BYTES))
    if not text.strip():
        raise DataError(f"{name}:1: Expected text, got an empty file. Remove it.")
    return text


def iter_rows(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Row]:
    """Yield the rows of a shard in a fixed order: files sorted by path, then line by line.

    A text file's rows are its paragraphs (separated by blank lines), merged while they stay within
    about 2,000 characters; a longer paragraph is cut at the ends of its lines.

    Args:
        path: a data file or a folder of them.
        max_line_bytes: longest line or Parquet value, in bytes; nothing longer is held in memory.

    Raises:
        DataError: a file cannot be read to its end, as the message says.

    """
    root = path.resolve() if path.is_dir() else path.parent
    for file in data_files(path):
        name = file.relative_to(root).as_posix()
        empty = True
        for line, fields in _file_rows(file, name, max_line_bytes):
            empty = False
            yield Row(f"{name}:{line}", fields)
        if empty:
            raise DataError(f"{name}:1: Expected records, got an empty file. Remove it.")


def _file_rows(file: Path, name: str, limit: int) -> Iterator[tuple[int, dict[str, Any]]]:
    suffix = data_suffix(file)
    if suffix in _PARQUET:
        return _parquet_rows(file, name, limit)
    lines = _text_lines(file, name, limit)
    return _json_rows(lines, name) if suffix in _JSON else _merged_paragraphs(lines)


def _text_lines(file: Path, name: str, limit: int) -> Iterator[tuple[int, str]]:
    """Yield (line number, decoded line), at most `limit` bytes of the file in memory."""
    number = 0
    try:
        with _open(file) as handle:
            while line := handle.readline(limit + 1):
                number += 1
                yield number, _decoded(line, f"{name}:{number}", limit)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{name}:{number + 1}: Expected a whole gzip file, got one that is cut off or damaged. "
            "Copy the file again."
        ) from error
    except OSError as error:
        raise DataError(
            f"{name}:{number + 1}: Expected a readable file, got {error.strerror}. "
            "Check its permissions and the disk."
        ) from error


def _open(file: Path) -> AbstractContextManager[BinaryIO]:
    if file.name.lower().endswith(".gz"):
        return cast(AbstractContextManager[BinaryIO], gzip.open(file, "rb"))
    return file.open("rb")


def _decoded(line: bytes, where: str, limit: int) -> str:
    if len(line) > limit:
        raise DataError(
            f"{where}: Expected lines of at most {limit} bytes, got a longer one. "
            "Put one record on each line, or split the record."
        )
    if b"\0" in line:
        raise DataError(
            f"{where}: Expected text, got binary data (a NUL byte). Export the file as UTF-8 text."
        )
    try:
        return line.decode("utf-8-sig" if where.endswith(":1") else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: Expected UTF-8, got an invalid byte at position {error.start + 1}. "
            "Convert the file to UTF-8."
        ) from error


def _json_rows(lines: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DataError(
                f"{name}:{number}: Expected one JSON object per line, got invalid JSON{column}. "
                "Correct the line; a JSON array becomes lines with `jq -c '.[]'`."
            ) from error
        if not isinstance(value, dict):
            raise DataError(
                f"{name}:{number}: Expected a JSON object, got {type(value).__name__}. "
                "Put one object on each line, its text under a field name."
            )
        yield number, value


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    start, size, held = 0, 0, list[str]()
    for number, line in lines:
        stripped = line.rstrip()
        if held and (not stripped or size + len(stripped) > PARAGRAPH_CHARACTERS):
            yield start, "\n".join(held)
            size, held = 0, []
        if stripped:
            start = start if held else number
            held.append(stripped)
            size += len(stripped) + 1
    if held:
        yield start, "\n".join(held)


def _merged_paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    start, size, held = 0, 0, list[str]()
    for number, paragraph in _paragraphs(lines):
        if held and size + len(paragraph) > PARAGRAPH_CHARACTERS:
            yield start, {"text": "\n\n".join(held)}
            size, held = 0, []
        start = start if held else number
        held.append(paragraph)
        size += len(paragraph) + 2
    if held:
        yield start, {"text": "\n\n".join(held)}


def _parquet_rows(file: Path, name: str, limit: int) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1_024):
                for row in batch.to_pylist():
                    number += 1
                    _refuse_long(row, f"{name}:{number}", limit)
                    yield number, row
    except DataError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{name}:{number + 1}: Expected a whole Parquet file of UTF-8 text, got one that "
            f"cannot be read ({type(error).__name__}). Write the file again."
        ) from error


def _refuse_long(row: dict[str, Any], where: str, limit: int) -> None:
    for field, value in row.items():
        if isinstance(value, str) and len(value) > limit:
            raise DataError(
                f"{where}: Expected values of at most {limit} bytes, got a longer one in field "
                f"{field!r}. Split the record."
            )
