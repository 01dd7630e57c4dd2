"""A scenario on a stage: its folder and its database, put back as often as is asked."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tests.crash.scenarios import SCENARIOS
from tests.crash.service_acts import DATABASE
from tests.service.postgresql import Server

CALLS = ("write", "pwrite64", "fsync,fdatasync", "rename,link", "ftruncate", "mkdir", "unlink")
"""By which files change, as far as one can fail."""

_OURS = "datname = %s AND backend_type = 'client backend'"


class Database:
    """An empty database of a server, and a copy of it as it was when it was kept."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.url = server.new_database()
        self._name = self.url.rpartition("/")[2]

    def keep(self) -> None:
        """Remember the database as it is now."""
        self._server.ask(f'CREATE DATABASE "{self._name}-kept" TEMPLATE "{self._name}"')

    def reset(self) -> None:
        """Put the database back to what was kept."""
        self._server.ask(f'DROP DATABASE IF EXISTS "{self._name}" WITH (FORCE)')
        self._server.ask(f'CREATE DATABASE "{self._name}" TEMPLATE "{self._name}-kept"')

    def end_sessions(self) -> None:
        """Have the server end all sessions, as an operator or a failover does."""
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}"
        self._server.ask(query, self._name)
        self.wait_until_left()

    def wait_until_left(self) -> None:
        """Wait until the server has noticed that nobody is there any more."""
        end = time.monotonic() + 60
        query = f"SELECT count(*) FROM pg_stat_activity WHERE {_OURS}"
        while self._server.ask(query, self._name) != [(0,)]:
            assert time.monotonic() < end, f"somebody stays in the database {self._name}"
            time.sleep(0.005)


class Stage:
    """A scenario in a folder of the test.

    Args:
        name: of the scenario.
        folder: of the test.
        server: has a database for it; None leaves it SQLite.

    """

    def __init__(self, name: str, folder: Path, server: Server | None = None) -> None:
        self.name, self.scenario = name, SCENARIOS[name]
        self.folder, self.home, self.rests = folder, folder / "home", folder / "rests"
        self._kept = folder / "kept"
        self.rests.mkdir()
        self._database = Database(server) if server is not None else None
        if self._database is not None:
            (self.rests / DATABASE).write_text(self._database.url)
        self.scenario.prepare(self.home, self.rests)
        shutil.copytree(self.home, self._kept)
        if self._database is not None:
            self._database.keep()
        self.arguments = [name, str(self.home), str(self.rests)]

    @property
    def database(self) -> Database:
        """The scenario's, on the server that it was given."""
        assert self._database is not None, "this stage has a server"
        return self._database

    def reset(self) -> None:
        """Put everything back to what it was before the act."""
        shutil.rmtree(self.home)
        shutil.copytree(self._kept, self.home)
        if self._database is not None:
            self._database.reset()

    def check(self, home: Path, acknowledged: Sequence[str], what: str) -> None:
        """Check what a crash left; a failure names it."""
        try:
            self.scenario.check(home, self.rests, acknowledged)
        except BaseException as error:
            error.add_note(f"{self.name}: {what}, acknowledged {acknowledged}")
            raise
