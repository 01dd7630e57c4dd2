"""Copies of a coordinator's home at one instant, taken while the service and its runs go on.

The database is read in one transaction. Every other file is either replaced as a whole, so that a
second name keeps its bytes, or only appended to, so that its length is enough. A run's home is
taken again where anything in it changed meanwhile.
"""

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, func, select, text

from coordinator.service import schema
from coordinator.service.archive import BackupError, Contents, Manifest, Source, write_archive
from coordinator.service.database import (
    DATABASE_FILE,
    MEMBERS,
    MESSAGES,
    METADATA,
    REPLIES,
    open_sqlite,
    transaction,
)
from coordinator.service.home import BLOBS_FOLDER, IDENTITY_FILE, SERVICE_FILE, ServiceHome
from coordinator.service.pki import CA_KEY
from coordinator.shared import RUNS_FOLDER
from privacy.ledger.files import make_directory

SHORTEST_PASSPHRASE = 12
_STAGING = "backup.part"
_SEALED = {IDENTITY_FILE, CA_KEY, SERVICE_FILE}  # the last may hold a database password
_SQLITE = ".sqlite"
_LEFT_OUT = ("-wal", "-shm", ".part")
_TRIES, _WAIT_S = 50, 0.1
_ROWS = 500


def back_up(home: ServiceHome, target: Path, passphrase: bytes) -> Manifest:
    """Write a backup of a home, while it is served.

    Args:
        home: to copy, with the runs below it.
        target: a file that does not exist.
        passphrase: seals private keys and the service's settings, at least 12 bytes.

    Returns:
        What it holds, without digests.

    Raises:
        BackupError: the file exists, the passphrase is too short, a payload was damaged on the
            disk, or a run changes its files without a pause.

    """
    check_passphrase(passphrase)
    if target.exists() or home.path.resolve() in target.resolve().parents:
        raise BackupError(
            f"Expected a new file outside of the home, got {target}. Choose another name, on "
            "another disk."
        )
    made = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    manifest = Manifest(federation=home.settings.federation, made=made)
    with _staging(home.path) as staging:
        files = _database(home, staging) | _loose_files(home.path, staging)
        sealed = {name: source for name, source in files.items() if _is_sealed(name)}
        keys = {name: source.path.read_bytes() for name, source in sealed.items()}
        plain = {name: source for name, source in files.items() if name not in sealed}
        write_archive(target, manifest, Contents(plain, keys), passphrase)
    return manifest


def check_passphrase(passphrase: bytes) -> None:
    """Refuse a passphrase that is soon guessed; BackupError."""
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise BackupError(
            f"Expected a passphrase of at least {SHORTEST_PASSPHRASE} bytes, got "
            f"{len(passphrase)}. Draw one: openssl rand -base64 24."
        )


def copy_rows(source: Engine, target: Engine) -> None:
    """Copy all rows as they are at one instant, into tables that are empty, in one transaction."""
    with (
        transaction(source, only_reads=True) as reading,
        transaction(target) as writing,
    ):
        for table in METADATA.sorted_tables:
            rows = reading.execution_options(yield_per=_ROWS).execute(select(table))
            for part in rows.mappings().partitions():
                writing.execute(table.insert(), [dict(row) for row in part])
        if target.dialect.name == "postgresql":  # its counter knows nothing of rows with numbers
            largest = writing.execute(select(func.max(MEMBERS.c.address))).scalar()
            counter = text("SELECT setval(pg_get_serial_sequence('members', 'address'), :largest)")
            if largest is not None:
                writing.execute(counter, {"largest": largest})


@contextmanager
def _staging(home: Path) -> Iterator[Path]:
    """A folder on the home's disk, so that files get second names instead of copies."""
    folder = home / _STAGING
    shutil.rmtree(folder, ignore_errors=True)
    make_directory(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _database(home: ServiceHome, staging: Path) -> dict[str, Source]:
    """Copy the rows, and every payload that they name."""
    for _ in range(_TRIES):
        path = staging / DATABASE_FILE
        path.unlink(missing_ok=True)
        copy = open_sqlite(path)
        try:
            schema.migrate(copy)
            copy_rows(home.engine, copy)
            digests = _named_payloads(copy)
            with copy.connect() as connection:
                connection.connection.execute("PRAGMA journal_mode = DELETE")
        finally:
            copy.dispose()
        try:
            found = {
                f"{BLOBS_FOLDER}/{digest}": replace(
                    _payload(home, digest, staging / digest), named=bytes.fromhex(digest)
                )
                for digest in digests
            }
        except FileNotFoundError:
            continue  # a run went on, and its payloads were cleared after the rows were read
        return {DATABASE_FILE: _whole(path)} | found
    raise BackupError(
        "Expected the payloads that waiting messages name, got some that are missing. Stop the "
        "runs, and give the command again."
    )


def _payload(home: ServiceHome, digest: str, staged: Path) -> Source:
    if not staged.exists():
        home.mailbox.blobs.copy(bytes.fromhex(digest), staged)
    return _whole(staged)


def _named_payloads(engine: Engine) -> list[str]:
    with transaction(engine, only_reads=True) as connection:
        digests = {
            bytes(digest)
            for table in (MESSAGES, REPLIES)
            for digest in connection.execute(select(table.c.payload_digest)).scalars()
            if digest
        }
    return sorted(digest.hex() for digest in digests)


def _loose_files(home: Path, staging: Path) -> dict[str, Source]:
    """All that is not the service's database: settings, keys, and the homes of runs."""
    own = {DATABASE_FILE, BLOBS_FOLDER, RUNS_FOLDER, _STAGING}
    groups = [path for path in home.iterdir() if path.name not in own]
    if (home / RUNS_FOLDER).is_dir():
        groups += (home / RUNS_FOLDER).iterdir()
    found: dict[str, Source] = {}
    for number, group in enumerate(sorted(groups)):
        found |= _at_one_instant(home, group, staging / f"group{number}")
    return found


def _at_one_instant(home: Path, group: Path, staging: Path) -> dict[str, Source]:
    """Take a file, or a folder with all below it, as it is while nothing in it changes."""
    for _ in range(_TRIES):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(mode=0o700)
        before = _state(group)
        try:
            found = {
                path.relative_to(home).as_posix(): _take(path, staging / str(number))
                for number, path in enumerate(sorted(before))
                if not path.name.endswith(_LEFT_OUT)
            }
        except FileNotFoundError:
            continue
        if _state(group) == before:
            return found
        time.sleep(_WAIT_S)
    raise BackupError(
        f"Expected {group} to stay as it is for an instant, got changes without a pause. Stop that "
        "run, and give the command again."
    )


def _state(group: Path) -> dict[Path, tuple[int, int, int]]:
    """What tells that a file was changed, by path; links and what is no file are left out."""
    paths = [
        path for path in (group, *group.rglob("*")) if path.is_file() and not path.is_symlink()
    ]
    state = {}
    for path in paths:
        if not path.name.endswith("-shm"):
            try:
                found = path.stat()
            except FileNotFoundError:
                continue
            state[path] = (found.st_ino, found.st_size, found.st_mtime_ns)
    return state


def _take(path: Path, staged: Path) -> Source:
    if path.suffix != _SQLITE:
        return _second_name(path, staged)
    with (
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(staged)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    return _whole(staged)


def _second_name(path: Path, staged: Path) -> Source:
    size = path.stat().st_size
    if not staged.exists():
        try:
            os.link(path, staged)
        except PermissionError:  # a file system without second names
            shutil.copyfile(path, staged)
    return Source(staged, size)


def _whole(path: Path) -> Source:
    return Source(path, path.stat().st_size)


def _is_sealed(name: str) -> bool:
    return Path(name).name in _SEALED
