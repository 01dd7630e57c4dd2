"""A passport's epsilon: from ledgers that hold, or none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arion.variant_claims import ledger_claims
from privacy.ledger.entries import LedgerError
from privacy.ledger.pins import Pins, pins_bytes
from privacy.ledger.verify import verify_tree

Edit = Callable[[Path, Callable[[list[bytes]], list[bytes]]], None]


@pytest.fixture
def run_dir(tmp_path: Path, node_dir: Path, hub_dir: Path, pins: Pins) -> Path:
    (tmp_path / "pins.json").write_bytes(pins_bytes(pins))
    return tmp_path


def test_claims_are_what_verification_finds(run_dir: Path, pins: Pins, make: Any) -> None:
    (claim,) = ledger_claims(run_dir, None, make.digest(99))
    node = next(report for report in verify_tree(run_dir, pins) if report.kind == "node")
    assert claim.node == "hospital-a"
    assert claim.epsilon_micro == node.epsilon_micro != 0
    assert (claim.delta_1e15, claim.entries) == (node.delta_1e15, node.entries)
    assert claim.root == node.roots[-1]
    assert not claim.names_parent


def test_a_release_in_the_coordinators_ledger_binds_the_model(run_dir: Path, make: Any) -> None:
    assert all(claim.names_parent for claim in ledger_claims(run_dir, None, make.digest(12)))


def test_a_ledger_that_does_not_hold_claims_nothing(run_dir: Path, edit_lines: Edit) -> None:
    edit_lines(run_dir / "hospital-a" / "entries.jsonl", lambda lines: lines[:-2])
    with pytest.raises(LedgerError, match="Nothing is claimed"):
        ledger_claims(run_dir, None, "0" * 64)


def test_a_coordinators_ledger_alone_claims_nothing(
    tmp_path: Path, hub_dir: Path, pins: Pins
) -> None:
    (tmp_path / "pins.json").write_bytes(pins_bytes(pins))
    with pytest.raises(LedgerError, match="node's ledger"):
        ledger_claims(tmp_path, None, "0" * 64)
