"""Where whole payloads lie, by name: a folder, or an object store that fsspec reaches.

A payload's name is its digest, so that writing one twice changes nothing. Each method is durable
once it returns.
"""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import fsspec  # type: ignore[import-untyped]

from privacy.ledger.files import naming, sync_directory, write_durably
from privacy.ledger.uncached import chunks_uncached, read_uncached

LARGE_BYTES = 4 << 20
"""What is larger, and written and read once, passes the system's page cache."""

SHARED_BYTES = 256 << 20
"""Payloads up to so many bytes are read once for all nodes that fetch them at about one time."""

CHUNK_BYTES = 1 << 20

_BEING_WRITTEN_S = 3600.0


class Store(Protocol):
    """Whole payloads by name."""

    def size(self, name: str) -> int | None:
        """Bytes of a payload, or None where there is none."""

    def open(self, name: str) -> IO[bytes]:
        """Open a payload to read; FileNotFoundError where there is none."""

    def read(self, name: str) -> bytes:
        """Return a payload that is read once; see `open`."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a payload that is read once; see `open`."""

    def write(self, name: str, data: bytes) -> None:
        """Keep a payload."""

    def take(self, part: Path, name: str) -> None:
        """Keep a file of the disk, which is gone then."""

    def copy(self, name: str, target: Path) -> None:
        """Put a payload, or a second name of it, at a place on the disk; see `open`."""

    def delete(self, name: str) -> None:
        """Delete a payload; one that is not there is fine."""

    def sizes(self) -> dict[str, int]:
        """Bytes of all payloads."""

    def names(self) -> list[str]:
        """Names of all payloads, and of what a crash left; not what may be being written now."""


class FolderStore:
    """Payloads as files of a folder, which may hold folders too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def size(self, name: str) -> int | None:
        """See `Store.size`."""
        path = self._folder / name
        return path.stat().st_size if path.exists() else None

    def open(self, name: str) -> IO[bytes]:
        """See `Store.open`."""
        return (self._folder / name).open("rb")

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        path = self._folder / name
        return read_uncached(path) if path.stat().st_size > LARGE_BYTES else path.read_bytes()

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Store.chunks`."""
        return chunks_uncached(self._folder / name)

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`; two that write the same do not meet before it has its name."""
        part = self._folder / f"{name}.{secrets.token_hex(4)}.part"
        with naming(part):
            write_durably(part, data, is_cached=not LARGE_BYTES < len(data) <= SHARED_BYTES)
        self.take(part, name)

    def take(self, part: Path, name: str) -> None:
        """See `Store.take`."""
        with naming(part):
            part.replace(self._folder / name)
            sync_directory(self._folder)

    def copy(self, name: str, target: Path) -> None:
        """See `Store.copy`."""
        try:
            os.link(self._folder / name, target)
        except PermissionError:  # a file system without second names
            shutil.copyfile(self._folder / name, target)

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        (self._folder / name).unlink(missing_ok=True)

    def sizes(self) -> dict[str, int]:
        """See `Store.sizes`."""
        found = {}
        for path in self._folder.iterdir():
            try:
                if path.is_file():
                    found[path.name] = path.stat().st_size
            except FileNotFoundError:  # cleared in between
                continue
        return found

    def names(self) -> list[str]:
        """See `Store.names`."""
        return [path.name for path in self._folder.iterdir() if _is_settled(path)]


class ObjectStore:
    """Payloads as objects below a URL, such as s3://bucket/arion (wants s3fs).

    Args:
        url: as fsspec reads it; credentials are those that its library finds by itself.

    Raises:
        ValueError: a URL of no protocol that fsspec knows, or whose library is not installed.

    """

    def __init__(self, url: str) -> None:
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"Expected the URL of an object store, got {url.partition(':')[0]!r}: {error}"
            ) from error

    def size(self, name: str) -> int | None:
        """See `Store.size`."""
        with _of_the_store():
            try:
                return int(self._files.info(self._path(name))["size"])
            except FileNotFoundError:
                return None

    def open(self, name: str) -> IO[bytes]:
        """See `Store.open`."""
        with _of_the_store():
            found: IO[bytes] = self._files.open(self._path(name), "rb")
            return found

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        with _of_the_store():
            return bytes(self._files.cat_file(self._path(name)))

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Store.chunks`."""
        with self.open(name) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        with _of_the_store():
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(self._path(name), data)

    def take(self, part: Path, name: str) -> None:
        """See `Store.take`."""
        with _of_the_store():
            self._files.makedirs(self._root, exist_ok=True)
            self._files.put_file(str(part), self._path(name))
        with naming(part):
            part.unlink()

    def copy(self, name: str, target: Path) -> None:
        """See `Store.copy`."""
        with _of_the_store():
            self._files.get_file(self._path(name), str(target))

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        with _of_the_store():
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def sizes(self) -> dict[str, int]:
        """See `Store.sizes`."""
        with _of_the_store():
            try:
                found: list[dict[str, Any]] = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {
            str(each["name"]).rpartition("/")[2]: int(each["size"])
            for each in found
            if each["type"] == "file"
        }

    def names(self) -> list[str]:
        """See `Store.names`; an object is there whole or not at all."""
        return list(self.sizes())

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _is_settled(path: Path) -> bool:
    try:
        is_new = path.stat().st_mtime > time.time() - _BEING_WRITTEN_S
    except FileNotFoundError:  # cleared in between
        return False
    return path.is_file() and not (path.suffix == ".part" and is_new)


@contextmanager
def _of_the_store() -> Iterator[None]:
    """Whatever a store's library raises is a store that fails, as a disk may."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"the object store failed: {type(error).__name__}") from error
