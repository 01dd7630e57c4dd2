"""Offline verification: an honest ledger holds, and one fixture for each way of tampering."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from privacy.identity import IdentityKey
from privacy.ledger.entries import LedgerError
from privacy.ledger.head import HeadWitness
from privacy.ledger.log import LedgerLog
from privacy.ledger.pins import Pins
from privacy.ledger.verify import verify_ledger, verify_tree
from tests.ledger.conftest import failures

Make = SimpleNamespace
Edit = Callable[[Path, Callable[[list[bytes]], list[bytes]]], None]


def test_an_honest_node_ledger_holds(node_dir: Path, pins: Pins, make: Make) -> None:
    report = verify_ledger(node_dir, pins)
    assert report.is_ok, report.failures
    assert (report.kind, report.entries, report.heads, report.noise) == ("node", 6, 3, "csprng")
    assert report.epsilon_micro == make.reserved()[1]["epsilon_micro"]
    assert (report.runs[0].debits, report.runs[0].releases, report.delta_1e15) == (2, 3, 10**10)


def test_an_honest_coordinator_ledger_holds(hub_dir: Path, pins: Pins) -> None:
    report = verify_ledger(hub_dir, pins)
    assert report.is_ok, report.failures
    assert (report.kind, report.run_count, report.rounds) == ("coordinator", 1, 2)


def test_an_altered_entry_is_found(node_dir: Path, pins: Pins, edit_lines: Edit) -> None:
    def alter(lines: list[bytes]) -> list[bytes]:
        return [line.replace(b'"notes"', b'"other"') for line in lines]

    edit_lines(node_dir / "entries.jsonl", alter)
    assert "altered, dropped or reordered after signing" in failures(node_dir, pins)


def test_a_dropped_entry_is_found(node_dir: Path, pins: Pins, edit_lines: Edit) -> None:
    edit_lines(node_dir / "entries.jsonl", lambda lines: lines[:2] + lines[3:])
    assert "line 3 has index 3: entries were dropped or reordered" in failures(node_dir, pins)


def test_reordered_entries_are_found(node_dir: Path, pins: Pins, edit_lines: Edit) -> None:
    edit_lines(node_dir / "entries.jsonl", lambda lines: [lines[1], lines[0], *lines[2:]])
    assert "line 1 has index 1: entries were dropped or reordered" in failures(node_dir, pins)


def test_a_reordering_with_new_indices_is_found(
    node_dir: Path, pins: Pins, edit_lines: Edit
) -> None:
    def swap(lines: list[bytes]) -> list[bytes]:
        second, third = lines[2], lines[3]
        lines[2] = third.replace(b'"index":3', b'"index":2')
        lines[3] = second.replace(b'"index":2', b'"index":3')
        return lines

    edit_lines(node_dir / "entries.jsonl", swap)
    found = failures(node_dir, pins)
    assert "head 2: its root is not that of the first 4 entries" in found
    assert "from round 2 attempt 1 to round 1 attempt 1" in found


def test_entries_cut_from_the_end_are_found(node_dir: Path, pins: Pins, edit_lines: Edit) -> None:
    edit_lines(node_dir / "entries.jsonl", lambda lines: lines[:-1])
    expected = "it covers 6 entries, and 5 are there: entries were dropped from the end"
    assert expected in failures(node_dir, pins)


def test_a_line_that_is_not_canonical_is_found(
    node_dir: Path, pins: Pins, edit_lines: Edit
) -> None:
    edit_lines(
        node_dir / "entries.jsonl", lambda lines: [lines[0].replace(b":", b": ", 1), *lines[1:]]
    )
    assert "entries.jsonl line 1 is damaged: Expected canonical JSON" in failures(node_dir, pins)


def test_heads_signed_by_another_key_are_found(tmp_path: Path, pins: Pins, make: Make) -> None:
    stranger = IdentityKey.from_bytes(b"\7" * 32)
    directory = make.write(tmp_path / "a", "hospital-a", stranger, make.node_entries())
    assert failures(directory, pins) == "head 1: not signed by the pinned key of 'hospital-a'"


def test_a_ledger_without_a_pin_is_not_trusted(node_dir: Path) -> None:
    assert "no key is pinned for the ledger 'hospital-a'" in failures(node_dir, {})


def test_a_ledger_without_heads_is_not_trusted(node_dir: Path, pins: Pins) -> None:
    (node_dir / "heads.jsonl").unlink()
    assert failures(node_dir, pins) == "no signed head: nothing here is signed"


def test_entries_after_the_last_head_are_reported(node_dir: Path, pins: Pins) -> None:
    with LedgerLog(node_dir, "hospital-a") as log:
        log.append("run-closed", {"run": "r1"})
    report = verify_ledger(node_dir, pins)
    assert report.is_ok
    assert report.notes == ("1 entries after the last signed head",)


def test_a_torn_tail_is_a_note_and_stays(node_dir: Path, pins: Pins) -> None:
    path = node_dir / "entries.jsonl"
    path.write_bytes(path.read_bytes() + b'{"bo')
    before = path.read_bytes()
    report = verify_ledger(node_dir, pins)
    assert report.is_ok
    assert "torn last line of 4 bytes" in report.notes[0]
    assert path.read_bytes() == before


def test_a_rewritten_ledger_contradicts_its_countersignature(
    tmp_path: Path, pins: Pins, make: Make
) -> None:
    first = make.write(tmp_path / "one", "hub", make.COORDINATOR_KEY, make.coordinator_entries())
    countersign(first, make)
    assert verify_ledger(first, pins).countersignatures == 1
    shorter = make.coordinator_entries()[:2]
    second = make.write(tmp_path / "two", "hub", make.COORDINATOR_KEY, shorter)
    shutil.copy(first / "countersignatures.jsonl", second)
    expected = "forked: 'hospital-a' countersigned another history of 5 entries, and 2 are there"
    assert failures(second, pins) == expected


def countersign(directory: Path, make: Make) -> None:
    """Let hospital-a witness the newest head of the hub's ledger in `directory`."""
    with LedgerLog(directory, "hub") as log:
        witness = HeadWitness(directory / "hub.witness.json", "hub", "hospital-a")
        payload = witness.accept(log.heads[-1], [], make.COORDINATOR_KEY.public_key)
        signed = make.NODE_KEY.sign("ledger-countersign", payload)
        log.add_countersignature(make.NODE_KEY.public_key, signed)


def test_two_histories_of_one_ledger_are_a_fork(tmp_path: Path, pins: Pins, make: Make) -> None:
    entries = make.node_entries()
    make.write(tmp_path / "one", "hospital-a", make.NODE_KEY, entries)
    make.write(tmp_path / "two", "hospital-a", make.NODE_KEY, entries[:3])
    assert all(report.is_ok for report in verify_tree(tmp_path, pins))
    make.write(tmp_path / "three", "hospital-a", make.NODE_KEY, [*entries[:2], make.debit(3)])
    reports = verify_tree(tmp_path, pins)
    forked = "shows another history of 'hospital-a'"
    assert all(any(forked in failure for failure in r.failures) for r in reports)


def test_a_head_that_a_witness_kept_exposes_a_rollback(
    tmp_path: Path, pins: Pins, make: Make
) -> None:
    hub = make.write(tmp_path / "hub", "hub", make.COORDINATOR_KEY, make.coordinator_entries())
    countersign(hub, make)
    assert verify_tree(tmp_path, pins)[0].is_ok
    for name in ("entries.jsonl", "heads.jsonl", "countersignatures.jsonl"):
        (hub / name).unlink()
    make.write(hub, "hub", make.COORDINATOR_KEY, make.coordinator_entries()[:2])
    (failure,) = verify_tree(tmp_path, pins)[0].failures
    assert "keeps a signed head of another history of 5 entries, and 2 are there" in failure


def test_a_survivor_must_have_debited_the_plan(
    tmp_path: Path, node_dir: Path, pins: Pins, make: Make
) -> None:
    entries = [make.opened(), make.recorded(1, plan_digest=make.digest(55))]
    make.write(tmp_path / "hub", "hub", make.COORDINATOR_KEY, entries)
    node, hub = verify_tree(tmp_path, pins)
    assert node.is_ok
    assert hub.failures == ("'hospital-a' is counted under plan 000000000000 and never debited it",)


def test_a_folder_without_ledgers_is_an_error(tmp_path: Path, pins: Pins) -> None:
    with pytest.raises(LedgerError, match="without one below it"):
        verify_tree(tmp_path, pins)


def test_a_head_of_a_damaged_file_is_named(node_dir: Path, pins: Pins, edit_lines: Edit) -> None:
    def cut(lines: list[bytes]) -> list[bytes]:
        value = json.loads(lines[1])
        return [lines[0], json.dumps(value).encode() + b"\n", lines[2]]

    edit_lines(node_dir / "heads.jsonl", cut)
    assert "heads.jsonl line 2 is damaged" in failures(node_dir, pins)
