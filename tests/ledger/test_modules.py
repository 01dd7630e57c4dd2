"""Owned experts in the ledger: what an honest one says, and one case for each way of cheating."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.durable import file_digest
from models.expert_module import NOT_PRIVATE, Facts, PrivacyClaim, card_path, write_module
from privacy.canonical import canonical_bytes
from privacy.ledger.entries import parse_entry
from privacy.ledger.pins import Pins
from privacy.ledger.verify import verify_ledger, verify_tree

Make = SimpleNamespace
OWNER = "hospital-a"


def released(make: Make, folder: Path, owner: str = OWNER, **changes: Any) -> Path:
    """Write a module that claims what was reserved for it."""
    claim = PrivacyClaim(
        **{
            "epsilon_micro": make.reserved_experts()[1]["epsilon_micro"],
            "delta_1e15": make.DELTA_1E15,
            "unit": "patient",
            "accountant": "PLD",
            "ledger": "hospital-a, entry 1",
        }
        | changes.pop("claim", {})
    )
    facts = Facts(
        **{
            "owner": owner,
            "data": "Letters.",
            "licence": "Research.",
            "privacy": claim,
            "base_digest": make.digest(1),
            "sources": (0,),
            "recipe": {},
        }
        | changes
    )
    return write_module(folder, {"weight": torch.arange(6.0)}, facts)


def debit_of(make: Make, weights: Path, **changes: Any) -> Any:
    return make.experts_debit(file_digest(weights), file_digest(card_path(weights)), **changes)


def found(root: Path, pins: Pins, make: Make, entries: list[Any]) -> str:
    make.write(root / "ledger", OWNER, make.NODE_KEY, entries)
    return "\n".join(verify_tree(root, pins)[0].failures)


def test_an_honest_module_holds(tmp_path: Path, pins: Pins, make: Make) -> None:
    weights = released(make, tmp_path / "out")
    entries = [make.joined(), make.reserved_experts(), debit_of(make, weights)]
    assert found(tmp_path, pins, make, entries) == ""
    (report,) = verify_tree(tmp_path, pins)
    assert (report.runs[0].debits, report.runs[0].releases) == (1, 1)
    assert report.epsilon_micro == make.reserved_experts()[1]["epsilon_micro"]
    assert report.modules[weights.stem].card_digest == file_digest(card_path(weights))


def test_an_older_copy_of_the_ledger_does_not_accuse(
    tmp_path: Path, pins: Pins, make: Make
) -> None:
    weights = released(make, tmp_path / "out")
    entries = [make.joined(), make.reserved_experts(), debit_of(make, weights)]
    make.write(tmp_path / "old", OWNER, make.NODE_KEY, entries[:2])
    assert found(tmp_path, pins, make, entries) == ""


CHEATS: dict[str, tuple[Callable[[Make, Any], list[Any]], str]] = {
    "no reservation": (lambda m, debit: [debit], "debited without a reservation before it"),
    "reserved afterwards": (
        lambda m, debit: [debit, m.reserved_experts()],
        "debited without a reservation before it",
    ),
    "epsilon rounded down": (
        lambda m, debit: [lowered(m), debit],
        "and its schedule costs",
    ),
    "steps left out of the event": (
        lambda m, debit: [m.reserved_experts(event=m.PLAN.embedding.event_json()), debit],
        "debited another event than it reserved",
    ),
    "released twice": (
        lambda m, debit: [m.reserved_experts(), debit, other(debit, m.digest(5))],
        "has 2 debits, and it reserved 1",
    ),
    "one module twice": (
        lambda m, debit: [m.reserved_experts(), debit, debit],
        "is debited a second time",
    ),
    "a module on top of rounds": (
        lambda m, debit: [m.reserved("experts"), debit],
        "releases a module of a job it never reserved",
    ),
    "another job": (
        lambda m, debit: [m.reserved_experts(job=m.digest(301)), debit],
        "releases a module of a job it never reserved",
    ),
    "a round on top of a module": (
        lambda m, debit: [
            m.reserved_experts(),
            m.debit(1, "experts", event=m.PLAN.event_json()),
        ],
        "releases a round, and reserved a module",
    ),
    "after the close": (
        lambda m, debit: [m.reserved_experts(), ("run-closed", {"run": "experts"}), debit],
        "after it was closed",
    ),
    "seeded after all": (
        lambda m, debit: [m.reserved_experts(noise="seeded, not private"), debit],
        "debited another event than it reserved",
    ),
    "digest altered": (
        lambda m, debit: [m.reserved_experts(), other(debit, m.digest(5))],
        "claims an epsilon and was never debited",
    ),
    "another card": (
        lambda m, debit: [m.reserved_experts(), other(debit, m.digest(5), "card")],
        "its card is not the one that was debited",
    ),
    "another unit": (
        lambda m, debit: [m.reserved_experts(unit="record"), debit],
        "claims to protect the unit 'patient', and 'record' was reserved",
    ),
    "more charged than claimed": (
        lambda m, debit: [m.reserved_experts(epsilon_micro=10**8), debit],
        "it claims epsilon",
    ),
}


def lowered(make: Make) -> Any:
    return make.reserved_experts(epsilon_micro=make.reserved_experts()[1]["epsilon_micro"] - 1)


def other(debit: Any, digest: str, what: str = "sealed") -> Any:
    return debit[0], debit[1] | {f"{what}_digest": digest}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_node_that_signs_a_false_release_is_found(
    tmp_path: Path, pins: Pins, make: Make, cheat: str
) -> None:
    build, expected = CHEATS[cheat]
    debit = debit_of(make, released(make, tmp_path / "out"))
    assert expected in found(tmp_path, pins, make, [make.joined(), *build(make, debit)])


def test_an_entry_altered_after_signing_is_found(tmp_path: Path, pins: Pins, make: Make) -> None:
    weights = released(make, tmp_path / "out")
    entries = [make.joined(), make.reserved_experts(), debit_of(make, weights)]
    directory = make.write(tmp_path / "ledger", OWNER, make.NODE_KEY, entries)
    path = directory / "entries.jsonl"
    path.write_bytes(path.read_bytes().replace(weights.stem.encode(), make.digest(5).encode()))
    failures = "\n".join(verify_ledger(directory, pins).failures)
    assert "altered, dropped or reordered after signing" in failures


def alter_weights(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")


def claim_less(weights: Path) -> None:
    card = json.loads(card_path(weights).read_text())
    card["privacy"]["epsilon_micro"] -= 1
    card_path(weights).write_text(json.dumps(card))


def claim_nothing(weights: Path) -> None:
    card = json.loads(card_path(weights).read_text())
    card_path(weights).write_text(json.dumps(card | {"privacy": NOT_PRIVATE}))


@pytest.mark.parametrize(
    ("tamper", "expected"),
    [
        (alter_weights, "its weights were altered"),
        (claim_less, "its card is not the one that was debited"),
        (claim_less, "it claims epsilon"),
        (claim_nothing, "its card is not the one that was debited"),
        (lambda weights: card_path(weights).unlink(), "cannot be read"),
    ],
)
def test_a_module_that_was_tampered_with_is_found(
    tmp_path: Path, pins: Pins, make: Make, tamper: Callable[[Path], None], expected: str
) -> None:
    weights = released(make, tmp_path / "out")
    entries = [make.joined(), make.reserved_experts(), debit_of(make, weights)]
    tamper(weights)
    assert expected in found(tmp_path, pins, make, entries)


@pytest.mark.parametrize(
    "place",
    [
        lambda make, root: released(make, root / "home" / make.digest(300) / "sealed"),
        lambda make, root: released(make, root / "out", privacy=NOT_PRIVATE),
        lambda make, root: released(make, root / "out", owner="hospital-b"),
    ],
    ids=["sealed and not yet debited", "claims no privacy", "another owner's"],
)
def test_what_needs_no_debit_is_left_alone(
    tmp_path: Path, pins: Pins, make: Make, place: Callable[[Make, Path], Path]
) -> None:
    place(make, tmp_path)
    assert found(tmp_path, pins, make, [make.joined(), make.reserved_experts()]) == ""


@pytest.mark.parametrize(
    "hide",
    [
        lambda make, root: released(make, root / "sealed"),
        lambda make, root: released(make, root / make.digest(301) / "sealed"),
        lambda make, root: move(released(make, root / "out"), root / "out" / "nobody"),
        lambda make, root: move(released(make, root / "out", owner="hospital-b"), root / OWNER),
    ],
    ids=["a folder of that name", "a job never reserved", "another's folder", "another's card"],
)
def test_a_module_cannot_be_hidden_from_its_ledger(
    tmp_path: Path, pins: Pins, make: Make, hide: Callable[[Make, Path], Path]
) -> None:
    hide(make, tmp_path)
    entries = [make.joined(), make.reserved_experts()]
    assert "claims an epsilon and was never debited" in found(tmp_path, pins, make, entries)


def test_a_sealed_module_is_checked_once_its_job_is_done(
    tmp_path: Path, pins: Pins, make: Make
) -> None:
    weights = released(make, tmp_path / "home" / make.digest(300) / "sealed")
    entries = [make.joined(), make.reserved_experts(), debit_of(make, weights)]
    assert found(tmp_path, pins, make, entries) == ""
    alter_weights(weights)
    assert "its weights were altered" in "\n".join(verify_tree(tmp_path, pins)[0].failures)


def move(weights: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in (weights, card_path(weights)):
        path.rename(folder / path.name)
    return folder / weights.name


def test_a_reservation_written_before_jobs_were_named_keeps_its_bytes(make: Make) -> None:
    """Ledgers of rounds that were signed earlier still hold: the field may be absent."""
    kind, body = make.reserved()
    assert "job" not in body
    line = canonical_bytes({"index": 1, "kind": kind, "body": body})
    entry = parse_entry(line)
    assert entry.payload() == line
    assert entry.parsed().job is None
