"""`arion coordinator migrate`: what an operator does to a home while no service runs."""

from pathlib import Path
from typing import Annotated

import typer

from arion.errors import user_errors
from coordinator.service import schema
from coordinator.service.database import open_database
from coordinator.service.home import load_service_settings

Home = Annotated[Path, typer.Argument(metavar="HOME", help="The coordinator's home.")]


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
