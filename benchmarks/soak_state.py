"""What a soak left on the disk: read from files alone, when no run is driven."""

import json
import math
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from arion.run_status import status_of
from arion.runs import PLAN_FILE
from client.config import CONSENT_FILE, LEDGER_FOLDER
from client.config import IDENTITY_FILE as NODE_IDENTITY_FILE
from client.histories import FORK_FILE, RESTORED_FILE
from coordinator.attempts import Attempt
from coordinator.driver import IDENTITY_FILE
from coordinator.settings import load_settings
from coordinator.store import RunStore
from models.checkpoint import model_digest
from models.folders import open_model
from models.recipe import prepare
from models.vector import write_vector
from privacy.consent import load_consent
from privacy.consent_pins import COORDINATOR
from privacy.dp.accountant import epsilon_microunits
from privacy.identity import IdentityKey
from privacy.ledger.entries import Body, ReleaseDebited, delta_units, parse_entry
from privacy.ledger.files import read_lines
from privacy.ledger.log import ENTRIES_FILE
from privacy.ledger.pins import Pin, Pins
from privacy.ledger.verify import LedgerReport, verify_tree


@dataclass(frozen=True)
class RunState:
    """A run at its coordinator.

    Attributes:
        rounds: that it was to have.
        state: as in `RunStatus`.
        attempts: as they were kept, in order.
        charged: epsilon that the coordinator counts for each member, millionths.
        digest: of the parameters after the last recorded round, hex; "" where it never began.

    """

    name: str
    rounds: int
    state: str
    attempts: tuple[Attempt, ...]
    charged: Mapping[str, int]
    digest: str


@dataclass(frozen=True)
class NodeState:
    """What a node remembers beside what its ledger's report says.

    Attributes:
        debits: releases, oldest first.
        signed: digest of the survivor set that it signed, by plan digest, hex.
        unmasked: plans that it gave shares for, hex.
        epsilon_micro, delta_1e15: of its consent, for all runs together.
        stops: files that stop it until an officer has settled a fork or a restored ledger.

    """

    debits: tuple[ReleaseDebited, ...]
    signed: Mapping[str, str]
    unmasked: frozenset[str]
    epsilon_micro: int
    delta_1e15: int
    stops: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """All of it.

    Attributes:
        runs: by name. nodes: by name.
        history: bodies of the coordinator's entries.
        reports: of every ledger, by its owner.

    """

    runs: Mapping[str, RunState]
    nodes: Mapping[str, NodeState]
    history: tuple[Body, ...]
    reports: Mapping[str, LedgerReport]


def read_state(
    root: Path, service: Path, runs: Mapping[str, Path], nodes: Mapping[str, Path]
) -> State:
    """Read a federation's files; no run may be driven meanwhile.

    Args:
        root: a folder above all of them.
        service: the coordinator's home.
        runs: homes of its runs by name.
        nodes: homes of the nodes by name.

    """
    reports = verify_tree(root, _pins(service, nodes))
    return State(
        runs={name: _read_run(home) for name, home in runs.items()},
        nodes={name: _read_node(home) for name, home in nodes.items()},
        history=_bodies(service),
        reports={report.name: report for report in reports},
    )


def _pins(service: Path, nodes: Mapping[str, Path]) -> Pins:
    """Keys as their owners hold them."""
    pins = {name: _pin(home / NODE_IDENTITY_FILE, is_node=True) for name, home in nodes.items()}
    return pins | {COORDINATOR: _pin(service / IDENTITY_FILE, is_node=False)}


def _pin(path: Path, *, is_node: bool) -> Pin:
    key = IdentityKey.load(path).public_key.hex()
    return Pin(public_key=key, kind="node" if is_node else "coordinator")


def _read_run(home: Path) -> RunState:
    status = status_of(home)
    members = json.loads((home / PLAN_FILE).read_bytes())["members"]
    return RunState(
        status.name, status.rounds, status.state, status.attempts,
        {name: epsilon_microunits(told["epsilon"]) for name, told in members.items()},
        _digest(home, status.round),
    )  # fmt: skip


def _digest(home: Path, recorded: int) -> str:
    settings = load_settings(home)
    with closing(RunStore(home)) as store:
        state = store.load_state(recorded)
    if state is None:
        return ""
    model, _ = open_model(settings.base_model)
    prepare(model, settings.recipe)
    write_vector(model, state.vector_D)
    return model_digest(model)


def _read_node(home: Path) -> NodeState:
    consent = load_consent(home / CONSENT_FILE)
    path = home / "rounds.sqlite"
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        signed = connection.execute("SELECT plan, set_digest FROM signed_sets").fetchall()
        unmasked = connection.execute("SELECT plan FROM unmask_replies").fetchall()
    return NodeState(
        tuple(body for body in _bodies(home) if isinstance(body, ReleaseDebited)),
        {plan.hex(): digest.hex() for plan, digest in signed},
        frozenset(plan.hex() for (plan,) in unmasked),
        math.ceil(consent.epsilon * 1e6),
        delta_units(consent.delta),
        tuple(name for name in (FORK_FILE, RESTORED_FILE) if (home / name).exists()),
    )


def _bodies(home: Path) -> tuple[Body, ...]:
    lines = read_lines(home / LEDGER_FOLDER / ENTRIES_FILE).complete
    return tuple(parse_entry(line).parsed() for line in lines)
