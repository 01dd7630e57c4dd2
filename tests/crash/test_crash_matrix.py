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
from tests.crash.stage import CALLS, Stage

pytestmark = needs_strace
SLOW = ("release", "release-filter")  # tests/client/test_every_write.py has their full disks


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SCENARIOS],
)
def test_what_was_acknowledged_survives(actors: Actors, tmp_path: Path, name: str) -> None:
    walk_states(actors, tmp_path, name)


def test_a_release_survives_a_loss_of_power(actors: Actors, tmp_path: Path) -> None:
    """Of a release's states those that a loss of power leaves; the slow test walks all."""
    walk_states(actors, tmp_path, "release", "power lost")


def walk_states(actors: Actors, tmp_path: Path, name: str, kind: str | None = None) -> None:
    """Check each distinct state that the act's crash may leave, of one kind or of all."""
    stage, counted = Stage(name, tmp_path), Counter[str]()
    disk, after = Disk(stage.home), tmp_path / "after"
    seen: set[object] = set()
    for state in disk.states(actors.record(stage.arguments, tmp_path)):
        counted[state.kind] += 1
        if kind is not None and state.kind != kind:
            continue
        key = frozenset(state.tree.items()), state.acknowledged
        if key not in seen:  # no two checks of one state
            seen.add(key)
            counted["distinct"] += 1
            write_tree(state.tree, after)
            stage.check(after, list(state.acknowledged), f"{state.kind} at call {state.place}")
            shutil.rmtree(after)
    print(f"\n{name}: {dict(counted)}")
    assert counted["power lost"] > 10
    assert counted["distinct"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in SLOW])
def test_a_failing_disk_costs_nothing_that_was_acknowledged(
    actors: Actors, tmp_path: Path, name: str, error: str
) -> None:
    stage, counted = Stage(name, tmp_path), Counter[str]()
    made = Counter(call.name for call in actors.record(stage.arguments, tmp_path))
    for calls in CALLS:
        for number in range(1, 1 + sum(made[call] for call in calls.split(","))):
            stage.reset()
            fault = Fault(calls, f"error={error}", number)
            ended = actors.act(stage.arguments, tmp_path, fault)
            said = acknowledgements(ended.output)
            stage.check(stage.home, said, f"{fault}, exit code {ended.code}")
            counted[calls] += 1
            counted["told"] += ended.code != 0
    print(f"\n{name}, {error}: {dict(counted)}")
    assert counted["told"] > 3
