"""What a ledger says in good order and falsely is found; what it honestly says adds up."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.ledger.charges import schedule_epsilon_micro
from privacy.ledger.entries import ScheduleBasis
from privacy.ledger.pins import Pins
from privacy.ledger.spends import RunSpend, compose_spends
from privacy.ledger.verify import verify_ledger
from tests.ledger.conftest import STEP, failures

Make = SimpleNamespace


def apart(make: Make, run: str, data_set: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    return make.reserved(run, data_set=data_set, kept_apart=True, **changes)


SMALL = 3 * 10**5  # a delta of 3e-10, of which 2^-40 shows


def basis(vector_length: int, **changes: Any) -> dict[str, Any]:
    values = {"vector_length": vector_length, "contributors": 60, "noise_in_lattice_units": 4.0}
    return {**values, "is_sparse": False, **changes}


def cost(delta_1e15: int, said: dict[str, Any]) -> int | None:
    event = STEP.event_json()
    return schedule_epsilon_micro(event, STEP.releases, delta_1e15, ScheduleBasis(**said))


NODE_CHEATS: dict[str, tuple[Callable[[Make], list[Any]], str]] = {
    "another kind": (lambda m: [m.joined(), m.opened()], "a node never writes 'run-opened'"),
    "no federation": (lambda m: [m.reserved()], "begins with 'federation-joined'"),
    "reserved twice": (lambda m: [m.joined(), m.reserved(), m.reserved()], "a second time"),
    "epsilon rounded down": (
        lambda m: [m.joined(), m.reserved(epsilon_micro=m.reserved()[1]["epsilon_micro"] - 1)],
        "and its schedule costs",
    ),
    "no slack for the lattice": (
        lambda m: [m.joined(), m.reserved(basis=basis(10**7))],
        "and its schedule costs",
    ),
    "fewer contributors": (
        lambda m: [
            m.joined(),
            m.reserved(
                basis=basis(10**7),
                epsilon_micro=cost(m.reserved()[1]["delta_1e15"], basis(10**7, contributors=1)),
            ),
        ],
        "and its schedule costs",
    ),
    "nothing for a sparse graph": (
        lambda m: [
            m.joined(),
            m.reserved(
                basis=basis(1, is_sparse=True),
                delta_1e15=SMALL,
                epsilon_micro=cost(SMALL, basis(1)),
            ),
        ],
        "and its schedule costs",
    ),
    "longer schedule": (lambda m: [m.joined(), m.reserved(releases=4)], "its schedule costs"),
    "no noise, finite epsilon": (
        lambda m: [m.joined(), m.reserved(event=NO_NOISE)],
        "its schedule costs unbounded",
    ),
    "unknown event": (
        lambda m: [m.joined(), m.reserved(event={"class_name": "Secret"})],
        "cannot be accounted",
    ),
    "no reservation": (lambda m: [m.joined(), m.debit(1)], "debited without a reservation"),
    "debit before reservation": (
        lambda m: [m.joined(), m.debit(1), m.reserved()],
        "debited without a reservation before it",
    ),
    "other event": (
        lambda m: [m.joined(), m.reserved(), m.debit(1, event=NO_NOISE)],
        "debited another event than it reserved",
    ),
    "seeded after all": (
        lambda m: [m.joined(), m.reserved(), m.debit(1, noise="seeded, not private")],
        "debited another event than it reserved",
    ),
    "too many debits": (
        lambda m: [m.joined(), m.reserved(), *(m.debit(n) for n in range(1, 5))],
        "has 4 debits, and it reserved 3",
    ),
    "same attempt twice": (
        lambda m: [m.joined(), m.reserved(), m.debit(1), m.debit(1)],
        "from round 1 attempt 1 to round 1 attempt 1",
    ),
    "closed": (
        lambda m: [m.joined(), m.reserved(), ("run-closed", {"run": "r1"}), m.debit(1)],
        "after it was closed",
    ),
    "institution sampled": (
        lambda m: [m.joined(), m.reserved(unit="institution")],
        "run 'r1' is charged as if the institution were sampled",
    ),
    "two units": (
        lambda m: [m.joined(), m.reserved(), m.reserved("r2", unit="record")],
        "run 'r2' is charged for the unit 'record' in a ledger charged for 'patient'",
    ),
    "modules apart": (
        lambda m: [m.joined(), m.reserved_experts(kept_apart=True)],
        "run 'experts' is kept apart, and has no unit keys to tell by",
    ),
    "records apart": (
        lambda m: [m.joined(), apart(m, "r1", "a", unit="record")],
        "run 'r1' is kept apart, and has no unit keys to tell by",
    ),
    "apart without a register": (
        lambda m: [m.joined(), apart(m, "r1", "a"), m.debit(1)],
        "run 'r1' names a register of unit keys where it is not kept apart, or none",
    ),
    "a register without apart": (
        lambda m: [m.joined(), m.reserved(), m.debit(1, unit_keys=m.digest(5))],
        "run 'r1' names a register of unit keys where it is not kept apart, or none",
    ),
    "closed unknown": (lambda m: [m.joined(), ("run-closed", {"run": "x"})], "never reserved"),
}
NO_NOISE = {"module_name": "dp_accounting.dp_event", "class_name": "NonPrivateDpEvent"}


@pytest.mark.parametrize("cheat", NODE_CHEATS)
def test_a_node_that_signs_a_false_budget_is_found(
    tmp_path: Path, pins: Pins, make: Make, cheat: str
) -> None:
    build, expected = NODE_CHEATS[cheat]
    directory = make.write(tmp_path / "a", "hospital-a", make.NODE_KEY, build(make))
    assert expected in failures(directory, pins)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_what_a_basis_says_is_enough_and_one_millionth_less_is_not(
    tmp_path: Path, pins: Pins, make: Make, is_sparse: bool
) -> None:
    said = basis(10**7, is_sparse=is_sparse)
    owed = cost(SMALL, said)
    assert owed is not None
    for name, paid in (("whole", owed), ("less", owed - 1)):
        entries = [
            make.joined(),
            make.reserved(basis=said, delta_1e15=SMALL, epsilon_micro=paid),
        ]
        directory = make.write(tmp_path / name, "hospital-a", make.NODE_KEY, entries)
        assert ("its schedule costs" in failures(directory, pins)) == (name == "less")


HUB_CHEATS: dict[str, tuple[Callable[[Make], list[Any]], str]] = {
    "another kind": (lambda m: [m.joined()], "a coordinator never writes 'federation-joined'"),
    "not opened": (lambda m: [m.recorded(1)], "run 'r1' was not opened before"),
    "opened twice": (lambda m: [m.opened(), m.opened()], "opened a second time"),
    "round twice": (
        lambda m: [m.opened(), m.recorded(1), m.recorded(1, attempt=2)],
        "from round 1 attempt 1 to round 1 attempt 2",
    ),
    "back": (
        lambda m: [m.opened(), m.recorded(2, model_digest_before=m.digest(10)), m.recorded(1)],
        "from round 2 attempt 1 to round 1",
    ),
    "model swapped": (
        lambda m: [m.opened(), m.recorded(1), m.recorded(2, model_digest_before=m.digest(99))],
        "round 2 of run 'r1' starts from model",
    ),
    "stranger": (
        lambda m: [m.opened(), m.recorded(1, survivors=["hospital-a", "sybil"])],
        "counts ['sybil'], not of the cohort",
    ),
}


@pytest.mark.parametrize("cheat", HUB_CHEATS)
def test_a_coordinator_that_signs_a_false_history_is_found(
    tmp_path: Path, pins: Pins, make: Make, cheat: str
) -> None:
    build, expected = HUB_CHEATS[cheat]
    directory = make.write(tmp_path / "h", "hub", make.COORDINATOR_KEY, build(make))
    assert expected in failures(directory, pins)


def test_runs_compose_by_addition(tmp_path: Path, pins: Pins, make: Make) -> None:
    entries = [make.joined(), make.reserved("r1"), make.reserved("r2")]
    directory = make.write(tmp_path / "a", "hospital-a", make.NODE_KEY, entries)
    report = verify_ledger(directory, pins)
    assert report.epsilon_micro == 2 * entries[1][1]["epsilon_micro"]
    assert report.delta_1e15 == 2 * 10**10


def test_runs_on_data_sets_kept_apart_compose_by_the_largest_sum(
    tmp_path: Path, pins: Pins, make: Make
) -> None:
    """Two on a, one on b, one that says nothing of whom it used: three bear on a's units."""
    runs = [apart(make, "r1", "a"), apart(make, "r2", "b"), apart(make, "r3", "a")]
    entries = [make.joined(), *runs, make.reserved("r4", data_set="b")]
    directory = make.write(tmp_path / "a", "hospital-a", make.NODE_KEY, entries)
    report = verify_ledger(directory, pins)
    assert report.is_ok, report.failures
    assert report.epsilon_micro == 3 * runs[0][1]["epsilon_micro"]
    assert report.delta_1e15 == 3 * 10**10


SPENDS = st.builds(
    RunSpend,
    run=st.just("r"),
    epsilon_micro=st.none() | st.integers(0, 9),
    delta_1e15=st.integers(0, 9),
    releases=st.just(1),
    debits=st.just(1),
    unit=st.just("patient"),
    data_set=st.sampled_from("abc"),
    kept_apart=st.booleans(),
)


@given(st.lists(SPENDS, max_size=8))
def test_composition_is_the_most_that_a_unit_of_any_data_set_bears(runs: list[RunSpend]) -> None:
    """The oracle goes through the runs unit by unit; "z" stands for a data set without runs."""

    def borne(by: str) -> tuple[float, int]:
        on_it = [run for run in runs if not run.kept_apart or run.data_set == by]
        epsilons = [math.inf if r.epsilon_micro is None else r.epsilon_micro for r in on_it]
        return sum(epsilons), sum(run.delta_1e15 for run in on_it)

    def told(epsilon: float, delta: int) -> tuple[int | None, int]:
        return (None if epsilon == math.inf else int(epsilon)), delta

    for name in "abc":
        assert compose_spends(runs, name) == told(*borne(name))
    epsilons, deltas = zip(*(borne(name) for name in "abcz"), strict=True)
    assert compose_spends(runs) == told(max(epsilons), max(deltas))


def test_a_run_without_noise_leaves_no_epsilon(tmp_path: Path, pins: Pins, make: Make) -> None:
    open_run = make.reserved("r2", event=NO_NOISE, epsilon_micro=None, delta_1e15=0)
    entries = [make.joined(), make.reserved("r1"), open_run]
    directory = make.write(tmp_path / "a", "hospital-a", make.NODE_KEY, entries)
    report = verify_ledger(directory, pins)
    assert report.is_ok, report.failures
    assert report.epsilon_micro is None
