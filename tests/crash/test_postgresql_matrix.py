"""The acts that keep rows in a database, on PostgreSQL: the process, a session or the server ends.

All of it is real: the process is killed or loses its connection in the middle of a call, the server
ends sessions, crashes and recovers, its disk is full. `make crash-test` walks all of it and prints
the counts; `make test` walks a part of one act.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.crash.actors import Actors, Ended, Fault, acknowledgements, needs_strace
from tests.crash.disk import Disk, Tree, write_tree
from tests.crash.recording import CHANGES
from tests.crash.stage import CALLS, Stage
from tests.service.postgresql import PASSWORD, Server, running_server

pytestmark = needs_strace
ACTS = ("initialise", "enrol", "accept-upload", "renew-at-service", "migrate")
SHORT = "renew-at-service"
SLOW = pytest.mark.slow
HOWS = {"killed": "signal=KILL", "connection lost": "error=ECONNRESET"}
"""How a process and its session part, before each answer that it reads: also of that to COMMIT, so
that nobody tells it the outcome.
"""
KINDS = ("killed", "power lost")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that may be killed."""
    with running_server() as server:
        yield server


def walk(
    stage: Stage, act: Callable[[int], Ended], counted: Counter[str], what: str
) -> Iterator[Ended]:
    """Act from the same start until fault number 1, 2, … does not come about any more."""
    for number in itertools.count(1):
        stage.reset()
        ended = act(number)
        stage.database.wait_until_left()
        assert PASSWORD not in ended.output
        if not ended.was_met:
            assert ended.code == 0, ended.output
            return
        if ended.code == 1:  # it was told: in our words
            assert "DatabaseError: Expected a database that answers" in ended.output, ended.output
        counted[what] += 1
        counted["told"] += ended.code == 1
        counted["went on"] += ended.code == 0
        yield ended


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(name, how, marks=() if name == SHORT and how == "connection lost" else SLOW)
        for name in ACTS
        for how in HOWS
    ],
)
def test_process_and_session_part_at_each_answer(
    actors: Actors, server: Server, tmp_path: Path, name: str, how: str
) -> None:
    stage, counted = Stage(name, tmp_path, server), Counter[str]()

    def act(number: int) -> Ended:
        return actors.act(stage.arguments, tmp_path, Fault("recvfrom", HOWS[how], number))

    for ended in walk(stage, act, counted, how):
        stage.check(stage.home, acknowledgements(ended.output), f"{how} at {counted[how]}")
    print(f"\n{name}: {dict(counted)}")
    assert counted[how] > 10


@SLOW
@pytest.mark.parametrize("name", ["initialise", "accept-upload"])
def test_the_process_is_killed_at_each_change_of_a_file(
    actors: Actors, server: Server, tmp_path: Path, name: str
) -> None:
    """Files and rows lie on two machines: where power is lost, it is lost to the files alone."""
    stage, counted = Stage(name, tmp_path, server), Counter[str]()
    for calls, kind in itertools.product(CALLS, KINDS):
        trees: dict[str, Tree] = {}

        def act(number: int, calls: str = calls, trees: dict[str, Tree] = trees) -> Ended:
            disk, fault = Disk(stage.home), Fault(calls, "signal=KILL", number)
            ended = actors.act(stage.arguments, tmp_path, fault, also=",".join(CHANGES))
            trees.update((state.kind, state.tree) for state in disk.states(ended.calls))
            return ended

        for ended in walk(stage, act, counted, kind):
            if kind != "killed":
                shutil.rmtree(stage.home)
                write_tree(trees[kind], stage.home)  # of each kind the last is kept
            stage.check(stage.home, acknowledgements(ended.output), f"{kind} at {calls}")
    print(f"\n{name}: {dict(counted)}")
    assert counted["power lost"] > 0


@SLOW
@pytest.mark.parametrize("end", ["sessions", "server"])
@pytest.mark.parametrize("name", ACTS)
def test_the_server_ends_at_each_commit(
    actors: Actors, server: Server, tmp_path: Path, name: str, end: str
) -> None:
    """Where COMMIT was sent, the sessions are ended; or the server crashes, and recovers."""
    stage, counted = Stage(name, tmp_path, server), Counter[str]()
    ends = {
        "sessions": stage.database.end_sessions,
        "server": lambda: crash_and_recover(server),
    }
    calls = actors.record(stage.arguments, tmp_path, also="sendto")
    sent = [call.strings[0] for call in calls if call.name == "sendto"]
    for number in [at for at, text in enumerate(sent, 1) if b"COMMIT" in text]:
        stage.reset()
        fault = Fault("sendto", "signal=STOP", number)
        ended = actors.act(stage.arguments, tmp_path, fault, while_stopped=ends[end])
        assert ended.was_met
        stage.database.wait_until_left()
        said = acknowledgements(ended.output)
        stage.check(stage.home, said, f"{end} ended at {number}")
        counted[f"{end} ended"] += 1
        counted["told"] += ended.code == 1
        counted["went on"] += ended.code == 0
    print(f"\n{name}: {dict(counted)}")
    assert counted[f"{end} ended"] > 0


def crash_and_recover(server: Server) -> None:
    server.kill(signal.SIGQUIT)
    server.start()


@pytest.fixture(scope="module")
def small_disk() -> Iterator[tuple[Server, Path]]:
    """A server on a file system of 128 MB, and a file of its that takes the room away."""
    disk = Path(tempfile.mkdtemp(prefix="arion-disk-"))
    disk.chmod(0o755)
    command = ["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        disk.rmdir()
        pytest.skip("mounting a small file system needs root")
    try:
        with running_server(disk, "--wal-segsize=1") as server:
            yield server, disk / "filler"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()


@SLOW
@pytest.mark.parametrize("name", ACTS)
def test_the_disk_of_the_server_is_full(
    actors: Actors, small_disk: tuple[Server, Path], tmp_path: Path, name: str
) -> None:
    """With more and more room left, until the act comes to its end."""
    server, filler = small_disk
    stage, counted = Stage(name, tmp_path, server), Counter[str]()
    for pages in (0, *(4**power for power in range(6))):
        stage.reset()
        fill(filler, 4096 * pages)
        try:
            ended = actors.act(stage.arguments, tmp_path)
        finally:
            filler.unlink()
            wait_until_it_answers(server)
        stage.database.wait_until_left()
        stage.check(stage.home, acknowledgements(ended.output), f"{pages} pages left")
        counted["told"] += ended.code == 1
        counted["came to its end"] += ended.code == 0
    print(f"\n{name}, full: {dict(counted)}")
    assert counted["came to its end"] > 0


def fill(filler: Path, left: int) -> None:
    """Take all room of a file system but some bytes."""
    with filler.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        file.truncate(max(0, file.tell() - left))


def wait_until_it_answers(server: Server) -> None:
    """A server that could not write its log crashes; it recovers by itself, or is started again."""
    for _ in range(300):
        try:
            server.ask("SELECT 1")
            return
        except psycopg.OperationalError as error:
            if "refused" in str(error):
                server.start()
        time.sleep(0.1)
    raise AssertionError("the server did not recover")
