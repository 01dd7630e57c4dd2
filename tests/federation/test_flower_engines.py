"""The same apps, unmodified, on Flower's own engine: its simulation, which runs nodes on Ray.

Without noise, and with every unit drawn, nothing is random: the model is that of our runtimes
(`tests/service/test_runs.py::test_the_model_is_that_of_the_simulation` has the gRPC one).
"""

import hashlib
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arion.federation import write_toml
from client.node import CONSENT_FILE
from coordinator.store import RunStore
from models.optimiser import OptimiserState
from tests.small_federation import SmallFederation, digest_of

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
EXACT = {"noise_multiplier": 0.0, "ring_bits": 32, "sampling_probability": 1.0}
ONE_WORKER = "num-supernodes=4 client-resources-num-cpus=2 init-args-num-cpus=2"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def superlink(home: Path) -> Iterator[dict[str, str]]:
    """A SuperLink of Flower's simulation, and the environment in which `flwr` finds it."""
    home.mkdir()
    control, api = free_ports(2)
    write_toml(home / "config.toml", {
        "superlink": {"default": "here", "here": {"address": f"127.0.0.1:{api}", "insecure": True}},
    })  # fmt: skip
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    process = subprocess.Popen(
        [
            str(BIN / "flower-superlink"), "--insecure", "--simulation",
            "--disable-runtime-dependency-installation",
            "--control-api-address", f"127.0.0.1:{control}",
            "--host", "127.0.0.1", "--port", str(api),
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", api)), 60)
        yield environment
    finally:
        process.terminate()
        process.wait(30)


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.2)


def last_state(federation: SmallFederation) -> OptimiserState | None:
    store = RunStore(federation.homes.coordinator)
    state = store.load_state(federation.settings.rounds)
    store.close()
    return state


@pytest.mark.slow
def test_flowers_simulation_makes_the_same_model(
    make_federation: Callable[..., SmallFederation], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Flower's simulation runs on Ray: pip install ray")
    expected = digest_of(make_federation(EXACT, rounds=2).run())
    there = make_federation(EXACT, seed=None, rounds=2, runtime="flower", deadline_s=120.0)
    for home in there.homes.nodes.values():
        consent = tomllib.loads((home / CONSENT_FILE).read_text())
        write_toml(home / CONSENT_FILE, consent | {"runtimes": ["flower"]})
    homes = {"home": there.homes.coordinator, "nodes": there.homes.root / "nodes"}
    config = " ".join(f'{key}="{path}"' for key, path in homes.items())
    with superlink(tmp_path / "flwr") as environment:
        subprocess.run(
            [
                str(BIN / "flwr"), "run", str(ROOT), "here",
                "--run-config", config, "--federation-config", ONE_WORKER,
            ],
            env=environment, check=True, timeout=120,
        )  # fmt: skip
        ledger = there.homes.coordinator / "ledger" / "entries.jsonl"
        wait_until(lambda: ledger.exists() and b'"release"' in ledger.read_bytes(), 240)
        wait_until(lambda: closed(there), 60)
    state = last_state(there)
    assert state is not None
    assert hashlib.sha256(state.vector_D.numpy().tobytes()).hexdigest() == expected
    there.verified()


def closed(federation: SmallFederation) -> bool:
    """Whether every node noted the run's end, which is the last that it is asked but for heads."""
    return all(federation.bodies(name, "run-closed") for name in federation.homes.nodes)
