"""Small ledgers of one node and one coordinator, honest and complete."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privacy.dp.local_plan import LocalPlan
from privacy.dp.plan import PrivateStep
from privacy.identity import IdentityKey
from privacy.ledger.charges import schedule_epsilon_micro
from privacy.ledger.entries import FilterBasis
from privacy.ledger.filter import charge_entry
from privacy.ledger.log import LedgerLog
from privacy.ledger.pins import Pin, Pins
from privacy.ledger.verify import verify_ledger

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DELTA_1E15 = 10**10  # 1e-5
STEP = PrivateStep(
    clipping_norm=1.0,
    noise_multiplier=1.5,
    sampling_probability=0.05,
    expected_batch=8.0,
    honest_survivors=2,
    releases=3,
    unit="patient",
)
NODE_KEY = IdentityKey.from_bytes(b"\1" * 32)
COORDINATOR_KEY = IdentityKey.from_bytes(b"\2" * 32)


def digest(number: int) -> str:
    return f"{number:064x}"


def joined() -> tuple[str, dict[str, Any]]:
    body = {"federation": "clinics", "consent_digest": digest(1), "noise": "csprng"}
    return "federation-joined", body


def reserved(run: str = "r1", **changes: Any) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "run": run,
        "event": STEP.event_json(),
        "releases": STEP.releases,
        "epsilon_micro": schedule_epsilon_micro(STEP.event_json(), STEP.releases, DELTA_1E15),
        "delta_1e15": DELTA_1E15,
        "accountant": "schedule",
        "unit": "patient",
        "data_set": "notes",
        "noise": "csprng",
    }
    return "run-reserved", body | changes


def debit(round_: int, run: str = "r1", **changes: Any) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "run": run,
        "epoch": 0,
        "round": round_,
        "attempt": 1,
        "plan_digest": digest(100 + round_),
        "sealed_digest": digest(200 + round_),
        "event": STEP.event_json(),
        "noise": "csprng",
    }
    return "release-debited", body | changes


BASIS = FilterBasis(
    vector_length=900, contributors=3, noise_in_lattice_units=4.0, honest_survivors=2
)


def filter_opened(**changes: Any) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "epsilon_micro": 8_000_000,
        "delta_1e15": 10**11,
        "epsilon_per_run_micro": 8_000_000,
        "run_delta_1e15": 10**11,
        "epsilon_if_all_others_collude_micro": 100_000_000,
        "unit": "patient",
        "data_set": "notes",
    }
    return "filter-opened", body | changes


def charged(round_: int, run: str = "r1", **changes: Any) -> tuple[str, dict[str, Any]]:
    charge = charge_entry(STEP.event_json(), BASIS).model_dump(mode="json")
    return debit(round_, run, **{"charge": charge, **changes})


PLAN = LocalPlan(
    embedding=PrivateStep(
        **{**dict(STEP), "honest_survivors": 1, "sampling_probability": 1.0, "releases": 1}
    ),
    step=PrivateStep(**{**dict(STEP), "honest_survivors": 1}),
    embedding_length=64,
    vector_length=9000,
)


def reserved_experts(**changes: Any) -> tuple[str, dict[str, Any]]:
    event = PLAN.event_json()
    cost = schedule_epsilon_micro(event, 1, DELTA_1E15)
    values = {"event": event, "releases": 1, "epsilon_micro": cost, "job": digest(300)}
    return reserved("experts", **{**values, **changes})


def experts_debit(sealed: str, card: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "run": "experts",
        "owner": "hospital-a",
        "plan_digest": digest(300),
        "sealed_digest": sealed,
        "card_digest": card,
        "event": PLAN.event_json(),
        "noise": "csprng",
    }
    return "experts-debited", body | changes


def opened() -> tuple[str, dict[str, Any]]:
    cohort = ["hospital-a", "hospital-b"]
    body = {"run": "r1", "federation": "clinics", "cohort": cohort, "model_digest": digest(10)}
    return "run-opened", body


def recorded(round_: int, **changes: Any) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "run": "r1",
        "round": round_,
        "attempt": 1,
        "plan_digest": digest(100 + round_),
        "survivors": ["hospital-a", "hospital-b"],
        "model_digest_before": digest(9 + round_),
        "model_digest_after": digest(10 + round_),
        "event": STEP.event_json(),
        "outcome": "applied",
    }
    return "round-recorded", body | changes


def write(
    directory: Path,
    name: str,
    key: IdentityKey,
    entries: list[tuple[str, dict[str, Any]]],
    sign_after: tuple[int, ...] = (),
) -> Path:
    """Write a ledger; heads after the given sizes and at the end."""
    with LedgerLog(directory, name) as log:
        for kind, body in entries:
            log.append(kind, body)
            if log.size in sign_after:
                log.sign_head(key, NOW)
        log.sign_head(key, NOW)
    return directory


def node_entries() -> list[tuple[str, dict[str, Any]]]:
    refused = {"code": "epsilon", "clause": "epsilon_per_run", "plan_digest": digest(7)}
    return [
        joined(),
        reserved(),
        debit(1),
        debit(2),
        ("refusal", refused),
        ("run-closed", {"run": "r1"}),
    ]


def coordinator_entries() -> list[tuple[str, dict[str, Any]]]:
    aborted = {"run": "r1", "round": 2, "attempt": 1, "plan_digest": digest(3), "code": "timeout"}
    handed_out = {"run": "r1", "name": "mobile", "model_digest": digest(12)}
    return [
        opened(),
        recorded(1),
        ("round-aborted", aborted),
        recorded(2, attempt=2),
        ("release", handed_out),
    ]


@pytest.fixture
def pins() -> Pins:
    return {
        "hospital-a": Pin(public_key=NODE_KEY.public_key.hex(), kind="node"),
        "hub": Pin(public_key=COORDINATOR_KEY.public_key.hex(), kind="coordinator"),
    }


@pytest.fixture
def make() -> SimpleNamespace:
    """The builders of this file, for tests that need ledgers of their own."""
    return SimpleNamespace(**{k: v for k, v in globals().items() if not k.startswith("_")})


@pytest.fixture
def node_dir(tmp_path: Path) -> Path:
    return write(tmp_path / "hospital-a", "hospital-a", NODE_KEY, node_entries(), (2, 4))


@pytest.fixture
def hub_dir(tmp_path: Path) -> Path:
    return write(tmp_path / "hub", "hub", COORDINATOR_KEY, coordinator_entries(), (2, 4))


@pytest.fixture
def edit_lines() -> Callable[[Path, Callable[[list[bytes]], list[bytes]]], None]:
    """Rewrite a file of lines, as someone with an editor would."""

    def edit(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(change(lines)))

    return edit


def failures(directory: Path, pins: Pins) -> str:
    """What does not hold in a ledger, a line each."""
    return "\n".join(verify_ledger(directory, pins).failures)
