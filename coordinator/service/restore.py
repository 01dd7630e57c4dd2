"""A coordinator's home from a backup: into a new folder only, whole or not at all.

What a backup cannot know is what came after it. Invitations that were open are dropped, as they may
have been used since; members that were revoked since are active again, and the operator is told to
look. A ledger that is older than what members countersigned is not refused here, but where a run
begins: an epoch is opened, under a number that no epoch after the backup can have had, and in it
members are asked for the newest head that they hold.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import inspect

from coordinator.service import schema
from coordinator.service.archive import BackupError, Manifest, read_archive
from coordinator.service.backup import copy_rows
from coordinator.service.blobs import Blobs
from coordinator.service.database import (
    DATABASE_FILE,
    open_database,
    open_sqlite,
    transaction,
)
from coordinator.service.home import (
    BLOBS_FOLDER,
    SERVICE_FILE,
    load_service_settings,
    open_blobs,
)
from coordinator.service.invitations import withdraw
from coordinator.shared import leave_epochs
from privacy.ledger.files import naming, replace_durably, sync_directory

_RESTORING = ".restoring"


@dataclass(frozen=True)
class Restored:
    """What came of a restoration.

    Attributes:
        manifest: of the backup.
        dropped: open invitations that were dropped.

    """

    manifest: Manifest
    dropped: int


def restore(
    source: Path,
    home: Path,
    passphrase: bytes,
    database: str | None,
    payloads: str | None = None,
) -> Restored:
    """Make a home from a backup.

    Args:
        source: the backup.
        home: a folder that does not exist yet; it appears when all of it is there.
        passphrase: that the backup was made with.
        database: URL of an empty database; None is SQLite in the home. The URL that the backup's
            home had is not used: its database may be the one that is served.
        payloads: URL of an object store with nothing in it; None is a folder of the home. As with
            the database, the backup's is not used.

    Raises:
        BackupError: the home or the database is not empty, or the backup is not whole.
        RunError: a newer program made the backup.

    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise BackupError(
            f"Expected a new folder, got {home}, which holds something. Choose another."
        )
    folder = home.with_name(home.name + _RESTORING)
    shutil.rmtree(folder, ignore_errors=True)
    with naming(folder):
        folder.mkdir(mode=0o700)
    try:
        manifest = read_archive(source, folder, passphrase)
        settings = load_service_settings(folder).model_copy(
            update={"database": database, "payloads": payloads}
        )
        dropped = _prepare(folder)
        leave_epochs(folder)
        if database is not None:
            _fill(folder, database)
        if payloads is not None:
            _hand_over(folder, open_blobs(folder, settings))
        replace_durably(folder / SERVICE_FILE, settings.model_dump_json(indent=2).encode() + b"\n")
        with naming(home):
            for path in (*folder.rglob("*"), folder):
                if path.is_dir():
                    sync_directory(path)
            folder.replace(home)
            sync_directory(home.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Restored(manifest, dropped)


def _prepare(folder: Path) -> int:
    """Bring the backup's database to our schema and drop open invitations; return how many."""
    engine = open_sqlite(folder / DATABASE_FILE)
    try:
        schema.migrate(engine)
        with transaction(engine) as connection:
            return withdraw(connection)
    finally:
        engine.dispose()


def _hand_over(folder: Path, blobs: Blobs) -> None:
    """Move the payloads into an empty object store."""
    if blobs.names():
        raise BackupError(
            "Expected an object store that holds nothing, got one that does: another coordinator "
            "may use it. Give a place of its own."
        )
    for path in sorted((folder / BLOBS_FOLDER).iterdir()):
        if path.is_file():
            blobs.adopt(path)


def _fill(folder: Path, database: str) -> None:
    """Move the rows into an empty database, all of them or none."""
    source, target = open_sqlite(folder / DATABASE_FILE), open_database(folder, database)
    try:
        with transaction(target, only_reads=True) as connection:
            if inspect(connection).get_table_names():
                raise BackupError(
                    "Expected an empty database, got one with tables. Make a new one with createdb."
                )
        schema.migrate(target)
        copy_rows(source, target)
    finally:
        source.dispose()
        target.dispose()
    for path in folder.glob(DATABASE_FILE + "*"):
        path.unlink()
