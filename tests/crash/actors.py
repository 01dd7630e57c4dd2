"""Processes that act while `strace` watches them, or makes one of their calls fail."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.recording import ACKNOWLEDGED, CHANGES, OUTPUT, Call, read_trace

_LONGEST = 1 << 26
_PR_SET_PTRACER = 0x59616D61

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None,
    reason="no strace on this machine: install the package strace to walk the crash matrix",
)


@dataclass(frozen=True)
class Fault:
    """The n-th call of a kind fails.

    Attributes:
        calls: names of calls, with commas between.
        error: its symbol, such as ENOSPC.
        number: from 1.

    """

    calls: str
    error: str
    number: int


class Actors:
    """Processes that act while `strace` watches: forks of one that has imported everything.

    Args:
        module: run as a program that calls `serve`.

    """

    def __init__(self, module: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-B", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def close(self) -> None:
        """Stop."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(20)

    def record(self, arguments: list[str], folder: Path) -> list[Call]:
        """Act to the end and return the calls; it must succeed."""
        trace, output = folder / "trace", folder / "output"
        options = ["-xx", "-s", str(_LONGEST), "-e", f"trace={','.join(CHANGES)}"]
        code = self._act(arguments, [*options, "-o", str(trace)], output)
        assert code == 0, output.read_text()
        return list(read_trace(trace.read_text()))

    def act_with_fault(self, arguments: list[str], fault: Fault, folder: Path) -> tuple[int, str]:
        """Act while one call fails; return exit code and all output."""
        output = folder / "output"
        inject = f"inject={fault.calls}:error={fault.error}:when={fault.number}"
        options = ["-e", f"trace={fault.calls}", "-e", inject, "-o", "/dev/null"]
        return self._act(arguments, options, output), output.read_text()

    def _act(self, arguments: list[str], options: list[str], output: Path) -> int:
        self._say(json.dumps([str(output), *arguments]))
        actor = int(self._heard())
        _wait_for(actor, "State:\tT")
        watcher = subprocess.Popen(
            ["strace", "-f", "-q", *options, "-p", str(actor)], stderr=subprocess.PIPE, text=True
        )
        _wait_for(actor, f"TracerPid:\t{watcher.pid}\n")
        os.kill(actor, signal.SIGCONT)
        code = int(self._heard())
        _, messages = watcher.communicate(timeout=60)
        assert watcher.returncode in (0, code), messages
        return code

    def _say(self, line: str) -> None:
        assert self._server.stdin is not None
        print(line, file=self._server.stdin, flush=True)

    def _heard(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


def serve(act: Callable[[list[str]], None]) -> None:
    """Fork for each line of standard input, stop the child until it is watched, and have it act."""
    sys.stdout = os.fdopen(os.dup(OUTPUT), "w", buffering=1)
    for line in sys.stdin:
        output, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            _be_watched(output)
            os._exit(_acted(act, arguments))
        print(child)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _be_watched(output: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1))
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, OUTPUT)
    os.dup2(file, 2)
    os.close(file)
    os.kill(os.getpid(), signal.SIGSTOP)


def _acted(act: Callable[[list[str]], None], arguments: list[str]) -> int:
    try:
        act(arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _wait_for(process: int, text: str) -> None:
    end = time.monotonic() + 20
    while text not in Path(f"/proc/{process}/status").read_text():
        assert time.monotonic() < end, f"process {process} did not come to {text!r}"
        time.sleep(0.002)


def acknowledge(text: str) -> None:
    """Say that something is done, in one call; for the acting process."""
    os.write(OUTPUT, f"{ACKNOWLEDGED}{text}\n".encode())


def acknowledgements(output: str) -> list[str]:
    """What a scenario said was done, in order."""
    lines = output.splitlines()
    return [line.removeprefix(ACKNOWLEDGED) for line in lines if line.startswith(ACKNOWLEDGED)]
