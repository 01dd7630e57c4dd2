"""Starts the soak's processes: forks of one that has imported the product.

    python -m benchmarks.soak_fork

Ten processes that are killed every few seconds would else spend most of their lives, and of the
machine, importing torch. A fork carries out a command line as `arion` does, in a process of its
own; nothing is open in the one that it came from. Lines of JSON come in and go out:

    {"words": ["node", "run", HOME], "log": FILE}  ->  its process number
    {}                                             ->  [[process number, exit code], ...] that ended

A negative code is the signal that ended it. When the input ends, so do all processes.
"""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

PARTS = (
    "arion.node_serve_cli", "arion.coordinator_cli", "arion.run_cli", "coordinator.service.serve",
    "privacy.dp.accountant", "dp_accounting.pld.privacy_loss_distribution", "models.optimiser",
)  # fmt: skip


class Forks:
    """The process that forks, and what it is asked.

    Args:
        log: of what it says itself.

    """

    def __init__(self, log: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.soak_fork"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=file, text=True, bufsize=1,
            )  # fmt: skip

    def start(self, words: Sequence[str], log: Path) -> int:
        """Start `arion WORDS`, its output appended to a file; return its process number."""
        return int(self._ask({"words": list(words), "log": str(log)}))

    def ended(self) -> dict[int, int]:
        """Exit codes of those that ended since this was asked last, by process number."""
        return dict(self._ask({}))

    def close(self) -> None:
        """End all of them."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    """Fork as asked, until the input ends."""
    running: set[int] = set()
    try:
        for line in sys.stdin:
            request = json.loads(line)
            if request:
                child = os.fork()
                if child == 0:
                    _become(request["words"], request["log"])
                running.add(child)
                _say(child)
            else:
                ended = _ended(running)
                running -= ended.keys()
                _say(sorted(ended.items()))
    finally:
        for child in running:  # not waited for yet, so the numbers are theirs
            os.kill(child, signal.SIGKILL)
        for child in running:
            os.waitpid(child, 0)


def _ended(running: set[int]) -> dict[int, int]:
    found = {}
    for child in running:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            found[pid] = os.waitstatus_to_exitcode(status)
    return found


def _become(words: Sequence[str], log: str) -> None:
    """Be the program `arion`; never returns."""
    code = 1
    with suppress(BaseException):
        code = _run(words, log)
    os._exit(code)


def _run(words: Sequence[str], log: str) -> int:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, out), (2, out)):
        os.dup2(file, number)
    sys.argv = ["arion", *words]
    try:
        import_module("arion.cli").main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    else:
        return 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 1


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    for part in PARTS:
        import_module(part)
    gc.freeze()
    serve()
