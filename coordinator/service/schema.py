"""The version of the database's schema: what this program needs, what it finds, how it gets there.

A step is one transaction together with the note of its version, on SQLite as on PostgreSQL: a crash
leaves the schema before it or after it.
"""

import io
from collections.abc import Sequence

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect

from coordinator.errors import RunError
from coordinator.service.database import transaction

_SCRIPTS = "coordinator.service:migrations"
_FIRST = "0001"
_BEFORE_VERSIONS = "members"
"""A table of the first service, which noted no version."""


def newest() -> str:
    """The version that this program works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "the package holds its scripts"
    return head


def found(connection: Connection) -> str | None:
    """Return the version of a database, or None for one without tables."""
    noted = MigrationContext.configure(connection).get_current_revision()
    if noted is None and inspect(connection).has_table(_BEFORE_VERSIONS):
        return _FIRST
    return noted


def steps(version: str | None) -> Sequence[str]:
    """Return what leads from a version to ours, in words, oldest first.

    Raises:
        RunError: a newer program made that version.

    """
    scripts = ScriptDirectory.from_config(_config())
    newest_first = list(scripts.walk_revisions())
    known = [script.revision for script in newest_first]
    if version is not None and version not in known:
        raise RunError(
            f"Expected a database of schema {newest()} or older, got {version!r}, which a newer "
            "version of Arion made. Install that version, or restore a backup into a new home."
        )
    left = newest_first[: known.index(version)] if version is not None else newest_first
    return [f"{script.revision}  {str(script.doc).splitlines()[0]}" for script in reversed(left)]


def verify(engine: Engine) -> None:
    """Refuse to work on any schema but our own.

    Raises:
        RunError: an older or a newer one; the message says what to do.

    """
    with transaction(engine, only_reads=True) as connection:
        version = found(connection)
    if steps(version):
        raise RunError(
            f"Expected a database of schema {newest()}, got {version or 'none'}. Stop the service "
            "and all runs, make a backup with the version that served, then give: arion "
            "coordinator migrate HOME."
        )


def migrate(engine: Engine) -> Sequence[str]:
    """Bring a database to our schema, whole or not at all; return the steps that were taken.

    Raises:
        RunError: a newer program made it.

    """
    with transaction(engine) as connection:
        version = found(connection)
        taken = steps(version)
        if not taken:
            return taken
        config = _config()
        config.attributes["connection"] = connection
        if version == _FIRST:
            command.stamp(config, _FIRST)  # where the first service noted no version
        command.upgrade(config, "head")
    return taken


def statements(engine: Engine) -> str:
    """Return the SQL that `migrate` would run, and change nothing.

    Raises:
        RunError: a newer program made the database.

    """
    with transaction(engine, only_reads=True) as connection:
        version = found(connection)
    if not steps(version):
        return ""
    text = io.StringIO()
    config = Config(output_buffer=text)
    config.set_main_option("script_location", _SCRIPTS)
    config.attributes["dialect"] = engine.dialect.name
    command.upgrade(config, f"{version}:head" if version else "head", sql=True)
    return text.getvalue()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    return config
