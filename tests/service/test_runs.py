"""Whole runs over the service: nodes in threads of their own, each behind mutual TLS."""

import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import client.app
from arion.cli import app
from arion.federation import write_toml
from client.agent import Agent
from client.membership import collect, join
from client.node import CONSENT_FILE
from coordinator.app import GridChannel
from coordinator.driver import RunDriver
from coordinator.grid import ServiceGrid
from models.optimiser import OptimiserState
from tests.service.conftest import RunningService
from tests.small_federation import NAMES, SmallFederation, digest_of

EXACT = {"noise_multiplier": 0.0, "ring_bits": 32, "sampling_probability": 1.0}


class Institutions:
    """The small federation's nodes as agents of a service."""

    def __init__(self, service: RunningService, federation: SmallFederation) -> None:
        self.service, self.federation = service, federation
        self.asked: list[tuple[str, str]] = []
        self._agents: dict[str, tuple[Agent, threading.Thread]] = {}
        for name, home in federation.homes.nodes.items():
            consent = tomllib.loads((home / CONSENT_FILE).read_text())
            write_toml(home / CONSENT_FILE, consent | {"runtimes": ["arion-grpc"]})
            join(home, "localhost", service.pair, str(service.home.registry.invite(name)))
            service.home.registry.approve(name)
            collect(home, 5)

    def start(self, *names: str) -> None:
        for name in names:
            agent = Agent(self.federation.homes.nodes[name], self._answering(name))
            thread = threading.Thread(target=agent.run, daemon=True)
            thread.start()
            self._agents[name] = agent, thread

    def stop(self, *names: str) -> None:
        for name in names or tuple(self._agents):
            agent, thread = self._agents.pop(name)
            agent.stop()
            thread.join(20)
            assert not thread.is_alive()

    def run(self) -> OptimiserState:
        home = self.service.home
        grid = ServiceGrid("small", home.registry, home.mailbox)
        driver = RunDriver(self.federation.homes.coordinator, GridChannel(grid))
        try:
            return driver.run()
        finally:
            driver.close()
            grid.close()

    def _answering(self, name: str) -> Callable[..., Any]:
        home: Path = self.federation.homes.nodes[name]

        def answer(action: str, kind: str, body: bytes, payload: bytes) -> Any:
            self.asked.append((name, action))
            return client.app.answer(home, "arion-grpc", action, (kind, body, payload))

        return answer


@pytest.fixture
def institutions(
    service: RunningService, make_federation: Callable[..., SmallFederation]
) -> Iterator[Callable[..., Institutions]]:
    made: list[Institutions] = []

    def make(step: dict[str, Any] | None = None, **changes: Any) -> Institutions:
        federation = make_federation(
            step, seed=None, **{"runtime": "arion-grpc", "deadline_s": 30.0, **changes}
        )
        made.append(Institutions(service, federation))
        return made[0]

    yield make
    for each in made:
        each.stop()
    client.app.close_nodes()


def test_the_model_is_that_of_the_simulation(
    institutions: Callable[..., Institutions], make_federation: Callable[..., SmallFederation]
) -> None:
    """Without noise, and with every unit drawn, nothing is random: two runtimes, one model."""
    simulated = make_federation(EXACT, rounds=2).run()
    there = institutions(EXACT, rounds=2)
    there.start(*NAMES)
    assert digest_of(there.run()) == digest_of(simulated)
    there.federation.verified()


def test_a_private_run_ends_and_its_ledgers_hold(
    institutions: Callable[..., Institutions],
) -> None:
    there = institutions(rounds=2)
    there.start(*NAMES)
    assert there.run().step == 2
    reports = there.federation.verified()
    assert {reports[name].noise for name in NAMES} == {"csprng"}
    assert there.service.home.mailbox.waiting(1) == []


def test_a_missing_node_never_hangs_a_run(institutions: Callable[..., Institutions]) -> None:
    """west leaves after the first round; three of four are enough, at the deadline."""
    there = institutions(EXACT, rounds=2, deadline_s=3.0)
    there.start(*NAMES)

    def leave() -> None:
        while ("west", "query.unmask") not in there.asked:
            time.sleep(0.02)
        there.stop("west")

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    state = there.run()
    thread.join(20)
    assert not thread.is_alive()
    assert state.step == 2
    recorded = there.federation.bodies("coordinator", "round-recorded")
    assert "west" in recorded[0]["survivors"]
    assert "west" not in recorded[1]["survivors"]
    there.federation.verified()


def test_a_node_killed_in_the_middle_comes_back(
    institutions: Callable[..., Institutions],
) -> None:
    """Both commands, one of them killed with -9 while it trains; nothing is charged twice."""
    there = institutions(rounds=3, deadline_s=60.0)
    others = [name for name in NAMES if name != "north"]
    there.start(*others)
    north = there.federation.homes.nodes["north"]
    entries = north / "ledger" / "entries.jsonl"
    arion = [sys.executable, "-c", "from arion.cli import main; main()"]
    command = [*arion, "node", "run", str(north)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    killed = threading.Event()

    def kill() -> None:
        nonlocal process
        while not entries.exists() or b"release-debited" not in entries.read_bytes():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        killed.set()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        run = there.federation.homes.coordinator
        result = CliRunner().invoke(
            app, ["coordinator", "run", str(there.service.home.path), str(run)]
        )
        thread.join(30)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert killed.is_set()
    assert result.exit_code == 0, result.output
    assert "3 rounds are recorded" in result.output
    reports = there.federation.verified()
    debits = there.federation.bodies("north", "release-debited")
    assert len({debit["plan_digest"] for debit in debits}) == len(debits)
    assert {reports[name].noise for name in NAMES} == {"csprng"}


def test_a_service_that_starts_again_is_dialled_again(
    institutions: Callable[..., Institutions],
) -> None:
    there = institutions(EXACT, rounds=1)
    there.start(*NAMES)
    service = there.service
    before = service.ports
    service._do(service._service.stop())
    settings = service.home.settings.model_copy(
        update={"port": before.exchange, "enrolment_port": before.enrolment}
    )
    service._service._home = type(service.home)(**{**vars(service.home), "settings": settings})
    service._do(service._service.start())
    assert there.run().step == 1
