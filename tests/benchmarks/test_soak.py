"""A soak's parts: what it counts, how it judges memory, whom it starts again; and a short one."""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arion.run_status import RunStatus
from benchmarks import soak
from benchmarks.soak_federation import is_spent, rounds_of
from benchmarks.soak_memory import Memory, Sample, Samples, judge
from benchmarks.soak_processes import Events, Fleet, Unit, rss_mb
from benchmarks.soak_rows import KINDS
from coordinator.attempts import Attempt, Phase
from coordinator.service.home import ServiceHome, ServiceSettings


def attempts(*places: tuple[int, int, Phase]) -> tuple[Attempt, ...]:
    return tuple(Attempt(number, at, phase, None) for number, at, phase in places)  # type: ignore[arg-type]


def status(state: str, *places: tuple[int, int, Phase]) -> RunStatus:
    """Where a run stands, as far as counting asks."""
    made = attempts(*places)
    recorded = sum(attempt.phase == Phase.RECORDED for attempt in made)
    return RunStatus("r", state, recorded, 9, (), made, "")


def test_rounds_are_counted_when_they_have_ended() -> None:
    done, open_, lost = (1, 1, Phase.RECORDED), (2, 1, Phase.UPLOADING), (2, 1, Phase.ABORTED)
    spent = [(2, at, Phase.ABORTED) for at in (1, 2, 3)]
    assert rounds_of(status("running", done, open_)) == (1, 0)
    assert rounds_of(status("running", done, lost)) == (1, 0)  # another attempt may come
    assert rounds_of(status("cancelled", done, lost)) == (1, 1)
    assert rounds_of(status("stopped", done, *spent)) == (1, 1)
    assert is_spent(status("stopped", done, *spent))
    assert not is_spent(status("stopped", done, *spent[:2]))


def lives(mb: Callable[[int, int], float], *, is_quiet: bool = False) -> list[Sample]:
    """Sixteen processes that see ten rounds each: (process, round of it) -> MB."""
    return [
        Sample("n", "node", life, float(number), 10 * life + number, is_quiet, mb(life, number))
        for life in range(16)
        for number in range(10)
    ]


def test_memory_that_grows_is_noticed() -> None:
    flat = judge(lives(lambda life, number: 100 + number % 2), "node")
    assert flat == Memory(101, 101, None)
    assert list(flat.faults("node")) == []
    with_history = judge(lives(lambda life, number: 100 + life), "node")
    assert list(with_history.faults("node")) == ["memory of a node grew from 102 to 114 MB"]
    leak = judge(lives(lambda life, number: 100 + number, is_quiet=True), "node")
    assert leak.per_round == pytest.approx(1)
    assert list(leak.faults("node")) == [
        "memory of a node grew by 1.00 MB a round when undisturbed"
    ]
    assert judge(lives(lambda life, number: 1.0), "driver") == Memory(None, None, None)


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples, written = Samples(tmp_path / "memory.csv"), lives(lambda life, number: 1.5)
    assert samples.read() == []
    samples.add(written[:3])
    samples.add(written[3:])
    assert samples.read() == written


def test_who_is_killed_or_ends_is_started_again(tmp_path: Path) -> None:
    """A service that stays, and a command that ends by itself; a killed one is no exit."""
    home = tmp_path / "srv"
    ServiceHome.create(
        home, ServiceSettings(federation="f", hosts=("localhost",), port=0, enrolment_port=0)
    ).close()
    units = [
        Unit("srv", "coordinator", lambda: ("coordinator", "serve", str(home))),
        Unit("runs", "driver", lambda: ("run", "list", "--coordinator", str(tmp_path / "none"))),
    ]
    events = Events(tmp_path / "events.jsonl")
    fleet = Fleet(units, tmp_path / "logs", events)

    def wait_for(event: str, name: str, count: int) -> list[dict[str, Any]]:
        end = time.monotonic() + 60
        while True:
            fleet.tick()
            found = [e for e in events.read() if (e["event"], e["name"]) == (event, name)]
            if len(found) >= count:
                return found
            assert time.monotonic() < end, events.read()
            time.sleep(0.02)

    try:
        (first,) = wait_for("start", "srv", 1)
        assert (rss_mb(first["pid"]) or 0) > 10
        for exit_ in wait_for("exit", "runs", 2):
            assert exit_["code"] == 2
            assert "Expected a coordinator's home" in exit_["said"]
        units[1].words = lambda: None
        while units[1].pid:
            fleet.tick()
        fleet.kill(random.Random(0), place=None)
        starts = wait_for("start", "srv", 2)
        assert starts[1]["pid"] != first["pid"]
    finally:
        fleet.stop()
    assert not [e for e in events.read() if e["event"] == "exit" and e["name"] == "srv"]
    for start in starts:
        with pytest.raises(ProcessLookupError):
            os.kill(start["pid"], 0)


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes, all of whom a sum needs; stopped in between, it goes on."""
    out, rows = tmp_path / "soak", tmp_path / "rows.json"

    def run(*options: str) -> dict[str, dict[str, Any]]:
        words = [
            "soak",
            "--quick",
            "--nodes",
            "3",
            "--minutes",
            "3",
            "--seconds-between-kills",
            "2",
        ]
        words += ["--out", str(out), "--json", str(rows)]
        monkeypatch.setattr(sys, "argv", [*words, *options])
        assert soak.main() == 0
        return {row["metric"]: row for row in json.loads(rows.read_text())}

    before = run("--rounds", "2")
    after = run("--rounds", "6", "--resume")
    for found in (before, after):
        assert found["violations"]["value"] == 0
        assert found["runs"]["context"].keys() <= {"finished", "cancelled"}
    assert before["rounds recorded"]["value"] >= 2
    assert after["rounds recorded"]["value"] > before["rounds recorded"]["value"]
    assert after["attempts"]["value"] >= after["rounds recorded"]["value"]
    assert sum(after[f"kills of a {kind}"]["value"] for kind in KINDS) > 0
    with pytest.raises(SystemExit, match="2"):
        run()
