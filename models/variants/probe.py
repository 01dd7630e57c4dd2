"""Speed and memory of an artefact, measured in a process of its own, which may end as it likes.

    python -m models.variants.probe CONTAINER FOLDER CONTEXT BEGIN THREADS

prints one JSON object. Memory is what the process holds after decoding less what it held before
the artefact was opened, its libraries imported (what these load when they need it counts): a file
that is mapped counts as far as it was read.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from models.variants.extras import VariantError, need
from models.variants.kinds import KINDS, Opening
from models.variants.names import Container

_Number = TypeVar("_Number", int, float)
_POWER = Path("/sys/class/powercap")
_TOKENS = 64
_PROMPT_TOKENS = 8
_TRIES = 3
_STATUS = Path("/proc/self/status")
_FAULTS = frozenset({signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV})
_REINSTALL = "Install another version of it."
_REBUILD = {
    "gguf": "Build it anew for any: CMAKE_ARGS=-DGGML_NATIVE=OFF pip install --force-reinstall "
    "--no-cache-dir --no-deps llama-cpp-python",
    "hf": _REINSTALL,
    "onnx": _REINSTALL,
}
_LIBRARIES = {"gguf": "llama_cpp", "hf": "transformers", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class Probe:
    """What a run cost.

    Attributes:
        tokens_per_s: of decoding one text, the best of three tries. threads: that it used.
        resident_bytes: None where the system does not tell.
        joules_per_1000_tokens: of the whole processor package meanwhile; None where it does not
            tell.

    """

    tokens_per_s: float
    threads: int
    resident_bytes: int | None
    joules_per_1000_tokens: float | None


def probe(container: Container, folder: Path, context: int, begin: int) -> Probe:
    """Open an artefact in a new process, decode, and measure.

    Args:
        context: tokens that the runtime is opened for. begin: id of begin-of-text.

    Raises:
        MissingExtraError: the runtime is not installed.
        VariantError: the process ends otherwise than with figures.

    """
    need(_LIBRARIES[container], KINDS[container].extra)
    values = (container, folder, context, begin, torch.get_num_threads())
    command = [sys.executable, "-m", "models.variants.probe", *map(str, values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        return Probe(**json.loads(done.stdout))
    except (ValueError, TypeError) as error:
        raise VariantError(_ended(container, done.returncode, done.stderr)) from error


def _ended(container: Container, status: int, stderr: str) -> str:
    """Say how the process ended, and what to do."""
    expected = f"Expected {_LIBRARIES[container]} to run the artefact"
    if -status in _FAULTS:
        return (
            f"{expected}, got {signal.Signals(-status).name}: as it is built, it does not work on "
            f"this processor. {_REBUILD[container]}"
        )
    said = (stderr.strip().splitlines() or ["nothing"])[-1]
    return f"{expected}, got exit status {status} ({said}). Export it again."


def measure(container: Container, folder: Path, context: int, begin: int) -> Probe:
    """Measure in this process."""
    need(_LIBRARIES[container], KINDS[container].extra)
    before = _resident_bytes()
    opening = Opening(context, begin, every_logit=False)
    runtime = KINDS[container].open(folder, opening)
    tokens = min(_TOKENS, context - 1)
    runtime.decode([begin] * min(_PROMPT_TOKENS, tokens), 1)  # other kernels than one by one
    seconds, energy = [], package_joules(_POWER)
    for _ in range(_TRIES):
        started = time.perf_counter()
        runtime.decode([begin], tokens)
        seconds.append(time.perf_counter() - started)
    used, after = _grown(energy, package_joules(_POWER)), _resident_bytes()
    runtime.close()
    joules = None if used is None else used * 1000 / (_TRIES * tokens)
    return Probe(tokens / min(seconds), torch.get_num_threads(), _grown(before, after), joules)


def package_joules(root: Path) -> float | None:
    """Return what the processor packages have used since some moment; None if not to be read.

    Args:
        root: of Linux's powercap tree (Intel RAPL and its kin).

    """
    try:
        counters = [path.read_text() for path in root.glob("intel-rapl:?/energy_uj")]
    except OSError:  # readable by root alone on most systems
        return None
    return sum(map(int, counters)) / 1e6 if counters else None


def _grown(before: _Number | None, after: _Number | None) -> _Number | None:
    """The growth of a counter; None where it is unknown or was set back."""
    return None if before is None or after is None or after < before else after - before


def _resident_bytes() -> int | None:
    if not _STATUS.exists():
        return None
    found = [line.split() for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS")]
    return int(found[0][1]) * 1024 if found else None


def _main(container: str, folder: str, context: str, begin: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    kind = next(each for each in KINDS if each == container)
    print(json.dumps(vars(measure(kind, Path(folder), int(context), int(begin)))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
