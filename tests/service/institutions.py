"""The small federation's nodes as agents of a running service, whose key their consents pin."""

import json
import os
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

import client.app
from arion.cli import app
from arion.run_status import find
from arion.runs import carry_on
from arion.toml_file import write_toml
from client.agent import Agent
from client.config import CONSENT_FILE
from client.membership import collect, join
from coordinator.settings import load_settings, save_settings
from coordinator.shared import RUNS_FOLDER
from coordinator.store import RunStore
from models.optimiser import OptimiserState
from privacy.ledger.pins import Pin
from privacy.ledger.verify import LedgerReport, verify_tree
from tests.service.running import RunningService
from tests.small_federation import RUN, SmallFederation

EXACT = {"noise_multiplier": 0.0, "ring_bits": 32, "sampling_probability": 1.0}


class Institutions:
    """Members that have joined and were approved, their consents, and the runs of their service."""

    def __init__(self, service: RunningService, federation: SmallFederation) -> None:
        self.service, self.federation = service, federation
        self.asked: list[tuple[str, str]] = []
        self.held: set[tuple[str, str]] = set()  # (node, action) that is not answered meanwhile
        self._agents: dict[str, tuple[Agent, threading.Thread]] = {}
        for name, home in federation.homes.nodes.items():
            self.consent(name, runtimes=["arion-grpc"], coordinator_key=self.key)
            join(home, "localhost", service.pair, str(service.home.registry.invite(name)))
            service.home.registry.approve(name)
            collect(home, 5)

    @property
    def key(self) -> str:
        return self.service.home.key.public_key.hex()

    def consent(self, name: str, **clauses: Any) -> None:
        path = self.federation.homes.nodes[name] / CONSENT_FILE
        write_toml(path, tomllib.loads(path.read_text()) | clauses)

    def order(self, name: str, **changes: Any) -> Path:
        """A run's home with the federation's settings, as `submit` makes it."""
        home = self.service.home.path / RUNS_FOLDER / name
        home.mkdir(parents=True)
        settings = self.federation.settings
        new = {"run": name, "coordinator": Path("../.."), **changes}
        save_settings(home, settings.model_copy(update=new))
        return home

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

    def restart_service(self) -> None:
        """Stop the service, and start it again where it was."""
        service, before = self.service, self.service.ports
        service._do(service._service.stop())
        ports = {"port": before.exchange, "enrolment_port": before.enrolment}
        settings = service.home.settings.model_copy(update=ports)
        service._service._home = type(service.home)(**{**vars(service.home), "settings": settings})
        service._do(service._service.start())

    def wait_for(self, name: str, action: str) -> None:
        """Wait until a node is asked something."""
        end = time.monotonic() + 60
        while (name, action) not in self.asked:
            assert time.monotonic() < end, "it is not asked"
            time.sleep(0.01)

    def run(self, name: str = RUN) -> OptimiserState:
        """Carry a run to its end, making its home where it has none; return the last state."""
        if not (self.service.home.path / RUNS_FOLDER / name).exists():
            self.order(name)
        status = carry_on(self.service.home, name, lambda outcome, state: None)
        assert status.state == "finished", status
        return self.state(name)

    def state(self, name: str) -> OptimiserState:
        home = find(self.service.home, name)
        store = RunStore(home)
        state = store.load_state(load_settings(home).rounds)
        store.close()
        assert state is not None
        return state

    def command(self, *arguments: str) -> Result:
        """`arion run ... --coordinator HOME` in this process; HOME as people give it, relative."""
        where = ["--coordinator", os.path.relpath(self.service.home.path)]
        return CliRunner().invoke(app, ["run", *arguments, *where])

    def status(self, name: str = RUN) -> dict[str, Any]:
        rows: list[dict[str, Any]] = json.loads(self.command("list", "--json").output)
        return next(row for row in rows if row["name"] == name)

    def bodies(self, owner: str, kind: str) -> list[dict[str, Any]]:
        """The entries of one kind in a node's or the coordinator's ledger."""
        homes = {"coordinator": self.service.home.path, **self.federation.homes.nodes}
        path = homes[owner] / "ledger" / "entries.jsonl"
        entries = map(json.loads, path.read_text().splitlines() if path.exists() else ())
        return [entry["body"] for entry in entries if entry["kind"] == kind]

    def verified(self, place: Path | None = None) -> dict[str, LedgerReport]:
        """All ledgers by owner, held against each other; `place` is where they lie now."""
        members = self.federation.settings.members
        pins = {name: Pin(public_key=key, kind="node") for name, key in members.items()}
        pins["coordinator"] = Pin(public_key=self.key, kind="coordinator")
        reports = verify_tree(place or self.service.home.path.parent, pins)
        assert [failure for report in reports for failure in report.failures] == []
        return {report.name: report for report in reports}

    def _answering(self, name: str) -> Callable[..., Any]:
        home: Path = self.federation.homes.nodes[name]

        def answer(action: str, kind: str, body: bytes, payload: bytes) -> Any:
            self.asked.append((name, action))
            while (name, action) in self.held:
                time.sleep(0.02)
            return client.app.answer(home, "arion-grpc", action, (kind, body, payload))

        return answer


Make = Callable[..., Institutions]
