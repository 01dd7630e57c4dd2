"""A run goes on while coordinator and nodes are upgraded, in either order, from the code before."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from arion.cli import app
from arion.run_federation import final_vector
from coordinator.settings import load_settings
from coordinator.shared import RUNS_FOLDER
from privacy.ledger.pins import PINS_FILE, Pin, pins_bytes
from tests.compat.lay_out import BASE, ROUNDS, RUNS
from tests.compat.upgrading import ROOT, Upgrading, finished, upgrading
from tests.service.institutions import EXACT
from tests.small_federation import NAMES, Ground, build

PINNED = Path(__file__).with_name("PREVIOUS").read_text().split()[0]
PREVIOUS = os.environ.get("ARION_PREVIOUS", PINNED)


@pytest.fixture(scope="session")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version before this one, in a folder of its own."""
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", PREVIOUS], check=False, capture_output=True
    )
    if packed.returncode:
        pytest.skip(f"commit {PREVIOUS} is not here, fetch it: {packed.stderr.decode()}")
    folder = tmp_path_factory.mktemp("previous")
    subprocess.run(["tar", "x", "-C", str(folder)], input=packed.stdout, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("first", ["coordinator", "nodes"])
def test_runs_go_on_while_all_is_upgraded(first: str, previous: Path, tmp_path: Path) -> None:
    """Two runs, one of them private; both versions plan, upload, open and record rounds."""
    for code in (previous, ROOT):
        found = finished(code, "-c", "import client; print(client.__file__)")
        assert Path(found.strip()).parents[1] == code
    with upgrading(tmp_path / "there", previous) as there:
        there.start_coordinator(previous)
        for name in NAMES:
            there.start_node(name, previous)
        there.wait_for(lambda: all(map(there.rounds, RUNS)), "rounds of the version before")
        parts = [there.upgrade_coordinator, there.upgrade_nodes]
        for upgrade in parts if first == "coordinator" else reversed(parts):
            upgrade(ROOT)
        there.wait_for_the_end()
    assert "Traceback" not in "".join(map(there.log, (*NAMES, *RUNS, "service")))
    for run in RUNS:
        assert sorted(there.rounds(run)) == list(range(1, ROUNDS + 1))
    verify_budgets(there)
    verify_ledgers(there)
    found = final_vector(there.service / RUNS_FOLDER / "exact")
    torch.testing.assert_close(found, undisturbed(there, tmp_path), rtol=1e-4, atol=1e-6)


def verify_budgets(there: Upgrading) -> None:
    """Every run was reserved once, and every attempt debited once at most."""
    planned = len(there.bodies(there.service, "round-aborted")) + len(RUNS) * ROUNDS
    for home in there.nodes.values():
        reserved = [body["run"] for body in there.bodies(home, "run-reserved")]
        assert sorted(reserved) == list(RUNS)
        debited = [body["plan_digest"] for body in there.bodies(home, "release-debited")]
        assert len(debited) == len(set(debited)) <= planned


def verify_ledgers(there: Upgrading) -> None:
    """All ledgers hold, by this version's reading and as its command says."""
    pins = {"coordinator": Pin(public_key=there.coordinator_key.hex(), kind="coordinator")}
    members = load_settings(there.service / RUNS_FOLDER / "exact").members
    pins |= {name: Pin(public_key=key, kind="node") for name, key in members.items()}
    path = there.folder / PINS_FILE
    path.write_bytes(pins_bytes(pins))
    words = ["privacy", "ledger", "verify", str(there.folder), "--pins", str(path)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    assert f"{1 + len(NAMES)} ledgers checked: all hold." in told.output


def undisturbed(there: Upgrading, folder: Path) -> Tensor:
    """What this version makes of the exact run alone, in one process."""
    ground = Ground(there.folder / BASE, there.folder / BASE.parent / "data")
    settings = load_settings(there.service / RUNS_FOLDER / "exact")
    changes = {**EXACT, "honest_survivors": len(NAMES) - 1, "releases": settings.step.releases}
    made = build(ground, folder / "alone", changes, rounds=ROUNDS, n_min=len(NAMES))
    return made.run().average_D
