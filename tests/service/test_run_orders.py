"""`arion run`: from a run file to a model, over nodes in threads of this process."""

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from arion.run_federation import final_vector
from arion.run_status import RunStatus, find, status_of
from arion.runs import cancel, carry_on
from arion.toml_file import write_toml
from coordinator.attempts import Attempt, Phase
from coordinator.driver import RunDriver
from coordinator.errors import RunError
from coordinator.settings import load_settings
from coordinator.shared import RUNS_FOLDER
from coordinator.store import RunStore
from models.folders import open_model
from models.footprint import driver_bytes, node_bytes
from privacy.dp.accountant import epsilon_after
from privacy.identity import Signed
from tests.dying import dying
from tests.service.institutions import EXACT, Institutions, Make
from tests.small_federation import NAMES, Ground, SmallFederation, digest_of

ARION = [sys.executable, "-c", "from arion.cli import main; main()"]
UNITS = {"east": 20, "north": 10, "south": 30, "west": 20}


@pytest.fixture
def run_file(tmp_path: Path, ground: Ground) -> Callable[..., str]:
    """Write a run file for the small federation: `changes` by section."""

    def write(**changes: dict[str, Any]) -> str:
        sections = {
            "model": {"base": str(ground.base_model)},
            "training": {
                "rounds": 2,
                "expected_batch": 24.0,
                "sequence_length": 24,
                "sequences_per_unit": 2,
            },
            "privacy": {"epsilon": 8.0, "spare_releases": 2},
            "federation": {"n_min": 3},
            "service": {"unit": "person", "units": UNITS, "deadline_s": 30.0},
        }
        path = tmp_path / "first.toml"
        write_toml(path, {key: sections[key] | changes.get(key, {}) for key in sections})
        return str(path)

    return write


def in_thread(there: Institutions, name: str) -> tuple[threading.Thread, list[RunStatus]]:
    """Carry a run on in a thread; what it came to is in the list."""
    ends: list[RunStatus] = []

    def drive() -> None:
        ends.append(carry_on(there.service.home, name, lambda outcome, state: None))

    thread = threading.Thread(target=drive, daemon=True)
    thread.start()
    return thread, ends


def test_from_a_file_to_a_model(
    institutions: Make, run_file: Callable[..., str], tmp_path: Path
) -> None:
    there, file = institutions(), run_file()
    planned = json.loads(there.command("plan", file, "--json").stdout)
    assert not (there.service.home.path / RUNS_FOLDER / "first").exists()
    there.start(*NAMES)
    made = there.command("submit", file, "--json")
    assert made.exit_code == 0, made.output
    settings = load_settings(there.service.home.path / RUNS_FOLDER / "first")
    _check_plan(planned, settings.step, planned["vector_length"])
    model, _ = open_model(settings.base_model)
    assert planned["node_memory_bytes"] == node_bytes(model, settings.recipe)
    assert planned["driver_memory_bytes"] == driver_bytes(model, settings.recipe)
    status = there.status("first")
    assert (status["state"], status["round"], status["rounds"]) == ("finished", 2, 2)
    watched = there.command("watch", "first", "--json")
    assert [json.loads(line).get("round") for line in watched.stdout.splitlines()] == [1, 2, 2]
    out = tmp_path / "model"
    assert there.command("model", "first", "--out", str(out)).exit_code == 0
    assert open_model(out)[0].vocab_size == open_model(settings.base_model)[0].vocab_size
    reports = there.verified()
    assert {reports[name].noise for name in NAMES} == {"csprng"}
    assert reports["coordinator"].rounds == 2
    refused = there.command("submit", file)
    assert refused.exit_code == 2
    assert "a name that no run has had" in refused.stderr


def _check_plan(planned: dict[str, Any], step: Any, length: int) -> None:
    assert planned["sampling_probability"] == step.sampling_probability == 24 / sum(UNITS.values())
    charged = epsilon_after(step, 4, planned["delta"], vector_length=length, contributors=4)
    assert 7.5 < charged <= 8
    assert {m["epsilon"] for m in planned["members"].values()} == {charged}
    assert planned["node_download_bytes"] == 2 * 4 * length
    assert planned["node_upload_bytes"] == 2 * 2 * length
    assert planned["total_bytes"] == 4 * 2 * 6 * length
    assert (planned["quorum"], planned["may_be_missing"]) == (3, 1)


def test_runs_at_once_do_not_disturb_one_another(
    institutions: Make, make_federation: Callable[..., SmallFederation]
) -> None:
    """Three runs, two of them at once: each has the model of a run alone, and one ledger holds."""
    alone = {rounds: digest_of(make_federation(EXACT, rounds=rounds).run()) for rounds in (1, 2, 3)}
    there = institutions(EXACT, rounds=1)
    there.order("slow", rounds=3)
    there.order("quick", rounds=2)
    there.start(*NAMES)
    there.run("small")
    there.held.add(("north", "train.upload"))
    threads = [in_thread(there, "slow")]
    there.wait_for("north", "train.upload")
    there.asked.clear()
    threads.append(in_thread(there, "quick"))
    there.wait_for("east", "query.keys")  # both are under way
    there.held.clear()
    for thread, _ in threads:
        thread.join(60)
    assert [end.state for _, ends in threads for end in ends] == ["finished", "finished"]
    found = [digest_of(there.state(name)) for name in ("small", "quick", "slow")]
    assert found == [alone[1], alone[2], alone[3]]
    epochs = {(body["run"], body["epoch"]) for body in there.bodies("north", "release-debited")}
    assert len(epochs) == len({epoch for _, epoch in epochs}) == 3
    assert [body["attempt"] for body in there.bodies("coordinator", "round-recorded")] == [1] * 6
    closed = [body["run"] for body in there.bodies("north", "run-closed")]
    assert sorted(closed) == ["quick", "slow", "small"]
    reports = verified_apart(there)
    assert (reports["coordinator"].run_count, reports["coordinator"].rounds) == (3, 6)
    assert not list(there.federation.homes.root.rglob("FORK"))


def verified_apart(there: Institutions) -> Any:
    """The ledgers of this service alone: the folder holds simulated federations too."""
    place = there.service.home.path.parent / "apart"
    place.mkdir()
    there.service.home.path.joinpath("ledger").rename(place / "ledger")
    there.federation.homes.root.joinpath("nodes").rename(place / "nodes")
    return there.verified(place)


def test_budgets_compose_over_runs(institutions: Make) -> None:
    """A life's epsilon that two runs spend: the third one is refused, and says by which clause."""
    there = institutions(rounds=1)
    step, delta = there.federation.settings.step, 1e-5 / 2
    charged = epsilon_after(step, 6, delta, vector_length=length_of(there), contributors=4)
    for name in NAMES:
        there.consent(name, epsilon=2 * 1.000001 * charged, epsilon_per_run=1.000001 * charged)
    there.order("second")
    there.order("third", deadline_s=2.0)
    there.start(*NAMES)
    there.run("small")
    there.run("second")
    with pytest.raises(RunError, match="over the data's life"):
        there.run("third")
    stopped = there.status("third")
    assert stopped["state"] == "stopped"
    assert "over the data's life" in stopped["reason"]
    assert {body["clause"] for body in there.bodies("east", "refusal")} == {"epsilon"}
    reserved = [body["epsilon_micro"] for body in there.bodies("east", "run-reserved")]
    assert len(reserved) == 2
    assert there.verified()["east"].epsilon_micro == sum(reserved)


def length_of(there: Institutions) -> int:
    return sum(len(row) for row in there.federation.trainer("east").model.parameters())


def test_a_run_that_is_cancelled_while_it_waits(institutions: Make) -> None:
    """Three uploads are in and west's is waited for: they stay charged, and nothing is summed."""
    there = institutions(rounds=2, deadline_s=60.0)
    there.order("small")
    there.held.add(("west", "train.upload"))
    there.start(*NAMES)
    thread, ends = in_thread(there, "small")
    there.wait_for("west", "train.upload")
    waiting = {"action": "train.upload", "asked": 4, "missing": ["west"]}
    end = time.monotonic() + 60
    while there.status()["waiting"] != waiting:
        assert time.monotonic() < end, there.status()
    assert "training: 3 of 4 answered, waits for west" in there.command("list").stdout
    with pytest.raises(RunError, match="nobody drives"):
        carry_on(there.service.home, "small", lambda outcome, state: None)
    assert there.command("watch", "none").exit_code == 2
    assert there.status()["state"] == "running"
    asked = there.command("cancel", "small")
    assert asked.exit_code == 0, asked.output
    there.held.clear()
    thread.join(30)
    assert [end.state for end in ends] == ["cancelled"]
    (aborted,) = there.bodies("coordinator", "round-aborted")
    assert (aborted["round"], aborted["code"]) == (1, "cancelled")
    assert there.bodies("coordinator", "round-recorded") == []
    assert len(there.bodies("north", "release-debited")) == 1
    assert [body["run"] for body in there.bodies("north", "run-closed")] == ["small"]
    there.verified()
    assert there.command("resume", "small").exit_code == 1
    assert (there.status()["state"], there.status()["waiting"]) == ("cancelled", None)
    assert "cancelled after a round" in there.command("model", "small", "--out", "x").stderr


def test_a_run_that_is_cancelled_while_nobody_drives_it(institutions: Make) -> None:
    there = institutions()
    there.order("small")
    assert there.status()["state"] == "submitted"
    assert "after 0 of 3 rounds" in there.command("cancel", "small").output
    assert there.command("cancel", "small").exit_code == 0
    assert there.status()["state"] == "cancelled"
    assert there.asked == []


def test_ctrl_c_says_how_to_go_on(institutions: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: RunDriver) -> None:
        raise KeyboardInterrupt

    there = institutions()
    there.order("small")
    monkeypatch.setattr(RunDriver, "run", interrupted)
    stopped = there.command("resume", "small")
    assert stopped.exit_code == 130
    assert "arion run resume small --coordinator ../" in stopped.stderr


@pytest.mark.parametrize("call", ["_finish", "_tell_closed"])
def test_a_driver_that_was_killed_after_the_last_round_ends_the_run(
    institutions: Make, call: str
) -> None:
    there = institutions(EXACT, rounds=1)
    there.start(*NAMES)
    with dying(RunDriver, call):
        there.run()
    assert (there.status()["state"], there.status()["round"]) == ("stopped", 1)
    assert there.bodies("north", "run-closed") == []
    assert "arion run resume" in there.command("model", "small", "--out", "x").stderr
    assert "finished   1/1 rounds" in there.command("resume", "small").output
    assert len(there.bodies("coordinator", "release")) == 1
    assert [body["run"] for body in there.bodies("north", "run-closed")] == ["small"]
    there.verified()


def test_a_run_whose_rounds_are_made_ends_without_a_member_that_left(institutions: Make) -> None:
    there = institutions(EXACT, rounds=1, deadline_s=3.0)
    there.start(*NAMES)
    with dying(RunDriver, "_finish"):
        there.run()
    there.stop("west")
    assert "finished   1/1 rounds" in there.command("resume", "small").output
    assert len(there.bodies("coordinator", "release")) == 1
    assert [body["run"] for body in there.bodies("north", "run-closed")] == ["small"]
    there.verified()


def test_a_driver_that_was_killed_while_it_cancelled_tells_the_nodes(
    institutions: Make, make_federation: Callable[..., SmallFederation], tmp_path: Path
) -> None:
    there = institutions(EXACT, rounds=2)
    there.start(*NAMES)
    with dying(RunDriver, "_round", call=2):
        there.run()
    with dying(RunDriver, "_tell_closed"):
        cancel(there.service.home, "small", lambda outcome, state: None)
    assert there.status()["state"] == "cancelling"
    assert there.bodies("north", "run-closed") == []
    assert "after 1 of 2 rounds" in there.command("cancel", "small").output
    assert [body["run"] for body in there.bodies("north", "run-closed")] == ["small"]
    assert there.status()["state"] == "cancelled"
    assert len(there.bodies("coordinator", "release")) == 1
    there.verified()
    told = there.command("model", "small", "--out", str(tmp_path / "model"))
    assert "the model of small, after 1 of 2 rounds is in" in told.output
    one = make_federation(EXACT, rounds=2)
    with dying(RunDriver, "_round", call=2):
        one.run()
    store = RunStore(one.homes.coordinator)
    expected = store.load_state(1)
    store.close()
    assert expected is not None
    torch.testing.assert_close(
        final_vector(find(there.service.home, "small"), 1), expected.average_D
    )


def test_to_look_at_a_run_changes_nothing_in_its_store(institutions: Make, tmp_path: Path) -> None:
    """A driver that opens the store while somebody who looked cleans it up finds it locked."""
    home = institutions().order("small")
    attempt = Attempt(1, 1, Phase.UPLOADING, Signed(b"{}", b""))
    with closing(RunStore(home)) as store:
        store.save(attempt)
        shutil.copytree(home, tmp_path / "killed")  # as a driver leaves it that was killed
    files = [tmp_path / "killed" / f"rounds.sqlite{end}" for end in ("", "-wal")]
    before = [path.read_bytes() for path in files]
    assert all(before)
    assert status_of(tmp_path / "killed").attempts == (attempt,)
    assert [path.read_bytes() for path in files] == before


def test_a_store_that_is_being_made_holds_no_attempt(institutions: Make) -> None:
    home = institutions().order("small")
    (home / "rounds.sqlite").touch()
    assert status_of(home).state == "submitted"
    with closing(sqlite3.connect(home / "rounds.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        assert status_of(home).attempts == ()
    assert status_of(home).attempts == ()


@pytest.mark.slow
def test_a_driver_that_was_killed_goes_on(
    institutions: Make, make_federation: Callable[..., SmallFederation]
) -> None:
    alone = digest_of(make_federation(EXACT, rounds=4).run())
    there = institutions(EXACT, rounds=4)
    there.order("small")
    there.start(*NAMES)
    home = str(there.service.home.path)
    process = subprocess.Popen([*ARION, "run", "resume", "small", "--coordinator", home])
    while not there.bodies("coordinator", "round-recorded"):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert there.status()["state"] == "stopped"
    result = there.command("resume", "small")
    assert "finished   4/4 rounds" in result.output
    assert digest_of(there.state("small")) == alone
    recorded = there.bodies("coordinator", "round-recorded")
    assert [body["round"] for body in recorded] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"service": {"units": {"east": 20}}}, (), "none of north, south, west"),
        ({"service": {"units": UNITS | {"mars": 1}}}, (), "some of mars"),
        ({"service": {"members": ["east", "mars"]}}, (), "got mars"),
        ({"service": {"members": ["east", "west"], "units": {"east": 1, "west": 1}}}, (), "groups"),
        ({"federation": {"nodes": 5}}, (), "federation.nodes = 4"),
        ({"federation": {"n_min": 5}}, (), "n_min"),
        ({"model": {"base": "nano"}}, (), "a model folder as model.base"),
        ({"service": {"deadline": 1}}, (), "service.deadline"),
        ({"privacy": {"unit": "institution"}}, (), "the run file's unit"),
        ({}, ("--name", "A b"), "a-z, 0-9"),
        ({}, ("--units", "east=0"), "NAME=COUNT"),
        ({}, ("--units", "east"), "NAME=COUNT"),
    ],
    ids=str,
)
def test_orders_that_cannot_be_carried_out(
    institutions: Make,
    run_file: Callable[..., str],
    changes: dict[str, Any],
    options: tuple[str, ...],
    says: str,
) -> None:
    enrolled = institutions()
    result = enrolled.command("submit", run_file(**changes), *options)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (enrolled.service.home.path / RUNS_FOLDER).exists()
