"""What only PostgreSQL can do to the service: go away, come back, and see a password."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arion.cli import app
from coordinator.service import schema
from coordinator.service.backup import back_up
from coordinator.service.database import DatabaseError, open_database, transaction
from coordinator.service.home import ServiceHome, ServiceSettings
from tests.service.postgresql import PASSWORD, Server, running_server


@pytest.fixture(scope="module")
def own_server() -> Server:
    """A server that may be killed."""
    with running_server() as server:
        yield server


def test_what_was_acknowledged_survives_kill_9_of_the_database(
    own_server: Server, tmp_path: Path
) -> None:
    """Calls fail with a plain error while it is gone; the same home goes on when it is back."""
    settings = ServiceSettings(
        federation="f", hosts=("localhost",), database=own_server.new_database()
    )
    home = ServiceHome.create(tmp_path / "srv", settings)
    posted = [
        home.mailbox.post("r", 1, "query.head", ("HeadQuery", b"%d" % number, b""))
        for number in range(20)
    ]
    own_server.kill()
    with pytest.raises(DatabaseError, match="Start the database") as caught:
        home.mailbox.waiting(1)
    assert PASSWORD not in str(caught.value)
    result = CliRunner().invoke(app, ["coordinator", "status", str(home.path)])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert PASSWORD not in result.output
    own_server.start()
    assert [post.message for post in home.mailbox.waiting(1)] == posted
    home.close()


def test_a_password_is_in_the_settings_file_alone(postgresql: Server, tmp_path: Path) -> None:
    home, url = tmp_path / "srv", postgresql.new_database()
    options = ["--federation", "f", "--host", "localhost", "--database", url]
    made = CliRunner().invoke(app, ["coordinator", "init", str(home), *options])
    assert made.exit_code == 0, made.output
    shown = CliRunner().invoke(app, ["coordinator", "status", str(home), "--json"])
    assert json.loads(shown.stdout)["federation"] == "f"
    assert PASSWORD not in made.output + shown.output
    files = [path for path in home.rglob("*") if path.is_file()]
    (only,) = [path for path in files if PASSWORD.encode() in path.read_bytes()]
    assert only.name == "service.json"
    assert only.stat().st_mode & 0o077 == 0
    opened = ServiceHome.open(home)
    assert PASSWORD not in repr(opened)
    back_up(opened, tmp_path / "b.tar", b"a long enough passphrase")
    assert PASSWORD.encode() not in (tmp_path / "b.tar").read_bytes()
    opened.close()


def test_wrong_credentials_end_with_one_line(postgresql: Server, tmp_path: Path) -> None:
    url = postgresql.new_database().replace(PASSWORD, "wrong-" + PASSWORD)
    options = ["--federation", "f", "--host", "localhost", "--database", url]
    result = CliRunner().invoke(app, ["coordinator", "init", str(tmp_path / "s"), *options])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert PASSWORD not in result.output


def test_a_migration_that_fails_on_postgresql_changes_nothing(
    postgresql: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_database(tmp_path, postgresql.new_database())
    upgrade = schema.command.upgrade

    def fails(*arguments: object, **options: object) -> None:
        upgrade(*arguments, **options)
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(schema.command, "upgrade", fails)
        with pytest.raises(OSError, match="gone"):
            schema.migrate(engine)
    with transaction(engine) as connection:
        assert schema.found(connection) is None
    schema.migrate(engine)
    schema.verify(engine)
    engine.dispose()
