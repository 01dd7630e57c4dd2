"""What runs of one coordinator share: one history, one count, whoever's turn it is."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coordinator.driver_lock import is_driven
from coordinator.errors import RunError
from coordinator.shared import EPOCHS_FILE, SharedLedger, next_epoch
from coordinator.store import RunStore
from privacy.identity import IdentityKey
from privacy.ledger.entries import LedgerError
from privacy.ledger.files import turn
from privacy.ledger.log import ENTRIES_FILE, LedgerLog
from privacy.ledger.pins import Pin
from privacy.ledger.verify import verify_ledger


def opened(run: str) -> dict[str, object]:
    return {"run": run, "federation": "f", "cohort": ["a"], "model_digest": "0" * 64}


def test_two_writers_make_one_history(tmp_path: Path) -> None:
    key = IdentityKey.generate()

    def write(name: str) -> list[int]:
        shared, places = SharedLedger(tmp_path), []
        for number in range(20):
            with shared.turn() as log:
                places.append(log.append("run-opened", opened(f"{name}-{number}")).index)
                log.sign_head(key)
        shared.close()
        return places

    with ThreadPoolExecutor(3) as pool:
        places = list(pool.map(write, ("one", "two", "three")))
    assert sorted(index for own in places for index in own) == list(range(60))
    pins = {"coordinator": Pin(public_key=key.public_key.hex(), kind="coordinator")}
    report = verify_ledger(tmp_path / "ledger", pins)
    assert (report.entries, report.heads, report.failures) == (60, 60, ())


def test_a_change_is_told_once_whichever_turn_saw_it(tmp_path: Path) -> None:
    one, two = SharedLedger(tmp_path), SharedLedger(tmp_path)

    def changed(shared: SharedLedger) -> bool:
        with shared.turn():
            return shared.was_changed()

    assert [changed(one), changed(one)] == [True, False]
    with two.turn() as log:
        log.append("run-opened", opened("two"))
    with one.turn() as log:
        log.append("run-opened", opened("one"))
        assert [entry.body["run"] for entry in log.entries] == ["two", "one"]
    assert [changed(one), changed(one)] == [True, False]
    for shared in (one, two):
        shared.close()


def test_a_line_that_another_writer_did_not_finish(tmp_path: Path) -> None:
    shared = SharedLedger(tmp_path)
    with shared.turn() as log:
        log.append("run-opened", opened("one"))
    entries = tmp_path / "ledger" / ENTRIES_FILE
    whole = entries.read_bytes()
    entries.write_bytes(whole + b'{"torn')
    with shared.turn() as log:
        assert (log.size, entries.read_bytes()) == (1, whole)
    shared.close()


def test_a_foul_line_of_another_writer_is_refused(tmp_path: Path) -> None:
    shared = SharedLedger(tmp_path)
    with shared.turn():
        pass
    (tmp_path / "ledger" / ENTRIES_FILE).write_bytes(b"{}\n")
    with pytest.raises(LedgerError, match="bad line 1"), shared.turn():
        pass
    shared.close()


def test_outside_of_its_turn_nobody_writes(tmp_path: Path) -> None:
    shared = SharedLedger(tmp_path)
    with shared.turn() as log:
        pass
    with pytest.raises(LedgerError, match="Expected a writable"):
        log.append("run-opened", opened("one"))
    with LedgerLog(tmp_path / "ledger", "coordinator") as other:
        assert other.size == 0
    shared.close()


def test_every_epoch_has_a_number_of_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: next_epoch(tmp_path), range(40)))
    assert sorted(numbers) == list(range(1, 41))
    (tmp_path / EPOCHS_FILE).write_text("many\n")
    with pytest.raises(RunError, match="Expected a number"):
        next_epoch(tmp_path)


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    assert not is_driven(tmp_path)
    driver, reader = RunStore(tmp_path, is_driven=True), RunStore(tmp_path)
    assert is_driven(tmp_path)
    with pytest.raises(RunError, match="another process"):
        RunStore(tmp_path, is_driven=True)
    driver.close()
    assert not is_driven(tmp_path)
    reader.close()
    RunStore(tmp_path, is_driven=True).close()


def test_turns_end_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), turn(tmp_path / "t"):
        _ = 1 / 0
    with turn(tmp_path / "t"):
        pass
