"""One backup as one file: a tar of what a home holds, its digests, and secrets under a passphrase.

All but the secrets can be read by whoever has the file. Nothing can be altered without the
passphrase: the secrets' seal binds the manifest, which names every file by its digest.
"""

import base64
import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, ValidationError

from privacy.canonical import canonical_bytes
from privacy.ledger.files import make_directory, naming, replace_durably, sync_directory

MANIFEST, SEALED_KEYS = "manifest.json", "keys.sealed"
_VERSION = 1
_FOLDER = "home"
_SALT_BYTES, _NONCE_BYTES = 16, 12
_LARGEST_LIST = 64 << 20
_CHUNK_BYTES = 1 << 20


class BackupError(ValueError):
    """A backup that is not whole, not ours, or not opened by this passphrase."""


class Manifest(BaseModel):
    """What a backup holds.

    Attributes:
        version: of this format.
        federation: identifier.
        made: when the home was copied, UTC.
        digests: SHA-256 by path in the home, hex; the keys are not among them.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = _VERSION
    federation: str
    made: str
    digests: dict[str, str] = {}

    def payload(self) -> bytes:
        """Return the bytes that the seal binds."""
        return canonical_bytes(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Source:
    """A file of a backup: its first `size` bytes, as a ledger may grow while it is copied.

    Attributes:
        named: digest of a payload, which its bytes must have.

    """

    path: Path
    size: int
    named: bytes | None = None


@dataclass(frozen=True)
class Contents:
    """What goes into a backup, by path in the home: files, and private keys."""

    files: Mapping[str, Source]
    keys: Mapping[str, bytes]


def write_archive(target: Path, manifest: Manifest, contents: Contents, passphrase: bytes) -> None:
    """Write a backup, whole or not at all.

    Args:
        target: file that does not exist.
        manifest: without digests; they are taken while files are copied.
        contents: of the home.
        passphrase: seals the keys.

    """
    part = target.with_name(target.name + ".part")
    try:
        _write(part, manifest, contents, passphrase)
        with naming(target):
            part.replace(target)
            sync_directory(target.parent)
    finally:
        part.unlink(missing_ok=True)


def read_archive(source: Path, folder: Path, passphrase: bytes) -> Manifest:
    """Unpack a backup into an empty folder, durably, and check all of it.

    Raises:
        BackupError: not a backup, altered, cut short, or another passphrase. What was unpacked is
            to be thrown away.

    """
    digests: dict[str, str] = {}
    extra: dict[str, bytes] = {}
    try:
        with tarfile.open(source, mode="r:") as tar:
            for member in tar:
                data = tar.extractfile(member)
                if data is None or not member.isreg():
                    raise BackupError(f"Expected plain files in {source}, got {member.name!r}.")
                if member.name in (MANIFEST, SEALED_KEYS):
                    extra[member.name] = data.read(_LARGEST_LIST)
                else:
                    name = _safe(member.name)
                    digests[name] = _unpack(data, folder / name)
        payload = extra[MANIFEST]
        manifest = Manifest.model_validate_json(payload)
        keys = _open(extra[SEALED_KEYS], passphrase, payload)
    except (tarfile.TarError, KeyError, ValidationError) as error:
        raise BackupError(
            f"Expected a whole backup of a coordinator in {source}, got {type(error).__name__}. "
            "Take another copy of it."
        ) from error
    if manifest.version != _VERSION or manifest.digests != digests:
        raise BackupError(
            f"Expected the files that the manifest of {source} names, got others: the backup was "
            "altered or cut short. Take another copy of it."
        )
    for name, key in keys.items():
        make_directory((folder / _safe(f"{_FOLDER}/{name}")).parent)
        replace_durably(folder / name, key)
    return manifest


def _write(part: Path, manifest: Manifest, contents: Contents, passphrase: bytes) -> None:
    with naming(part):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as raw:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
                digests = {name: _add(tar, name, found) for name, found in contents.files.items()}
                payload = manifest.model_copy(update={"digests": digests}).payload()
                _add_bytes(tar, MANIFEST, payload)
                _add_bytes(tar, SEALED_KEYS, _seal(contents.keys, passphrase, payload))
            raw.flush()
            os.fsync(raw.fileno())


def _add(tar: tarfile.TarFile, name: str, source: Source) -> str:
    """Add a file; return its SHA-256, hex."""
    with source.path.open("rb") as file:
        reader = _Hashing(file)
        tar.addfile(_entry(f"{_FOLDER}/{name}", source.size), reader)
    if source.named not in (None, reader.blake3.digest(), reader.sha256.digest()):
        raise BackupError(
            f"Expected the bytes that the name of {name} says, got others: the disk damaged them. "
            "Stop the runs so that they are cleared, and give the command again."
        )
    return reader.sha256.hexdigest()


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_entry(name, len(data)), io.BytesIO(data))


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


class _Hashing(io.RawIOBase):
    """Hands a file's bytes on, and hashes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256, self.blake3 = file, hashlib.sha256(), blake3()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        self.blake3.update(data)
        return data


def _unpack(data: IO[bytes], path: Path) -> str:
    make_directory(path.parent)
    digest = hashlib.sha256()
    with naming(path), path.open("xb") as file:
        path.chmod(0o600)
        while chunk := data.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _safe(name: str) -> str:
    """Return the path in the home that an archive's name means."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] != (_FOLDER,):
        raise BackupError(f"Expected names below {_FOLDER}/ in a backup, got {name[:200]!r}.")
    return str(PurePosixPath(*path.parts[1:]))


def _seal(keys: Mapping[str, bytes], passphrase: bytes, bound: bytes) -> bytes:
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    plain = json.dumps({name: base64.b64encode(key).decode() for name, key in keys.items()})
    sealed = AESGCM(_derive(passphrase, salt)).encrypt(nonce, plain.encode(), bound)
    return salt + nonce + sealed


def _open(sealed: bytes, passphrase: bytes, bound: bytes) -> dict[str, bytes]:
    salt, nonce = sealed[:_SALT_BYTES], sealed[_SALT_BYTES:][:_NONCE_BYTES]
    try:
        cipher = AESGCM(_derive(passphrase, salt))
        plain = cipher.decrypt(nonce, sealed[_SALT_BYTES + _NONCE_BYTES :], bound)
    except (InvalidTag, ValueError) as error:
        raise BackupError(
            "Expected the passphrase that the backup was made with, got another one, or a backup "
            "that was altered. Look for the right file of each."
        ) from error
    return {name: base64.b64decode(key) for name, key in json.loads(plain).items()}


def _derive(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**16, r=8, p=1).derive(passphrase)
