"""Offline verification of a ledger under a filter: every charge anew, every limit after each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy.dp.rdp_filter import Charge, charge_of, open_filter
from privacy.ledger.pins import Pins
from privacy.ledger.verify import LedgerReport, verify_ledger

Make = Any
NO_NOISE = {"module_name": "dp_accounting.dp_event", "class_name": "NonPrivateDpEvent"}
SMALL = {"epsilon_micro": 2_000_000, "epsilon_per_run_micro": 2_000_000}


def verified(make: Make, directory: Path, pins: Pins, entries: list[Any]) -> LedgerReport:
    made = make.write(directory / "a", "hospital-a", make.NODE_KEY, entries)
    return verify_ledger(made, pins)


def held(make: Make, epsilon: float, delta: float, *, alone: bool = False) -> int:
    """Releases that a filter admits, by its arithmetic alone."""
    event = make.STEP.event_if_all_others_collude() if alone else make.STEP.event()
    each = charge_of(event, vector_length=900, contributors=1 if alone else 3)
    return open_filter(epsilon, delta).releases_left(Charge(), each)


def other_charge(make: Make, field: str) -> list[Any]:
    """The second of two debits names less than its event costs."""
    kind, body = make.charged(2)
    charge = body["charge"]
    low = ["0", *charge["rdp"][1:]] if field == "rdp" else "0"
    changed = {**charge, field: low}
    return [
        make.joined(),
        make.filter_opened(),
        make.charged(1),
        (kind, {**body, "charge": changed}),
    ]


def closed(make: Make) -> list[Any]:
    ended = ("run-closed", {"run": "r1"})
    return [make.joined(), make.filter_opened(), make.charged(1), ended, make.charged(2)]


CHEATS: dict[str, tuple[Callable[[Make], list[Any]], str]] = {
    "no filter": (
        lambda m: [m.joined(), m.charged(1)],
        "names a charge, and no filter was opened",
    ),
    "opened twice": (
        lambda m: [m.joined(), m.filter_opened(), m.filter_opened()],
        "opened a second time; a ledger keeps one accountant",
    ),
    "opened after a schedule": (
        lambda m: [m.joined(), m.reserved(), m.filter_opened()],
        "opened in a ledger that charges schedules; a ledger keeps one accountant",
    ),
    "schedule after a filter": (
        lambda m: [m.joined(), m.filter_opened(), m.charged(1), m.reserved("r2")],
        "run 'r2' is reserved in a ledger that a filter keeps",
    ),
    "institution sampled": (
        lambda m: [m.joined(), m.filter_opened(unit="institution"), m.charged(1)],
        "run 'r1' is charged as if the institution were sampled",
    ),
    "a register under a filter": (
        lambda m: [m.joined(), m.filter_opened(), m.charged(1, unit_keys=m.digest(5))],
        "names a register of unit keys in a ledger that a filter keeps",
    ),
    "no charge": (
        lambda m: [m.joined(), m.filter_opened(), m.debit(1)],
        "debited without its charge",
    ),
    "charged too little": (lambda m: other_charge(m, "rdp"), "another charge than its event costs"),
    "slack left out": (lambda m: other_charge(m, "slack"), "another charge than its event costs"),
    "tail left out": (lambda m: other_charge(m, "tail"), "another charge than its event costs"),
    "no noise": (
        lambda m: [
            m.joined(),
            m.filter_opened(),
            m.charged(
                1,
                event=NO_NOISE,
            ),
        ],
        "that a filter cannot charge",
    ),
    "same attempt twice": (
        lambda m: [m.joined(), m.filter_opened(), m.charged(1), m.charged(1)],
        "goes from (round, attempt) (1, 1) to (1, 1)",
    ),
    "closed": (closed, "debited after it was closed"),
    "closed unknown": (
        lambda m: [m.joined(), m.filter_opened(), ("run-closed", {"run": "x"})],
        "is closed and was never reserved",
    ),
    "a budget of nothing": (
        lambda m: [m.joined(), m.filter_opened(epsilon_micro=0)],
        "a budget that it cannot keep",
    ),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_node_that_signs_a_false_filter_is_found(
    tmp_path: Path, pins: Pins, make: Make, cheat: str
) -> None:
    build, expected = CHEATS[cheat]
    failures = verified(make, tmp_path, pins, build(make)).failures
    assert any(expected in failure for failure in failures), failures


def test_what_the_filter_admits_verifies_and_one_more_does_not(
    tmp_path: Path, pins: Pins, make: Make
) -> None:
    """Two runs fill one budget; the report names the budget, not an epsilon so far."""
    fits = held(make, 2.0, 1e-4)
    assert fits >= 4
    debits = [make.charged(number, f"r{number % 2}") for number in range(1, fits + 2)]
    entries = [make.joined(), make.filter_opened(**SMALL), *debits]
    report = verified(make, tmp_path / "full", pins, entries[:-1])
    assert report.is_ok, report.failures
    assert (report.epsilon_micro, report.delta_1e15, report.run_count) == (2_000_000, 10**11, 2)
    assert sum(run.debits for run in report.runs) == fits
    (failure,) = verified(make, tmp_path / "over", pins, entries).failures
    assert failure.endswith("is debited beyond what the filter on epsilon admits")


@pytest.mark.parametrize(
    ("clause", "budget"),
    [
        ("epsilon_per_run", {"epsilon_per_run_micro": 2_000_000}),
        ("epsilon_if_all_others_collude", {"epsilon_if_all_others_collude_micro": 2_000_000}),
    ],
)
def test_a_run_beyond_its_own_budget_is_found(
    tmp_path: Path, pins: Pins, make: Make, clause: str, budget: dict[str, int]
) -> None:
    fits = held(make, 2.0, 1e-4, alone=clause != "epsilon_per_run")
    assert fits >= 1
    debits = [make.charged(number) for number in range(1, fits + 2)]
    entries = [make.joined(), make.filter_opened(**budget), *debits]
    (failure,) = verified(make, tmp_path, pins, entries).failures
    assert failure.endswith(f"is debited beyond what the filter on {clause} admits")
    other_run = [*entries[:-1], make.charged(1, "r2")]
    assert verified(make, tmp_path / "other", pins, other_run).is_ok
