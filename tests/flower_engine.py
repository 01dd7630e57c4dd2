"""Flower's own processes on loopback: a SuperLink, with SuperNodes or as its simulation."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from arion.toml_file import write_toml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
APP = ROOT / "examples" / "flower"
STARTS_S = 120


class SuperLink:
    """A SuperLink that runs.

    Args:
        home: of Flower, with its configuration.
        simulation: whether Flower's simulation runs the nodes, rather than SuperNodes.
        open_: what ends with the test.

    """

    def __init__(self, home: Path, *, simulation: bool, open_: ExitStack) -> None:
        home.mkdir()
        self._home, self._open = home, open_
        self._control, self._api = free_ports(2)
        address = f"127.0.0.1:{self._api}"
        here = {"address": address, "insecure": True}
        write_toml(home / "config.toml", {"superlink": {"default": "here", "here": here}})
        self._environment = {
            **os.environ,
            "FLWR_HOME": str(home),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "FLWR_TELEMETRY_ENABLED": "0",
        }
        kind = ["--simulation"] if simulation else []
        self._start(
            "flower-superlink", "--insecure", *kind, "--disable-runtime-dependency-installation",
            "--control-api-address", f"127.0.0.1:{self._control}",
            "--host", "127.0.0.1", "--port", str(self._api),
        )  # fmt: skip
        wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", self._api)), STARTS_S)

    def add_nodes(self, homes: Mapping[str, Path]) -> None:
        """Start a host and a SuperNode for each node's home."""
        for home, port in zip(homes.values(), free_ports(len(homes)), strict=True):
            self._start("arion", "node", "host", str(home))
            self._start(
                "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self._api}",
                "--port", str(port), "--node-config", f'home="{home}"',
            )  # fmt: skip
        for home in homes.values():
            wait_until((home / "node.sock").exists, STARTS_S)

    def submit(self, config: Mapping[str, Path], *options: str) -> None:
        """`flwr run .` in the example's folder."""
        words = " ".join(f'{key}="{path}"' for key, path in config.items())
        subprocess.run(
            [str(BIN / "flwr"), "run", ".", "here", "--run-config", words, *options],
            cwd=APP,
            env=self._environment,
            check=True,
            timeout=STARTS_S,
        )

    def _start(self, program: str, *arguments: str) -> None:
        log = self._open.enter_context((self._home / f"{program}.log").open("ab"))
        process = subprocess.Popen(
            [str(BIN / program), *arguments], cwd=ROOT, env=self._environment,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip

        def end() -> None:
            process.terminate()
            process.wait(60)

        self._open.callback(end)


@contextmanager
def superlink(home: Path, *, simulation: bool) -> Iterator[SuperLink]:
    """A SuperLink; everything that was started for it ends with the block."""
    with ExitStack() as open_:
        yield SuperLink(home, simulation=simulation, open_=open_)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.2)
