"""A whole simulation: what it leaves behind, that it resumes, that it repeats."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from arion.cli import app
from arion.progress import Silent
from arion.run_file import RunFile, RunFileError
from arion.simulate import Simulation
from models.checkpoint import load_model, model_digest
from privacy.ledger.pins import load_pins
from privacy.ledger.verify import verify_tree

MakeRun = Callable[..., RunFile]


def simulate(run: RunFile, out: Path) -> dict[str, Any]:
    return Simulation(run, out, Silent()).run()


def arion(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from arion.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_run_leaves_model_ledgers_and_report(make_run: MakeRun, tmp_path: Path) -> None:
    report = simulate(make_run(), tmp_path / "run")
    out = tmp_path / "run"
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    assert "<svg" in (out / "report.html").read_text()
    assert model_digest(load_model(out / "model")[0]) == report["model"]["digest"]
    reports = verify_tree(out, load_pins(out / "pins.json"))
    assert [r.name for r in reports if r.is_ok] == [
        "coordinator", "bank", "court", "hospital", "software"
    ]  # fmt: skip
    assert all(r.noise == "seeded, not private" for r in reports if r.kind == "node")


def test_the_report_has_the_keys_that_programs_read(make_run: MakeRun, tmp_path: Path) -> None:
    report = simulate(make_run(data={"unseen": ["court"]}), tmp_path / "run")
    assert set(report["arms"]) == {"base", "federated_dp"}
    losses = report["arms"]["federated_dp"]["heldout_loss"]
    assert set(losses) == {"mean", "unseen", "bank", "hospital", "software", "court"}
    seen = [losses[name] for name in ("bank", "hospital", "software")]
    assert losses["mean"] == pytest.approx(sum(seen) / 3)
    assert losses["unseen"] == losses["court"]
    assert set(report["epsilon"]) == {"bank", "hospital", "software"}
    assert all(0 < value <= 8 for value in report["epsilon"].values())
    assert report["rounds"] == len(report["loss_per_round"]) == 3
    assert report["epsilon_per_round"] == sorted(report["epsilon_per_round"])
    assert report["seconds"] > 0


def test_the_same_seed_gives_the_same_model_and_another_does_not(
    make_run: MakeRun, tmp_path: Path
) -> None:
    digests = [
        simulate(make_run(seed=seed), tmp_path / str(index))["model"]["digest"]
        for index, seed in enumerate((5, 5, 6))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_noise_from_the_system_is_not_called_seeded(make_run: MakeRun, tmp_path: Path) -> None:
    report = simulate(make_run(seed=None), tmp_path / "run")
    assert report["noise"] == "csprng"


def test_without_privacy_no_epsilon_is_claimed(make_run: MakeRun, tmp_path: Path) -> None:
    report = simulate(make_run(privacy={"enabled": False}), tmp_path / "run")
    assert set(report["arms"]) == {"base", "federated"}
    assert set(report["epsilon"].values()) == {None}


def test_more_nodes_than_institutions_share_their_units(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(
        federation={"nodes": 5},
        training={"rounds": 1},
        data={"heldout": 0.25, "validation": 0.25, "evaluate_records": 4},
    )
    report = simulate(run, tmp_path / "run")
    names = [entry["name"] for entry in report["institutions"]]
    assert names == ["bank-1", "bank-2", "court", "hospital", "software"]


def test_institutions_as_units_are_charged_without_sampling(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(privacy={"unit": "institution"}, seed=None)
    report = simulate(run, tmp_path / "run")
    assert report["ledger"]["ok"]
    assert {(e["unit"], e["units"]) for e in report["institutions"]} == {("institution", 1)}
    mechanism = report["mechanism"]
    assert (mechanism["sampling_probability"], mechanism["expected_batch"]) == (1.0, 4.0)
    assert all(7.9 < value <= 8 for value in report["epsilon"].values())
    assert "what any one institution contributed" in (tmp_path / "run/report.html").read_text()
    with pytest.raises(RunFileError, match="a part of an institution is not the whole"):
        simulate(make_run(privacy={"unit": "institution"}, federation={"nodes": 5}), tmp_path / "b")


def test_drop_outs_are_survived_and_shown(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(federation={"drop": 0.3}, training={"rounds": 4}, seed=1)
    report = simulate(run, tmp_path / "run")
    applied = [a for a in report["attempts"] if not a["code"]]
    assert len(applied) == 4
    assert any(len(attempt["survivors"]) < 4 for attempt in report["attempts"])
    assert report["ledger"]["ok"]


@pytest.mark.slow
def test_kill_9_and_resume_give_the_undisturbed_model(
    run_values: dict[str, Any], make_run: MakeRun, tmp_path: Path
) -> None:
    expected = simulate(make_run(training={"rounds": 6}), tmp_path / "whole")["model"]["digest"]
    run_values["training"]["rounds"] = 6
    (tmp_path / "run.toml").write_text(tomli_w.dumps(run_values))
    command = [sys.executable, "-c", "from arion.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "simulate", str(tmp_path / "run.toml"), "--out", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    entries = tmp_path / "killed/coordinator/ledger/entries.jsonl"
    for _ in range(6000):
        if entries.exists() and entries.read_bytes().count(b"round-recorded") >= 2:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = arion("simulate", "--resume", "--out", "killed", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"]["digest"] == expected
    assert report["ledger"]["ok"]
    assert [a["round"] for a in report["attempts"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--out", "nowhere"], "Expected a run to resume"),
        (["--data", "missing"], "Expected a folder of institutions"),
        (["--rounds", "0"], "training.rounds"),
        (["--epsilon", "-1"], "privacy.epsilon"),
        (["--model", "huge"], "Expected a preset"),
        (["--nodes", "2"], "federation.nodes"),
        (["--unseen", "nobody"], "Expected unseen institutions among"),
        (["bad.toml"], "Expected a readable TOML file"),
        (["unknown.toml"], "trainingg"),
        (["--model", "gpt2"], "or a model folder on disk, got 'gpt2'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.toml").write_text("[training\n")
    (tmp_path / "unknown.toml").write_text("[trainingg]\nrounds = 1\n")
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in arguments else ["--out", "out"]
    done = CliRunner().invoke(app, ["simulate", *arguments, *out])
    assert done.exit_code == 2, done.stderr  # an exception that nobody catches would be 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in done.stderr


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Simulation) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "run", interrupted)
    done = CliRunner().invoke(app, ["simulate", "--out", str(tmp_path / "out")])
    assert done.exit_code == 130
    assert f"arion simulate --resume --out {tmp_path / 'out'}" in done.stderr


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    done = arion("simulate", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_mistake_can_be_corrected_in_the_same_folder(tmp_path: Path) -> None:
    for data in ("typo", "another"):
        done = arion("simulate", "--data", data, "--out", "out", cwd=tmp_path)
        assert done.returncode == 2
        assert f"{data}: Expected a folder of institutions" in done.stderr
    saved = json.loads((tmp_path / "out" / "run.json").read_text())
    assert saved["data"]["path"].endswith("another")
