"""`arion coordinator migrate`, `backup` and `restore`: how an operator keeps a home."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from coordinator.service import schema
from coordinator.service.backup import back_up
from coordinator.service.database import check_database_url, open_database
from coordinator.service.home import ServiceHome, load_service_settings
from coordinator.service.restore import restore
from coordinator.service.succession import replace_authority

Home = Annotated[Path, typer.Argument(metavar="HOME", help="The coordinator's home.")]
Archive = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
PassphraseFile = Annotated[
    Path, typer.Option(help="File that holds the passphrase of the private keys.")
]


def migrate_command(
    home: Home,
    *,
    dry_run: Annotated[bool, typer.Option(help="Print the SQL and change nothing.")] = False,
) -> None:
    """Bring the database to this version's schema, whole or not at all; stop the service first.

    Example: arion coordinator migrate srv --dry-run
    """
    with user_errors():
        engine = open_database(home, load_service_settings(home).database)
        if dry_run:
            typer.echo(schema.statements(engine) or f"-- the schema is {schema.newest()}")
            return
        for step in schema.migrate(engine):
            typer.echo(step)
    typer.echo(f"the schema is {schema.newest()}")


def backup_command(home: Home, file: Archive, *, passphrase_file: PassphraseFile) -> None:
    """Write a backup of the home and its runs, while the service and the runs go on.

    Private keys are sealed with the passphrase; all else in the file can be read by who has it.

    Example: arion coordinator backup srv monday.tar --passphrase-file key.txt
    """
    with user_errors(), closing(ServiceHome.open(home)) as opened:
        manifest = back_up(opened, file, _passphrase(passphrase_file))
    typer.echo(f"{manifest.federation} as of {manifest.made} is in {file}")


def restore_command(
    file: Archive,
    home: Home,
    *,
    passphrase_file: PassphraseFile,
    database: Annotated[str | None, typer.Option(help="URL of an empty database.")] = None,
    payloads: Annotated[str | None, typer.Option(help="URL of an empty object store.")] = None,
) -> None:
    """Make a new home from a backup, whole or not at all.

    Example: arion coordinator restore monday.tar srv2 --passphrase-file key.txt
    """
    with user_errors():
        if database is not None:
            check_database_url(database)
        restored = restore(file, home, _passphrase(passphrase_file), database, payloads)
    made = restored.manifest.made
    typer.echo(f"{restored.manifest.federation} as of {made} is in {home}")
    typer.echo(f"{restored.dropped} open invitations were dropped: invite again who has not joined")
    typer.echo(f"Revoke again, before you serve, whom you revoked after {made}.")


def replace_authority_command(home: Home) -> None:
    """Make a new certificate authority, after the old one's key was stolen; stop the service first.

    Signing key, ledger, runs and members stay. Every certificate of the old authority is refused
    once the service serves again: invite each member again by its name. It removes membership.json
    and joins again from its old home, and so with its old identity.

    Example: arion coordinator replace-authority srv
    """
    with user_errors():
        dropped = replace_authority(home)
    typer.echo(f"{home} has a new authority; {dropped} open invitations were dropped")
    typer.echo("next, once it serves again, for every member: arion node invite NAME")


def _passphrase(file: Path) -> bytes:
    return file.read_bytes().strip()
