"""A real PostgreSQL server for tests, from whatever installation this machine has.

PostgreSQL refuses to run as root: there it runs as the user postgres or nobody.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

on_both = pytest.mark.parametrize("service_home", ["sqlite", "postgresql"], indirect=True)
PASSWORD = "hunter2-of-the-tests"
_DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: on 127.0.0.1.
        folder: its data.
        programs: folder of its programs.
        options: how its programs are run.

    """

    port: int
    folder: Path
    programs: Path
    options: dict[str, object]

    def new_database(self) -> str:
        """Make an empty database; return its URL."""
        name = "d" + secrets.token_hex(6)
        self.ask(f'CREATE DATABASE "{name}"')
        return f"postgresql+psycopg://arion:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Give the server a statement, outside of any transaction; return the rows."""
        with psycopg.connect(self._where("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [self.programs / "postgres", "-D", self.folder, "-p", str(self.port)]
        settings = [
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            f"unix_socket_directories={self.folder}",
        ]
        with (self.folder / "log").open("ab") as log:
            subprocess.Popen([*command, *settings], stdout=log, stderr=log, **self.options)
        end = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self._where("postgres")).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < end, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.05)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the server itself, and wait until its port is closed."""
        os.kill(int((self.folder / "postmaster.pid").read_text().split()[0]), number)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)):
                    return
            time.sleep(0.05)
        raise AssertionError("the server did not stop")

    def _where(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=arion password={PASSWORD} dbname={database}"


@contextmanager
def running_server(place: Path | None = None, *options_of_initdb: str) -> Iterator[Server]:
    """Start a server in a folder of its own, within `place`; skips where there is none."""
    programs = _programs()
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="arion-postgresql-", dir=place))
    options: dict[str, object] = {"cwd": folder}
    if user is not None:
        shutil.chown(folder, user.pw_uid, user.pw_gid)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    words = folder / "password"
    words.write_text(PASSWORD)
    words.chmod(0o644)
    command = [programs / "initdb", "-D", folder / "data", "-U", "arion", "--no-sync", "-E", "UTF8"]
    login = ["--auth=scram-sha-256", f"--pwfile={words}", "--no-locale", *options_of_initdb]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(port, folder / "data", programs, options)
    try:
        subprocess.run([*command, *login], check=True, capture_output=True, **options)
        server.start()
        yield server
        server.kill(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    for folder in sorted(_DEBIAN.glob("*/bin/postgres"), reverse=True):
        return folder.parent
    pytest.skip("no PostgreSQL here: apt install postgresql, or put its programs on PATH")


def _user() -> pwd.struct_passwd | None:
    """Whom to run it as; None is ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody here")
