"""The peers of `benchmarks.round`: FedAvg of a constant update, without secure aggregation.

Flower's deployment engine: a SuperLink and a SuperNode for each client, as they are started by
their commands, and `flwr run`. NVIDIA FLARE: its simulator, which runs each client in a process of
its own; it pins other versions than ours and so is run by another environment's Python, which
NVFLARE_PYTHON names.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

APP = Path(__file__).parent / "round_flower_app"
FLARE_JOB = Path(__file__).parent / "round_flare.py"
_LONGEST_S = 1_800.0
_START_S = 90.0


def flower_rounds(
    folder: Path, parameters: int, nodes: int, rounds: int
) -> tuple[list[float], dict[str, float]]:
    """Return when rounds ended, the start first, and the SuperLink's largest memory, MB."""
    port, ends = _free_port(), folder / "ends"
    home = folder / "flwr"
    home.mkdir()
    settings = f'[superlink]\ndefault = "b"\n[superlink.b]\naddress = "127.0.0.1:{port}"\n'
    (home / "config.toml").write_text(settings + "insecure = true\n")
    shutil.copytree(APP, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    with ExitStack() as stack:

        def start(*command: str) -> subprocess.Popen[bytes]:
            return _started(stack, [str(scripts / command[0]), *command[1:]], environment)

        link = start("flower-superlink", "--insecure", "--port", str(port))
        _wait(lambda: _listens(port))
        for _ in range(nodes):
            own, address = str(_free_port()), f"127.0.0.1:{port}"
            start("flower-supernode", "--insecure", "--superlink", address, "--port", own)
        config = f'parameters={parameters} rounds={rounds} nodes={nodes} ends="{ends}"'
        run = [str(scripts / "flwr"), "run", str(folder / "app"), "b", "--run-config", config]
        subprocess.run(run, env=environment, check=True, capture_output=True)
        _wait(lambda: ends.exists() and len(_numbers(ends)) == rounds + 1, _LONGEST_S)
        return _numbers(ends), {"SuperLink": _peak_mb(link.pid)}


def flare_rounds(
    folder: Path, parameters: int, nodes: int, rounds: int
) -> tuple[list[float], dict[str, float]]:
    """Return when the first client got each round's model, and the server's largest memory, MB."""
    command = [os.environ["NVFLARE_PYTHON"], str(FLARE_JOB)]
    arguments = map(str, (folder, parameters, nodes, rounds))
    done = subprocess.run(
        [*command, *arguments], cwd=folder, check=True, capture_output=True, text=True,
        timeout=_LONGEST_S,
    )  # fmt: skip
    return _numbers(folder / "site-1"), {"server": float(done.stdout.splitlines()[-1])}


def _started(
    stack: ExitStack, command: list[str], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip

    def stop() -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()

    stack.callback(stop)
    return process


def _numbers(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()]


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(is_there: Callable[[], bool], seconds: float = _START_S) -> None:
    end = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > end:
            raise TimeoutError("Expected a peer to get on, got nothing in time.")
        time.sleep(0.1)
