"""Every deliberate fault makes its named test fail: else nothing would notice it.

All named tests run once more in one process of their own, each with its fault planted
(`tests/faults/plants.py`, listed in `registry.py`). They pass without it elsewhere in this suite.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.planting import OUTCOMES
from tests.faults.registry import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
NOTICED = {"AssertionError", "Failed", "DID NOT RAISE"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    path = tmp_path_factory.mktemp("planted") / "outcomes.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.faults.planting"]
    command += ["-p", "no:cacheprovider", "--tb=no", *(fault.test for fault in FAULTS)]
    environment = {**os.environ, OUTCOMES: str(path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 1, done.stdout.decode()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["test"]: line for line in lines}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_named_test_fails(fault: Fault, outcomes: dict[str, dict[str, str]]) -> None:
    outcome = outcomes[fault.test]
    assert outcome["when"] == "call", f"{fault.test} could not run"
    assert outcome["error"], f"{fault.test} does not notice: {fault.name}"
    assert outcome["error"] in NOTICED, f"{fault.test} stops for another reason"


def test_every_fault_has_a_test_of_its_own() -> None:
    assert len({fault.test for fault in FAULTS}) == len(FAULTS)
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
