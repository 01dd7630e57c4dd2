"""The database's schema: made by its steps, refused where it is another, changed as a whole."""

import threading
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from typer.testing import CliRunner

from arion.cli import app
from coordinator.errors import RunError
from coordinator.service import schema
from coordinator.service.bindings import RegistryError
from coordinator.service.database import (
    INVITATIONS,
    METADATA,
    DatabaseError,
    open_database,
    transaction,
)
from coordinator.service.home import ServiceHome, ServiceSettings
from privacy.enrolment import join_payload, new_connection_key, signing_request
from privacy.identity import IdentityKey
from tests.service.postgresql import on_both


def at_first_schema(home: Path) -> Engine:
    """A database as the first service made it, with one invitation, and no version noted."""
    engine = open_database(home)
    config = Config()
    config.set_main_option("script_location", "coordinator.service:migrations")
    with transaction(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        values = {"digest": "d", "name": "north", "role": "node", "expires": 1.0}
        connection.execute(INVITATIONS.insert().values(**values))
        connection.execute(text("DROP TABLE alembic_version"))
    return engine


def test_the_steps_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    assert schema.migrate(engine)
    schema.verify(engine)
    with transaction(engine) as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    assert schema.migrate(engine) == []


def test_a_database_of_the_first_service_keeps_its_rows(tmp_path: Path) -> None:
    engine = at_first_schema(tmp_path)
    schema.migrate(engine)
    schema.verify(engine)
    with transaction(engine) as connection:
        assert connection.execute(INVITATIONS.select()).one().name == "north"
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


@on_both
def test_other_schemas_are_refused_with_what_to_do(service_home: ServiceHome) -> None:
    for version, says in (("9999", "Install that version"), (None, "arion coordinator migrate")):
        with transaction(service_home.engine) as connection:
            if version:
                connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            else:
                for table in inspect(connection).get_table_names():
                    connection.execute(text(f"DROP TABLE {table}"))
        with pytest.raises(RunError, match=says):
            ServiceHome.open(service_home.path)
        result = CliRunner().invoke(app, ["coordinator", "serve", str(service_home.path)])
        assert result.exit_code == 2
        assert says in result.stderr
    with pytest.raises(RunError, match="Install that version"):
        schema.steps("9999")


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails after the last step and before the commit."""
    engine = open_database(tmp_path)
    upgrade = command.upgrade

    def fails(*arguments: Any, **options: Any) -> None:
        upgrade(*arguments, **options)
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(command, "upgrade", fails)
        with pytest.raises(OSError, match="gone"):
            schema.migrate(engine)
    with transaction(engine) as connection:
        assert inspect(connection).get_table_names() == []
    assert schema.migrate(engine)


def test_migrate_shows_what_it_would_do_and_does_it(tmp_path: Path) -> None:
    home = tmp_path / "srv"
    settings = ServiceSettings(federation="f", hosts=("localhost",))
    ServiceHome.create(home, settings).close()
    (home / "service.sqlite").unlink()
    shown = CliRunner().invoke(app, ["coordinator", "migrate", str(home), "--dry-run"])
    assert shown.exit_code == 0
    assert "CREATE TABLE invitations" in shown.stdout
    with pytest.raises(RunError, match="got none"):
        ServiceHome.open(home)
    done = CliRunner().invoke(app, ["coordinator", "migrate", str(home)])
    assert done.exit_code == 0
    assert f"the schema is {schema.newest()}" in done.stdout
    ServiceHome.open(home).close()


@on_both
def test_an_invitation_is_used_once_also_at_the_same_instant(service_home: ServiceHome) -> None:
    """Eight requests race for one invitation: what is read must still be so when it is written."""
    registry = service_home.registry
    invitation = registry.invite("north")
    start = threading.Barrier(8)
    outcomes: list[str] = []

    def join() -> None:
        identity, csr = IdentityKey.generate(), signing_request(new_connection_key(), "x")
        signed = identity.sign("join", join_payload(invitation.digest, csr))
        start.wait()
        try:
            registry.join(invitation.secret, csr, identity.public_key, signed.signature)
            outcomes.append("joined")
        except RegistryError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=join) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["bad-invitation"] * 7 + ["joined"]


@on_both
def test_what_a_database_says_holds_no_values(service_home: ServiceHome) -> None:
    values = {"digest": "secret-digest", "name": None, "role": "node", "expires": 1.0}
    with (
        pytest.raises(DatabaseError, match=r"no such table|does not exist") as caught,
        transaction(service_home.engine) as connection,
    ):
        connection.execute(text("SELECT :name FROM absent"), values)
    assert "secret-digest" not in str(caught.value)


@pytest.mark.parametrize("url", ["mysql://u:hunter2@h/d", "postgresql://u:hunter2@h/d", "hunter2"])
def test_other_databases_are_refused_without_naming_a_password(url: str, tmp_path: Path) -> None:
    command_line = ["--federation", "f", "--host", "h", "--database", url]
    result = CliRunner().invoke(app, ["coordinator", "init", str(tmp_path / "s"), *command_line])
    assert result.exit_code == 2
    assert "postgresql+psycopg" in result.stderr
    assert "hunter2" not in result.output
