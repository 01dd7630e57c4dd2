"""Each rule of a soak refuses a state that was made wrong."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import client.app
from arion.toml_file import write_toml
from benchmarks.soak_checks import digest_of, violations
from benchmarks.soak_state import State, read_state
from coordinator.attempts import Phase
from coordinator.service.home import ServiceHome, ServiceSettings
from privacy.ledger.entries import RoundRecorded, RunOpened
from tests.service.institutions import Institutions
from tests.service.running import RunningService
from tests.small_federation import FEDERATION, NAMES, build, lay_ground

RUN, ROUNDS, WAIT_S = "first", 2, 30.0


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Institutions]:
    """Four institutions that have made a run of two rounds; nothing runs any more."""
    ground = lay_ground(tmp_path_factory.mktemp("ground"))
    folder = tmp_path_factory.mktemp("federation")
    settings = ServiceSettings(
        federation=FEDERATION, hosts=("localhost",), port=0, enrolment_port=0
    )
    home = ServiceHome.create(folder / "service", settings)
    service = RunningService(home)
    there = Institutions(service, build(ground, folder / "f", seed=None, deadline_s=WAIT_S))
    there.start(*NAMES)
    path = folder / "run.toml"
    write_toml(path, _run_file(ground.base_model))
    made = there.command("submit", str(path), "--name", RUN)
    there.stop()
    service.stop()
    client.app.close_nodes()
    assert made.exit_code == 0, made.output
    yield there
    home.close()


def _run_file(base: Path) -> dict[str, Any]:
    return {
        "model": {"base": str(base)},
        "training": {
            "rounds": ROUNDS, "expected_batch": 24.0, "sequence_length": 24,
            "sequences_per_unit": 2,
        },
        "privacy": {"epsilon": 8.0, "spare_releases": 2},
        "federation": {"n_min": 3},
        "service": {"unit": "person", "units": dict.fromkeys(NAMES, 20), "deadline_s": WAIT_S},
    }  # fmt: skip


def read(there: Institutions, root: Path | None = None) -> State:
    """The state of the federation, or of a copy of it."""
    old = there.service.home.path.parent
    root = root or old
    service = root / there.service.home.path.relative_to(old)
    nodes = {
        name: root / home.relative_to(old) for name, home in there.federation.homes.nodes.items()
    }
    return read_state(root, service, {RUN: service / "runs" / RUN}, nodes)


@pytest.fixture(scope="module")
def state(federation: Institutions) -> State:
    return read(federation)


def with_run(state: State, /, **changes: Any) -> State:
    return replace(state, runs={RUN: replace(state.runs[RUN], **changes)})


def with_last(state: State, **changes: Any) -> State:
    """The last attempt, changed."""
    *before, last = state.runs[RUN].attempts
    return with_run(state, attempts=(*before, replace(last, **changes)))


def with_node(state: State, **changes: Any) -> State:
    return replace(state, nodes=state.nodes | {"east": replace(state.nodes["east"], **changes)})


def with_report(state: State, **changes: Any) -> State:
    changed = {"east": replace(state.reports["east"], **changes)}
    return replace(state, reports=state.reports | changed)


def last_plan(state: State) -> str:
    return digest_of(state.runs[RUN].attempts[-1])


def recorded_last(state: State) -> RoundRecorded:
    return [body for body in state.history if isinstance(body, RoundRecorded)][-1]


def without(state: State, kind: type) -> State:
    return replace(state, history=tuple(b for b in state.history if not isinstance(b, kind)))


def test_what_a_run_leaves_breaks_no_rule(state: State) -> None:
    assert violations(state) == []
    assert [attempt.phase for attempt in state.runs[RUN].attempts] == [Phase.RECORDED] * ROUNDS
    assert all(len(node.debits) == ROUNDS for node in state.nodes.values())
    assert all(len(node.signed) == ROUNDS for node in state.nodes.values())


def other_set(state: State) -> State:
    signed = state.nodes["east"].signed
    return with_node(state, signed={**signed, last_plan(state): "0" * 64})


def signed_without_debit(state: State) -> State:
    return with_node(state, debits=state.nodes["east"].debits[:-1])


def debited_twice(state: State) -> State:
    debits = state.nodes["east"].debits
    return with_node(state, debits=(*debits, debits[-1]))


def forgotten_attempt(state: State) -> State:
    return with_run(state, attempts=state.runs[RUN].attempts[:-1])


def aborted_in_the_store(state: State) -> State:
    return with_last(state, phase=Phase.ABORTED, survivors=(), code="below-n-min")


def recorded_twice(state: State) -> State:
    return replace(state, history=(*state.history, recorded_last(state)))


def other_survivors(state: State) -> State:
    return with_last(state, survivors=state.runs[RUN].attempts[-1].survivors[:-1])


def no_quorum(state: State) -> State:
    nodes = {
        name: replace(node, signed={}, unmasked=frozenset()) for name, node in state.nodes.items()
    }
    return replace(state, nodes=nodes)


def counted_less(state: State) -> State:
    charged = state.runs[RUN].charged
    return with_run(state, charged={**charged, "east": charged["east"] - 1})


DOCTORED: dict[str, tuple[Callable[[State], State], str]] = {
    "a ledger is gone": (
        lambda state: replace(
            state, reports={n: r for n, r in state.reports.items() if n != "east"}
        ),
        "the ledger of east is not there",
    ),
    "a ledger fails": (lambda state: with_report(state, failures=("forked",)), "east: forked"),
    "a node saw a fork": (lambda state: with_node(state, stops=("FORK",)), "by a file FORK"),
    "a round is open": (lambda state: with_last(state, phase=Phase.UPLOADING), "left uploading"),
    "a round is applied": (lambda state: with_last(state, phase=Phase.APPLIED), "left applied"),
    "a run is not over": (lambda state: with_run(state, state="running"), "is running"),
    "a round is skipped": (lambda state: with_last(state, round=3), "expected (2, 1)"),
    "an attempt is skipped": (lambda state: with_last(state, attempt=2), "expected (2, 1)"),
    "a round is missing": (forgotten_attempt, "finished with 1 of 2 rounds"),
    "the ledger records more": (forgotten_attempt, "in the coordinator's ledger too often"),
    "a round is recorded twice": (recorded_twice, "in the coordinator's ledger too often"),
    "a record is missing": (
        lambda state: without(state, RoundRecorded), "not in the coordinator's ledger",
    ),
    "store and ledger differ": (aborted_in_the_store, "not in the coordinator's ledger"),
    "other survivors": (other_survivors, "not in the coordinator's ledger"),
    "an opening is missing": (lambda state: without(state, RunOpened), "was opened 0 times"),
    "another model": (lambda state: with_run(state, digest="0" * 64), "holds model 000000000000"),
    "a model handed out early": (
        lambda state: with_run(state, state="stopped"), "not handed out once",
    ),
    "a release without a debit": (signed_without_debit, "did not charge it"),
    "a release debited twice": (debited_twice, "more than once"),
    "a debit nobody knows of": (forgotten_attempt, "of which the coordinator knows nothing"),
    "a debit without a reservation": (
        lambda state: with_report(state, runs=()), "without a reservation",
    ),
    "over the consent": (
        lambda state: with_node(state, epsilon_micro=state.nodes["east"].epsilon_micro // 100),
        "over its consent",
    ),
    "delta over the consent": (lambda state: with_node(state, delta_1e15=1), "over its consent"),
    "the coordinator counts less": (counted_less, "the coordinator counts epsilon"),
    "two survivor sets": (other_set, "2 survivor sets were signed"),
    "no quorum": (no_quorum, "without a quorum of 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCTORED)
def test_a_doctored_state_is_refused(state: State, name: str) -> None:
    doctor, says = DOCTORED[name]
    found = violations(doctor(state))
    assert any(says in fault for fault in found), found


@pytest.mark.parametrize("owner", ["service", "f/nodes/east"])
def test_a_ledger_without_one_of_its_entries_is_refused(
    federation: Institutions, tmp_path: Path, owner: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(federation.service.home.path.parent, copy)
    assert violations(read(federation, copy)) == []
    path = copy / owner / "ledger" / "entries.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert any("dropped" in fault for fault in violations(read(federation, copy)))
