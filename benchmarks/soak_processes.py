"""Processes that are kept up as systemd would (Restart=always), and killed at random.

Everything that befalls them is a line in a file, which a soak that goes on later counts too.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.soak_fork import Forks

RESTART_S = 0.5
_SAID_BYTES = 4_096


@dataclass
class Unit:
    """One process that shall run.

    Attributes:
        name: of the unit.
        kind: "coordinator", "driver" or "node".
        words: of the command `arion`, asked at each start; None starts nothing for now.
        pid: of its process; 0 while it has none.

    """

    name: str
    kind: str
    words: Callable[[], Sequence[str] | None]
    pid: int = 0
    born: float = 0.0
    due: float = 0.0
    is_killed: bool = False


class Events:
    """A file of lines, one for each start, kill and exit.

    Args:
        path: appended to.

    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, event: str, unit: Unit, **details: Any) -> None:
        """Append one."""
        line = {
            "time": round(time.time(), 3), "event": event, "name": unit.name, "kind": unit.kind,
            "pid": unit.pid, **details,
        }  # fmt: skip
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All of them, oldest first."""
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines()]


class Fleet:
    """Units and their processes.

    Args:
        units: what shall run.
        folder: of their output.
        events: where to note what happens.

    """

    def __init__(self, units: Sequence[Unit], folder: Path, events: Events) -> None:
        folder.mkdir(exist_ok=True)
        self.units, self._folder, self._events = units, folder, events
        self._forks = Forks(folder / "forks.log")

    def tick(self) -> None:
        """See who has ended, and start who is due."""
        ended = self._forks.ended()
        for unit in self.units:
            if unit.pid in ended:
                self._note_end(unit, ended[unit.pid])
            if not unit.pid and time.monotonic() >= unit.due:
                self._start(unit)

    def kill(self, chance: random.Random, **details: Any) -> None:
        """SIGKILL one process: first a kind is drawn, so that a service of one meets its share."""
        up = [unit for unit in self.units if unit.pid and not unit.is_killed]
        if up:
            kind = chance.choice(sorted({unit.kind for unit in up}))
            self.end(chance.choice([unit for unit in up if unit.kind == kind]), **details)

    def end(self, unit: Unit, **details: Any) -> None:
        """SIGKILL this one; a later tick sees it, until when its number is nobody else's."""
        unit.is_killed = True
        self._events.note("kill", unit, **details)
        os.kill(unit.pid, signal.SIGKILL)

    def stop(self) -> None:
        """End all of them, and start none."""
        self._forks.close()
        for unit in self.units:
            unit.pid = 0

    def _start(self, unit: Unit) -> None:
        words = unit.words()
        if words is None:
            return
        unit.pid = self._forks.start(words, self._log(unit))
        unit.born, unit.is_killed = time.monotonic(), False
        self._events.note("start", unit)

    def _note_end(self, unit: Unit, code: int) -> None:
        if not unit.is_killed or code != -signal.SIGKILL:
            self._events.note("exit", unit, code=code, said=_last_line(self._log(unit)))
        unit.pid, unit.due = 0, time.monotonic() + RESTART_S

    def _log(self, unit: Unit) -> Path:
        return self._folder / f"{unit.name}.log"


def rss_mb(pid: int) -> float | None:
    """Resident memory of a process now, MB; None where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("VmRSS")]
    return int(found[0].split()[1]) * 1024 / 1e6 if found else None


def _last_line(path: Path) -> str:
    lines = path.read_bytes()[-_SAID_BYTES:].decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
