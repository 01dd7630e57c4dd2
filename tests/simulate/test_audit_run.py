"""The audit of a finished simulated run: its ledgers' claim, its own split, planted secrets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from arion.privacy_cli import privacy_app
from arion.progress import Silent
from arion.run_file import RunFile
from arion.simulate import RUN_FILE, Simulation
from arion.synthetic import SyntheticPaths
from client.config import load_node_config
from client.training import unit_rows
from client.training_records import training_records
from coordinator.settings import load_settings
from models.folders import open_model


def finished(make_run: Callable[..., RunFile], folder: Path, **sections: Any) -> Path:
    run = make_run(**sections)
    folder.mkdir()
    (folder / RUN_FILE).write_text(run.model_dump_json())
    Simulation(run, folder, Silent()).run()
    return folder


def audit(folder: Path, *more: object) -> tuple[int, str]:
    options = ("--canaries", 500, "--text-canaries", 60, "--tries", 12, "--seed", 3, *more)
    found = CliRunner().invoke(privacy_app, ["audit", str(folder), *map(str, options)])
    return found.exit_code, found.output


def read_whole(folder: Path, invented: SyntheticPaths) -> list[bool]:
    """Whether a sequence that a node trains on holds each secret; most are cut off here."""
    tokenizer, recipe = open_model(folder / "base")[1], load_settings(folder / "coordinator").recipe
    texts = []
    for home in sorted((folder / "nodes").iterdir()):
        for unit in unit_rows(training_records(load_node_config(home)), tokenizer, recipe).rows:
            assert len(unit) <= 2
            texts += [tokenizer.decode(row.ids) for row in unit]
    secrets = json.loads(invented.secrets_path.read_text())
    return [any(each["prompt"] + each["secret"] in text for text in texts) for each in secrets]


def test_a_run_is_audited_against_its_ledgers(
    make_run: Callable[..., RunFile], invented: SyntheticPaths, tmp_path: Path
) -> None:
    folder = finished(make_run, tmp_path / "run")
    code, out = audit(folder, "--secrets", invented.secrets_path, "--json")
    found, written = (
        json.loads(out[out.index("{") :]),
        json.loads((folder / "report.json").read_text()),
    )
    assert code == 0
    assert found["claim"]["epsilon"] == max(written["epsilon"].values())
    assert found["claim"]["source"] == "the nodes' ledgers"
    assert found["noise"] == written["noise"] == "seeded, not private"
    assert 0 <= found["bound"] < found["claim"]["epsilon"]
    *rows, pooled = found["membership"]
    assert {row["name"] for row in rows} == set(written["epsilon"])
    for count in ("members", "non_members"):
        assert pooled[count] == sum(row[count] for row in rows)
    for row, node in zip(rows, written["institutions"], strict=True):
        assert (row["name"], row["members"]) == (node["name"], node["units"])
        assert [attack["attack"] for attack in row["attacks"]] == ["loss", "rmia"]
    assert [each["was_trained_on"] for each in found["secrets"]] == read_whole(folder, invented)
    ledger = next(folder.glob("nodes/*/ledger/entries*"))
    ledger.write_bytes(ledger.read_bytes().replace(b'"epsilon', b'"epsilom', 1))
    code, out = audit(folder)
    assert code == 2
    assert "no claim can be read" in out or "damaged" in out


def test_a_run_without_noise_claims_nothing(
    make_run: Callable[..., RunFile], tmp_path: Path
) -> None:
    folder = finished(make_run, tmp_path / "run", privacy={"enabled": False})
    code, out = audit(folder)
    assert code == 0
    assert "Nothing is claimed" in out
    assert "claimed epsilon" not in out
    assert "noise: none. The run itself protects nobody." in out


@pytest.mark.parametrize("compare", [{"seeds": 1}, {}], ids=["comparison", "unfinished"])
def test_what_is_no_finished_run_is_refused(
    make_run: Callable[..., RunFile], tmp_path: Path, compare: dict[str, int]
) -> None:
    (tmp_path / RUN_FILE).write_text(make_run(compare=compare).model_dump_json())
    code, out = audit(tmp_path)
    assert code == 2
    assert "Expected a finished run" in out
