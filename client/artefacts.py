"""Artefacts of merged models, fetched from the coordinator: every byte checked, stops survived.

Files are written beside their place, in a folder that a later fetch of the same artefact goes on
with. Nothing that the coordinator says is trusted: the digest that the caller names is that of the
passport, which names all other files by theirs.
"""

import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from client.transport import Link, LinkLost, LinkRefused
from models.durable import file_digest, only_writer, put, sync
from models.variants.index import Entry, Index, find_entry
from models.variants.names import ATTESTATION, PASSPORT
from models.variants.passport import read_passport

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_TRIES, _FIRST_WAIT_S, _LONGEST_WAIT_S = 8, 0.5, 30.0
_LARGEST_PAPER = 16 << 20

Told = Callable[[int, int], None]
"""How many bytes are there, and how many will be."""


@dataclass(frozen=True)
class Fetch:
    """An artefact that is wanted.

    Attributes:
        digest: the beginning of its passport's SHA-256, hex.
        out: where it goes; must not exist. What was fetched in part lies beside it.
        check: called with the whole artefact before it gets its name; raises to refuse it.
        told: of progress.

    """

    digest: str
    out: Path
    check: Callable[[Path], object]
    told: Told = lambda done, total: None


def served_index(link: Link) -> Index:
    """Ask what the coordinator serves.

    Raises:
        LinkRefused: the caller may not, or the answer is no index.

    """
    try:
        return Index.model_validate_json(link.index())
    except ValidationError as error:
        raise LinkRefused(
            "bad-index", "Expected the index of a registry, got something else."
        ) from error
    except LinkRefused as refusal:
        if refusal.code != "unknown-call":
            raise
        raise LinkRefused(
            refusal.code,
            "Expected a coordinator that serves artefacts, got an older one. Have the operator "
            "upgrade it.",
        ) from refusal


def fetch_served(link: Link, wanted: Fetch, wait: Callable[[float], None] = time.sleep) -> Entry:
    """Fetch an artefact; `out` appears whole, or not at all.

    Raises:
        RegistryError: none of that digest, several, or a revoked one.
        LinkRefused: the caller may not have it, or the bytes are not those named.
        LinkLost: the connection was lost again and again; the same fetch goes on.
        FileExistsError: there is something at `out`.

    """
    out = wanted.out
    if out.exists():
        raise FileExistsError(f"Expected no {out} yet, got one. Choose another place.")
    entry = find_entry(served_index(link), wanted.digest)
    part = out.with_name(out.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    with only_writer(part):
        download = _Download(link, bytes.fromhex(entry.digest), part, wait)
        download.paper(PASSPORT, entry.digest)
        passport = read_passport(part)
        _clear(part, {PASSPORT, *passport.files})
        download.expect(_counted(wanted.told, part, passport.file_bytes), passport.file_bytes)
        for name, digest in passport.files.items():
            download.file(name, digest)
        download.attestation()
        wanted.check(part)
        put(part, out)
    return entry


class _Download:
    """The files of one artefact, each going on where it was."""

    def __init__(
        self, link: Link, artefact: bytes, folder: Path, wait: Callable[[float], None]
    ) -> None:
        self._link, self._artefact, self._folder, self._wait = link, artefact, folder, wait
        self._jitter = random.SystemRandom()
        self._told: Callable[[], None] = lambda: None
        self._largest = _LARGEST_PAPER

    def expect(self, told: Callable[[], None], total: int) -> None:
        """Say who is told of progress, and how many bytes the artefact has."""
        self._told, self._largest = told, max(total, _LARGEST_PAPER)

    def paper(self, name: str, digest: str) -> None:
        """Fetch a small file anew where it is not there with this digest."""
        path = self._folder / name
        if not path.exists() or file_digest(path) != digest:
            path.write_bytes(self._small(name))
            _check(path, digest)

    def attestation(self) -> None:
        """Fetch the signature, which an artefact need not have."""
        try:
            data = self._small(ATTESTATION)
        except LinkRefused as refusal:
            if refusal.code != "unknown-artefact":
                raise
        else:
            (self._folder / ATTESTATION).write_bytes(data)
            sync(self._folder / ATTESTATION)

    def file(self, name: str, digest: str) -> None:
        """Fetch a file from where it is; what has other bytes at its end is fetched once more."""
        if not _NAME.fullmatch(name):
            raise LinkRefused("bad-name", f"Expected a plain file's name, got {name[:80]!r}.")
        path = self._folder / name
        was_there = path.exists()
        self._append(path)
        if was_there and file_digest(path) != digest:  # it may be another artefact's, or damaged
            path.unlink()
            self._append(path)
        _check(path, digest)

    def _small(self, name: str) -> bytes:
        data = b""
        for chunk in self._link.pull(self._artefact, name, 0):
            data += chunk
            if len(data) > _LARGEST_PAPER:
                raise LinkRefused("too-large", f"Expected {name} of 16 MiB at most, got more.")
        return data

    def _append(self, path: Path) -> None:
        wait, tries = _FIRST_WAIT_S, 0
        while True:
            offset = path.stat().st_size if path.exists() else 0
            try:
                return self._append_once(path, offset)
            except LinkLost:
                moved = path.stat().st_size > offset
                wait, tries = (_FIRST_WAIT_S, 0) if moved else (wait, tries + 1)
                if tries == _TRIES:
                    raise
                self._wait(wait * self._jitter.uniform(0.5, 1.0))
                wait = min(2 * wait, _LONGEST_WAIT_S)

    def _append_once(self, path: Path, offset: int) -> None:
        with path.open("ab") as file:
            for chunk in self._link.pull(self._artefact, path.name, offset):
                file.write(chunk)
                if file.tell() > self._largest:
                    raise LinkRefused(
                        "too-large", f"Expected {self._largest} bytes at most, got more."
                    )
                self._told()


def _check(path: Path, digest: str) -> None:
    """Delete a file that has other bytes than the passport says; LinkRefused."""
    if file_digest(path) != digest:
        path.unlink()
        raise LinkRefused(
            "other-bytes",
            f"Expected {path.name} with the digest that was named, got other bytes. Fetch it "
            "again; if it stays so, tell the operator: the registry is damaged.",
        )
    sync(path)


def _clear(part: Path, names: set[str]) -> None:
    """Remove what another fetch to the same place left."""
    for path in part.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _counted(told: Told, part: Path, total: int) -> Callable[[], None]:
    return lambda: told(sum(path.stat().st_size for path in _files(part)), total)


def _files(part: Path) -> Iterator[Path]:
    return (path for path in part.iterdir() if path.is_file())
