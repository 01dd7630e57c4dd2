"""The log itself: durability through crashes, refusal of damage, one writer.

Failures covered: kill -9 between and during writes, a last line torn at any byte, a block that was
never written. Not covered: a disk that lies about fsync, or a backup restored over newer state
(that is what countersignatures and witnesses are for).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from privacy.ledger.entries import LedgerError, delta_units
from privacy.ledger.log import LedgerLog
from privacy.ledger.merkle import leaf_hash, verify_consistency, verify_inclusion

Make = SimpleNamespace
Edit = Callable[[Path, Callable[[list[bytes]], list[bytes]]], None]
ROOT = Path(__file__).resolve().parents[2]

APPEND_FOREVER = """
import sys
from pathlib import Path
from privacy.ledger.log import LedgerLog
with LedgerLog(Path(sys.argv[1]), "hospital-a") as log:
    while True:
        entry = log.append("run-closed", {"run": f"run-{log.size}"})
        print(entry.index, flush=True)
"""


def test_entries_survive_reopening(tmp_path: Path, make: Make) -> None:
    with LedgerLog(tmp_path / "new" / "ledger", "hospital-a") as log:
        written = [log.append(*make.joined()), log.append(*make.reserved())]
        root = log.root()
    with LedgerLog(tmp_path / "new" / "ledger", "hospital-a") as log:
        assert log.entries == tuple(written)
        assert (log.root(), log.notes, log.last_head) == (root, (), None)


def test_every_entry_and_every_growth_is_provable(tmp_path: Path, make: Make) -> None:
    with LedgerLog(tmp_path, "hospital-a") as log:
        for kind, body in make.node_entries():
            log.append(kind, body)
        for entry in log.entries:
            leaf, proof = leaf_hash(entry.payload()), log.inclusion_proof(entry.index)
            verify_inclusion(entry.index, log.size, leaf, proof, log.root())
        for old in range(1, log.size + 1):
            proof = log.consistency_proof(old)
            verify_consistency(old, log.size, proof, log.root(old), log.root())


@pytest.mark.parametrize("acknowledged", [1, 25, 60])
def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    command = [sys.executable, "-c", APPEND_FOREVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline()) for _ in range(acknowledged)]
        writer.send_signal(signal.SIGKILL)
        seen += [int(line) for line in writer.stdout.read().splitlines()]
    with LedgerLog(tmp_path, "hospital-a") as log:
        runs = [entry.body["run"] for entry in log.entries]  # type: ignore[index, call-overload]
    assert seen == list(range(len(seen)))
    assert runs == [f"run-{number}" for number in range(len(runs))]
    assert len(runs) >= len(seen) >= acknowledged


def test_a_last_line_torn_at_any_byte_is_cut_away(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "entries.jsonl"
    with LedgerLog(tmp_path, "hospital-a") as log:
        first = log.append(*make.joined())
        intact = path.read_bytes()
        log.append(*make.debit(1))
    whole = path.read_bytes()
    for length in range(len(intact) + 1, len(whole)):
        path.write_bytes(whole[:length])
        with LedgerLog(tmp_path, "hospital-a") as log:
            assert log.entries == (first,)
            assert f"torn last line of {length - len(intact)} bytes" in log.notes[0]
        assert path.read_bytes() == intact


def test_a_block_that_was_never_written_is_cut_away(tmp_path: Path, make: Make) -> None:
    with LedgerLog(tmp_path, "hospital-a") as log:
        log.append(*make.joined())
    path = tmp_path / "entries.jsonl"
    intact = path.read_bytes()
    path.write_bytes(intact + b"\0" * 40 + b'"}\n')
    with LedgerLog(tmp_path, "hospital-a") as log:
        assert log.size == 1
        log.append(*make.reserved())
    assert path.read_bytes().startswith(intact + b'{"body"')


def test_a_damaged_acknowledged_line_is_named(node_dir: Path, edit_lines: Edit) -> None:
    edit_lines(node_dir / "entries.jsonl", lambda lines: [*lines[:-1], b"{}\n"])
    with pytest.raises(LedgerError, match=r"bad line 6: .*Restore the newest backup"):
        LedgerLog(node_dir, "hospital-a")


def test_a_missing_line_is_named(node_dir: Path, edit_lines: Edit) -> None:
    edit_lines(node_dir / "entries.jsonl", lambda lines: lines[:2] + lines[3:])
    with pytest.raises(LedgerError, match="bad line 3: its index is 3, not 2"):
        LedgerLog(node_dir, "hospital-a")


def test_a_lost_signed_tail_is_refused(node_dir: Path, edit_lines: Edit) -> None:
    edit_lines(node_dir / "entries.jsonl", lambda lines: lines[:-1])
    with pytest.raises(LedgerError, match="covers 6 entries and the ledger holds 5"):
        LedgerLog(node_dir, "hospital-a")


def test_an_entry_changed_under_its_head_is_refused(node_dir: Path, edit_lines: Edit) -> None:
    def alter(lines: list[bytes]) -> list[bytes]:
        return [line.replace(b'"notes"', b'"other"') for line in lines]

    edit_lines(node_dir / "entries.jsonl", alter)
    with pytest.raises(LedgerError, match="first 2 entries are not those that it signed"):
        LedgerLog(node_dir, "hospital-a")


def test_another_owner_is_refused(node_dir: Path) -> None:
    with pytest.raises(LedgerError, match="it is of 'hospital-a', not 'hospital-b'"):
        LedgerLog(node_dir, "hospital-b")


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with (
        LedgerLog(tmp_path, "hospital-a"),
        pytest.raises(LedgerError, match="Stop the other process"),
    ):
        LedgerLog(tmp_path, "hospital-a")
    LedgerLog(tmp_path, "hospital-a").close()


def test_a_bad_body_is_refused_and_not_written(tmp_path: Path, make: Make) -> None:
    kind, body = make.debit(1)
    with LedgerLog(tmp_path, "hospital-a") as log:
        with pytest.raises(LedgerError, match="bad field round"):
            log.append(kind, body | {"round": "1"})
        with pytest.raises(LedgerError, match="bad field sealed_digest"):
            log.append(kind, body | {"sealed_digest": "ab"})
        with pytest.raises(LedgerError, match="Expected an entry kind out of"):
            log.append("refund", body)
        assert log.size == 0
    assert (tmp_path / "entries.jsonl").read_bytes() == b""


def test_deltas_are_rounded_up() -> None:
    assert [delta_units(delta) for delta in (0.0, 1e-6, 1.5e-15, 1.0)] == [0, 10**9, 2, 10**15]
    assert all(delta_units(10.0**-n) >= 10 ** (15 - n) for n in range(16))


def test_after_a_failed_write_nothing_more_is_written(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LedgerLog(tmp_path, "hospital-a") as log:
        log.append(*make.joined())
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(OSError, match="no space"):
                log.append(*make.reserved())
        with pytest.raises(LedgerError, match="close and reopen"):
            log.append(*make.reserved())
        assert log.size == 1


def fail(_: int) -> None:
    raise OSError("no space")


def test_the_disk_has_an_entry_before_it_is_acknowledged(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    with LedgerLog(tmp_path, "hospital-a") as log:
        path = tmp_path / "entries.jsonl"
        monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.stat().st_size))
        log.append(*make.joined())
        assert synced == [path.stat().st_size]
