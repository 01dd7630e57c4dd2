"""A federation in processes, each of one of two versions, that are replaced while runs go on."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privacy.identity import IdentityKey
from tests.compat.lay_out import RUNS
from tests.small_federation import NAMES

ROOT = Path(__file__).resolve().parents[2]
_LONGEST_S = 300.0


class Upgrading:
    """Service, nodes and the drivers of both runs.

    Args:
        folder: of all homes and logs.
        code: folder of the version that lays them out.

    Its methods take the folder of the version that a process shall be of.
    """

    def __init__(self, folder: Path, code: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = _free_ports()
        finished(code, str(ROOT / "tests/compat/lay_out.py"), str(folder), *map(str, self._ports))

    @property
    def service(self) -> Path:
        return self.folder / "service"

    @property
    def nodes(self) -> dict[str, Path]:
        return {name: self.folder / "federation" / "nodes" / name for name in NAMES}

    @property
    def coordinator_key(self) -> bytes:
        return IdentityKey.load(self.service / "identity.key").public_key

    def start_coordinator(self, code: Path) -> None:
        self._start("service", code, "coordinator", "serve", self.service)
        wait(lambda: all(map(_is_listening, self._ports)), "the service listens")
        for run in RUNS:
            self._start(run, code, "run", "resume", run, "--coordinator", self.service)

    def start_node(self, name: str, code: Path) -> None:
        self._start(name, code, "node", "run", self.nodes[name])

    def upgrade_coordinator(self, code: Path) -> None:
        """Stop service and drivers, migrate, start; return once both runs had a round of it."""
        for part in (*RUNS, "service"):
            self._stop(part)
        finished(code, "-m", "arion", "coordinator", "migrate", str(self.service))
        begun = {run: max(self.rounds(run)) for run in RUNS}
        self.start_coordinator(code)
        for run, last in begun.items():  # what was under way may have been planned by the older
            self.wait_for(lambda r=run, n=last: max(self.rounds(r)) > n + 1, f"rounds of {run}")

    def upgrade_nodes(self, code: Path) -> None:
        """Replace one after another; the next when both runs had a sum with an upload of it."""
        for name in NAMES:
            self._stop(name)
            old = len(self.bodies(self.nodes[name], "release-debited"))
            self.start_node(name, code)
            for run in RUNS:
                what = f"a sum of {run} with {name}"
                self.wait_for(lambda n=name, o=old, r=run: self._is_back(n, o, r), what)

    def rounds(self, run: str) -> dict[int, dict[str, Any]]:
        """What the coordinator's ledger says of a run's rounds."""
        recorded = self.bodies(self.service, "round-recorded")
        return {body["round"]: body for body in recorded if body["run"] == run}

    @staticmethod
    def bodies(home: Path, kind: str) -> list[dict[str, Any]]:
        """The entries of one kind in a home's ledger."""
        path = home / "ledger" / "entries.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [entry["body"] for entry in map(json.loads, lines) if entry["kind"] == kind]

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait for something while every process lives, but drivers that are done."""

        def look() -> bool:
            for name, process in self._processes.items():
                code = process.poll()
                is_fine = code is None or (name in RUNS and code == 0)
                assert is_fine, f"{name} ended: {self.log(name)}"
            return is_so()

        wait(look, what)

    def wait_for_the_end(self) -> None:
        for run in RUNS:
            self.wait_for(lambda r=run: self._processes[r].poll() == 0, f"the end of {run}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def stop(self) -> None:
        for name in list(self._processes):
            self._stop(name)

    def _is_back(self, name: str, old: int, run: str) -> bool:
        debits = self.bodies(self.nodes[name], "release-debited")[old:]
        plans = {debit["plan_digest"] for debit in debits}
        sums = [body for body in self.rounds(run).values() if body["plan_digest"] in plans]
        return any(name in body["survivors"] for body in sums)

    def _start(self, name: str, code: Path, *words: object) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "arion", *map(str, words)],
                cwd=code, env=environment(code), stdout=log, stderr=log,
            )  # fmt: skip

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name)
        process.terminate()
        process.wait(60)


def environment(code: Path) -> dict[str, str]:
    """Of a process that finds this version before the one that is installed."""
    return os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}


def finished(code: Path, *words: str) -> str:
    """Run Python with a version to its end, and return what it said."""
    done = subprocess.run(
        [sys.executable, *words], cwd=code, env=environment(code), check=False,
        capture_output=True, text=True, timeout=_LONGEST_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait(is_so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _LONGEST_S
    while not is_so():
        assert time.monotonic() < end, f"waited too long for: {what}"
        time.sleep(0.02)


@contextmanager
def upgrading(folder: Path, code: Path) -> Iterator[Upgrading]:
    """A federation laid out by a version; whatever of it runs at the end of the block is ended."""
    there = Upgrading(folder, code)
    try:
        yield there
    finally:
        there.stop()


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports() -> tuple[int, int]:
    here = ("127.0.0.1", 0)
    with socket.create_server(here) as one, socket.create_server(here) as two:
        return one.getsockname()[1], two.getsockname()[1]
