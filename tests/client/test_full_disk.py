"""Disks that are full or read-only, writes that are cut short, and a process that is killed.

What is asked: one line that says what failed and what to do, nothing lost, nothing charged twice.
"""

import errno
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from arion.cli import app
from client.node import Node
from coordinator.attempts import Attempt, Phase
from coordinator.store import RunStore
from privacy.identity import Signed
from privacy.ledger.files import DiskError, replace_durably
from privacy.ledger.log import LedgerLog
from privacy.secagg.memory import PlanKey
from privacy.secagg.store import SqliteRoundStore
from tests.experts_release import Home, Make, train_command
from tests.small_hands import Hands

COMMAND = [sys.executable, "-c", "from arion.cli import main; main()"]
STEPS = 120


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no more than so many bytes of one file, enforced by the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that is mounted read-only: opening to write fails. (Modes do not stop root.)"""
    original = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)


@pytest.fixture
def node(make_home: Make, tmp_path: Path) -> Home:
    home = make_home(seed=None, allow_seeded_simulation=False)
    (tmp_path / "public.txt").write_text("\n".join(home.public))
    return home


def words(home: Home) -> list[str]:
    return train_command(home, steps=STEPS)


def check_one_line(result: Result, *said: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.output
    for text in said:
        assert text in line, line


def test_a_killed_command_goes_on_and_charges_once(node: Home) -> None:
    """SIGKILL in the middle of training, then a disk too small for the module, then neither."""
    process = subprocess.Popen(
        [*COMMAND, *words(node)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(node.path.glob("experts/*/state.safetensors")):
        assert process.poll() is None, "the command ended before it could be killed"
        assert time.monotonic() < deadline, "the command does not get on"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(node.bodies("run-reserved")) == 1
    assert node.bodies("experts-debited") == []
    assert node.report().is_ok

    state = next(node.path.glob("experts/*/state.safetensors"))
    with largest_file(state.stat().st_size // 8):
        check_one_line(CliRunner().invoke(app, words(node)), "Free or mend the disk")
    assert node.bodies("experts-debited") == []

    result = CliRunner().invoke(app, words(node))
    assert result.exit_code == 0, result.output
    (weights,) = (node.path.parent / "out" / "north").glob("*.safetensors")
    assert len(node.bodies("run-reserved")) == 1
    (debit,) = node.bodies("experts-debited")
    assert debit["sealed_digest"] == weights.stem
    assert node.report().is_ok


def test_a_read_only_home_is_one_line(node: Home, read_only: None) -> None:
    result = CliRunner().invoke(app, words(node))
    check_one_line(result, "entries.jsonl", "Read-only file system", "mend the disk")


def test_a_node_whose_disk_is_read_only_gives_its_lock_back(home: Home, read_only: None) -> None:
    for _ in range(2):
        with pytest.raises(DiskError, match=r"entries\.jsonl, got: Read-only file system"):
            Node(home.path, "simulate")


@pytest.mark.parametrize("parts", [1, 7])
def test_writes_that_the_system_takes_in_parts(
    hands: Hands, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    write = os.write
    monkeypatch.setattr(
        os, "write", lambda file, data: write(file, data[: max(1, len(data) // parts)])
    )
    hands.release("north", hands.plan())
    hands.reopen("north")
    monkeypatch.undo()
    assert len(hands.federation.bodies("north", "release-debited")) == 1
    assert hands.federation.verified()["north"].is_ok


def test_a_full_disk_under_the_ledger(tmp_path: Path) -> None:
    """The line is not acknowledged; what is half there is cut away when the ledger is reopened."""
    with LedgerLog(tmp_path, "north") as log:
        log.append("run-closed", {"run": "a"})
        size = (tmp_path / "entries.jsonl").stat().st_size
        with largest_file(size + 10), pytest.raises(DiskError, match="Free or mend the disk"):
            log.append("run-closed", {"run": "b"})
        assert log.size == 1
    assert (tmp_path / "entries.jsonl").stat().st_size == size + 10
    with LedgerLog(tmp_path, "north") as log:
        assert "torn last line of 10 bytes" in log.notes[0]
        log.append("run-closed", {"run": "c"})
        assert [entry.body for entry in log.entries] == [{"run": "a"}, {"run": "c"}]


def test_a_full_disk_under_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "head.json"
    replace_durably(path, b"old")
    with largest_file(10), pytest.raises(DiskError, match=r"head\.json, got: File too large"):
        replace_durably(path, bytes(100))
    assert path.read_bytes() == b"old"


def fill(connection: sqlite3.Connection) -> None:
    """Let SQLite find the disk full at its next new page."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")


def empty(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA max_page_count = 1000000")


def test_a_full_disk_under_a_members_store(tmp_path: Path) -> None:
    store = SqliteRoundStore(tmp_path / "rounds.sqlite")
    key = PlanKey("clinics", "run", 1, 1, 1)
    fill(store._connection)
    with pytest.raises(DiskError, match=r"rounds\.sqlite, got: database or disk is full"):
        store.record_unmask_reply(b"p" * 32, bytes(100_000))
    assert store.unmask_reply(b"p" * 32) is None
    empty(store._connection)
    store.claim_plan(key, b"q" * 32)
    assert store.record_unmask_reply(b"p" * 32, bytes(100_000)) == bytes(100_000)
    store.close()


def test_a_full_disk_under_the_coordinators_store(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    attempt = Attempt(1, 1, Phase.UPLOADING, Signed(bytes(100_000), bytes(64)))
    fill(store._connection)
    with pytest.raises(DiskError, match=r"rounds\.sqlite, got: database or disk is full"):
        store.save(attempt)
    assert store.last_attempt() is None
    empty(store._connection)
    store.save(attempt)
    assert store.last_attempt() == attempt
    store.close()
