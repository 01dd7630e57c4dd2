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

TRACE = "trace"
_LONGEST = 1 << 26
_PR_SET_PTRACER = 0x59616D61
_STOPPING = "--- SIGSTOP {"  # a signal comes: not the stop that an actor waits in to be watched

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None,
    reason="no strace on this machine: install the package strace to walk the crash matrix",
)


@dataclass(frozen=True)
class Fault:
    """Something happens at the n-th call of a kind.

    Attributes:
        calls: names of calls, with commas between.
        action: "error=ENOSPC" and the like fail the call, "signal=KILL" ends the process before it,
            "signal=STOP" stops the process after it.
        number: from 1.

    """

    calls: str
    action: str
    number: int


@dataclass(frozen=True)
class Ended:
    """How an act ended.

    Attributes:
        code: exit code, or minus the signal that ended it.
        output: all that it wrote.
        calls: what was recorded of it.
        was_met: whether the fault came about.

    """

    code: int
    output: str
    calls: list[Call]
    was_met: bool


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

    def record(self, arguments: list[str], folder: Path, also: str = "") -> list[Call]:
        """Act to the end and return the calls that change files, and others; it must succeed."""
        ended = self.act(arguments, folder, also=",".join([*CHANGES, *also.split()]))
        assert ended.code == 0, ended.output
        return ended.calls

    def act(
        self,
        arguments: list[str],
        folder: Path,
        fault: Fault | None = None,
        *,
        also: str = "",
        while_stopped: Callable[[], object] | None = None,
    ) -> Ended:
        """Act, perhaps while a fault comes about.

        Args:
            arguments: of the act.
            folder: of the trace and of the output.
            fault: None lets it act to the end.
            also: names of calls to record beside those of the fault, with commas between.
            while_stopped: what is done once the fault has stopped the process, before it goes on.

        """
        trace, output = folder / TRACE, folder / "output"
        recorded = ",".join(filter(None, [fault.calls if fault else "", also])) or "none"
        options = ["-xx", "-s", str(_LONGEST), "-e", f"trace={recorded}", "-o", str(trace)]
        if fault is not None:
            options += ["-e", f"inject={fault.calls}:{fault.action}:when={fault.number}"]
        code, was_stopped = self._act(arguments, options, output, while_stopped)
        text = trace.read_text()
        was_met = was_stopped or code == -signal.SIGKILL or "(INJECTED)" in text
        return Ended(code, output.read_text(), list(read_trace(text)), was_met)

    def _act(
        self,
        arguments: list[str],
        options: list[str],
        output: Path,
        while_stopped: Callable[[], object] | None,
    ) -> tuple[int, bool]:
        trace = output.with_name(TRACE)
        trace.unlink(missing_ok=True)
        self._say(json.dumps([str(output), *arguments]))
        actor = int(self._heard())
        _wait_for(actor, "State:\tT")
        watcher = subprocess.Popen(
            ["strace", "-f", "-q", *options, "-p", str(actor)], stderr=subprocess.PIPE, text=True
        )
        _wait_for(actor, f"TracerPid:\t{watcher.pid}\n")
        os.kill(actor, signal.SIGCONT)
        was_stopped = while_stopped is not None and _stops(actor, trace)
        if while_stopped is not None and was_stopped:
            while_stopped()
            os.kill(actor, signal.SIGCONT)
        code = int(self._heard())
        _, messages = watcher.communicate(timeout=60)
        assert watcher.returncode in (0, code), messages
        return code, was_stopped

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


def _stops(process: int, trace: Path) -> bool:
    """Wait until a fault has stopped a process, as its trace says; False where it ends before."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        is_there = Path(f"/proc/{process}").exists()
        _, signalled, rest = (trace.read_text() if trace.exists() else "").partition(_STOPPING)
        if signalled and "stopped by SIGSTOP" in rest:
            return True
        if not is_there:
            return False
        time.sleep(0.005)
    raise AssertionError(f"process {process} neither stopped nor ended")


def acknowledge(text: str) -> None:
    """Say that something is done, in one call; for the acting process."""
    os.write(OUTPUT, f"{ACKNOWLEDGED}{text}\n".encode())


def acknowledgements(output: str) -> list[str]:
    """What a scenario said was done, in order."""
    lines = output.splitlines()
    return [line.removeprefix(ACKNOWLEDGED) for line in lines if line.startswith(ACKNOWLEDGED)]
