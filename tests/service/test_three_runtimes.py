"""The same apps, unmodified, on our gRPC runtime, on Flower's SuperNodes and in its simulation.

Without noise, and with every unit drawn, nothing is random: all make one model.
"""

import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arion.toml_file import write_toml
from client.app import FLOWER
from client.config import CONSENT_FILE
from coordinator.store import RunStore
from tests.flower_engine import superlink, wait_until
from tests.service.institutions import EXACT, Make
from tests.small_federation import NAMES, SmallFederation, digest_of

ROUNDS = 2
ONE_WORKER = "num-supernodes=4 client-resources-num-cpus=2 init-args-num-cpus=2"
ENDS_S = 900.0
"""On two busy cores SuperNodes take minutes: each message starts an interpreter."""


@pytest.mark.slow
def test_three_runtimes_make_one_model(
    institutions: Make, make_federation: Callable[..., SmallFederation], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Flower's simulation runs on Ray: pip install ray")
    ours = institutions(EXACT, rounds=ROUNDS)
    ours.start(*NAMES)
    expected = digest_of(ours.run())
    ours.stop()
    assert on_super_nodes(of_flower(make_federation), tmp_path / "nodes") == expected
    assert in_simulation(of_flower(make_federation), tmp_path / "simulation") == expected


def on_super_nodes(federation: SmallFederation, home: Path) -> str:
    """Run on four SuperNodes, each with its node's host, as processes."""
    with superlink(home, simulation=False) as engine:
        engine.add_nodes(federation.homes.nodes)
        with finished(federation):
            engine.submit({"home": federation.homes.coordinator})
    return last_digest(federation)


def in_simulation(federation: SmallFederation, home: Path) -> str:
    """Run on Ray."""
    homes = {"home": federation.homes.coordinator, "nodes": federation.homes.root / "nodes"}
    with superlink(home, simulation=True) as engine, finished(federation):
        engine.submit(homes, "--federation-config", ONE_WORKER)
    return last_digest(federation)


def of_flower(make_federation: Callable[..., SmallFederation]) -> SmallFederation:
    """A federation whose members consent to Flower's engines."""
    there = make_federation(EXACT, seed=None, rounds=ROUNDS, runtime=FLOWER, deadline_s=600.0)
    for home in there.homes.nodes.values():
        consent = tomllib.loads((home / CONSENT_FILE).read_text())
        write_toml(home / CONSENT_FILE, consent | {"runtimes": [FLOWER]})
    return there


@contextmanager
def finished(federation: SmallFederation) -> Iterator[None]:
    """Do not leave the block before every node noted the run's end."""
    yield
    ledgers = [home / "ledger" / "entries.jsonl" for home in federation.homes.nodes.values()]

    def ended() -> bool:
        return all(path.exists() and b'"run-closed"' in path.read_bytes() for path in ledgers)

    wait_until(ended, ENDS_S)


def last_digest(federation: SmallFederation) -> str:
    """Of the last round's model, once all ledgers hold."""
    federation.verified()
    store = RunStore(federation.homes.coordinator)
    state = store.load_state(ROUNDS)
    store.close()
    assert state is not None
    return digest_of(state)
