"""A federation that trains a model of another class, from the command line to the merged folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from arion.cli import app
from arion.federation import Homes
from arion.progress import Silent
from arion.run_federation import final_vector
from arion.run_file import RunFile
from arion.simulate import Simulation
from coordinator.settings import load_settings
from models.checkpoint import model_digest
from models.folders import open_model
from models.foreign.model import ForeignModel
from models.recipe import prepare
from models.vector import write_vector
from tests.foreign.families import write_family

MakeRun = Callable[..., RunFile]
TOKEN_BT = torch.randint(1, 60, (3, 11), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("gpt2", tmp_path_factory.mktemp("foreign") / "gpt2")


@pytest.fixture
def released(gpt2: Path, run_values: dict[str, Any], tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """(the run's folder, its report): two rounds with noise, without a word about LoRA."""
    del run_values["model"]
    run_values["training"]["rounds"] = 2
    run_values["privacy"] = {"epsilon": 0.5}  # much noise is accounted for fastest
    (tmp_path / "run.toml").write_text(tomli_w.dumps(run_values))
    out = tmp_path / "run"
    arguments = [str(tmp_path / "run.toml"), "--model", str(gpt2), "--out", str(out), "--json"]
    done = CliRunner().invoke(app, ["simulate", *arguments])
    assert done.exit_code == 0, done.output
    assert "GPT2LMHeadModel: adapters on 8 linear layers; 1 without" in done.stderr
    return out, json.loads(done.stdout)


def base_with_the_runs_adapters(out: Path, names: tuple[str, ...]) -> ForeignModel:
    homes = Homes(out, names)
    model, _ = open_model(out / "base")
    prepare(model, load_settings(homes.coordinator).recipe)
    write_vector(model, final_vector(homes.coordinator))
    assert isinstance(model, ForeignModel)
    return model


def test_a_federation_trains_another_class_and_releases_it_merged(
    gpt2: Path, released: tuple[Path, dict[str, Any]]
) -> None:
    out, report = released
    assert set(report["arms"]) == {"base", "federated_dp"}
    assert all(0 < epsilon <= 0.5 for epsilon in report["epsilon"].values())
    assert report["ledger"]["ok"]
    assert report["model"]["recipe"] == "lora"
    names = tuple(entry["name"] for entry in report["institutions"])
    adapted = base_with_the_runs_adapters(out, names)
    with torch.no_grad():
        network = transformers.AutoModelForCausalLM.from_pretrained(out / "model").eval()
        torch.testing.assert_close(
            network(input_ids=TOKEN_BT).logits, adapted(TOKEN_BT), rtol=0, atol=1e-5
        )
    assert model_digest(open_model(out / "model")[0]) == report["model"]["digest"]
    before, after = (load_file(f / "model.safetensors") for f in (gpt2, out / "model"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(adapted.source.tensors.values())
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / "model" / name).read_bytes() == (gpt2 / name).read_bytes()
    # No experts: no table of them.
    assert report["routing"] == {}
    assert "Which experts" not in (out / "report.html").read_text()


def test_full_training_of_another_class_is_refused_before_the_first_round(
    gpt2: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(model={"base": str(gpt2)}, training={"kind": "full"})
    with pytest.raises(ValueError, match=r"kind = 'lora' for a GPT2LMHeadModel, got 'full'"):
        Simulation(run, tmp_path / "run", Silent()).run()
    assert not (tmp_path / "run" / "nodes").exists()
