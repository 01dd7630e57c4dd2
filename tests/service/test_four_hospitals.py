"""The example of four hospitals, as its reader would run it: processes, a kill, a drop-out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.folders import open_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_example_of_four_hospitals(tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = {"PYTHON": sys.executable, "OUT": str(out), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "four_hospitals.sh")],
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("1 ledger checked: all hold.") == 4
    assert "5 ledgers checked: all hold." in done.stdout
    lines = (out / "srv" / "ledger" / "entries.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    sums = [each["body"]["survivors"] for each in entries if each["kind"] == "round-recorded"]
    assert len(sums) == 8
    assert {len(survivors) for survivors in sums} == {3, 4}
    assert any("lakeside" not in survivors for survivors in sums)  # killed with -9
    assert "lakeside" in sums[-1]
    assert "university" not in sums[-1]  # left
    assert open_model(out / "model")[1].vocab_size > 0
