"""The crash matrix: every act of `scenarios`, ended at every call by which it changes a file.

Killed and power lost are computed from one recorded run; a full or a failing disk is injected into
the calls of runs of their own. `make crash-test` walks all of it and prints the counts.
"""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.crash.actors import Actors, Fault, acknowledgements, needs_strace
from tests.crash.disk import Disk, write_tree
from tests.crash.scenarios import SCENARIOS

pytestmark = needs_strace
CALLS = ("write", "pwrite64", "fsync,fdatasync", "rename,link", "ftruncate", "mkdir", "unlink")


class Stage:
    """A scenario in a folder of the test."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.scenario = name, SCENARIOS[name]
        self.folder, self.home, self.rests = folder, folder / "home", folder / "rests"
        self.rests.mkdir()
        self.scenario.prepare(self.home, self.rests)
        self.arguments = [name, str(self.home), str(self.rests)]

    def check(self, home: Path, acknowledged: list[str], what: str) -> None:
        try:
            self.scenario.check(home, self.rests, acknowledged)
        except BaseException as error:
            error.add_note(f"{self.name}: {what}, acknowledged {acknowledged}")
            raise


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_was_acknowledged_survives(actors: Actors, tmp_path: Path, name: str) -> None:
    stage, counted = Stage(name, tmp_path), Counter[str]()
    disk, after = Disk(stage.home), tmp_path / "after"
    for state in disk.states(actors.record(stage.arguments, tmp_path)):
        counted[state.kind] += 1
        if state.is_new:  # no two checks of one state
            counted["distinct"] += 1
            write_tree(state.tree, after)
            stage.check(after, list(state.acknowledged), f"{state.kind} at call {state.place}")
            shutil.rmtree(after)
    print(f"\n{name}: {dict(counted)}")
    assert counted["power lost"] > 10
    assert counted["distinct"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_failing_disk_costs_nothing_that_was_acknowledged(
    actors: Actors, tmp_path: Path, name: str, error: str
) -> None:
    stage, counted = Stage(name, tmp_path), Counter[str]()
    pristine = tmp_path / "pristine"
    shutil.copytree(stage.home, pristine)
    made = Counter(call.name for call in actors.record(stage.arguments, tmp_path))
    for calls in CALLS:
        for number in range(1, 1 + sum(made[call] for call in calls.split(","))):
            shutil.rmtree(stage.home)
            shutil.copytree(pristine, stage.home)
            fault = Fault(calls, error, number)
            code, output = actors.act_with_fault(stage.arguments, fault, tmp_path)
            stage.check(stage.home, acknowledgements(output), f"{fault}, exit code {code}")
            counted[calls] += 1
            counted["told"] += code != 0
    print(f"\n{name}, {error}: {dict(counted)}")
    assert counted["told"] > 3
