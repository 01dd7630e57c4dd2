"""`arion model expert` from end to end on a small model: train, add, compose, list, withdraw."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from arion import expert_training
from arion.cli import app
from arion.progress import LineProgress
from models.checkpoint import load_model, save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.expert_module import read_card
from models.tokenizer import Tokenizer

RUNNER = CliRunner()
CONFIG = ModelConfig(
    vocab_size=300, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=2,
    experts_per_token=2, expert_hidden_size=24, max_positions=256, initializer_range=0.1,
)  # fmt: skip
TEXTS = {
    "public": "It was the best of times, it was the worst of times. ",
    "court": "The appeal is dismissed with costs to the respondent. ",
    "clinic": "Patients with fever were given fluids and observed. ",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expert")
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text * 40)
    tokenizer = Tokenizer.train(list(TEXTS.values()), 300)
    model = Decoder(CONFIG, torch.Generator().manual_seed(0))
    save_model(model, tokenizer, folder / "base")
    for owner in ("court", "clinic"):
        assert train(folder, owner).exit_code == 0
    return folder


def expert(*arguments: object) -> Result:
    return RUNNER.invoke(app, ["model", "expert", *map(str, arguments)])


def train(place: Path, owner: str, *more: object) -> Result:
    return expert(
        "train", place / "base", owner, "--text", place / f"{owner}.txt",
        "--public", place / "public.txt", "--out", place / "modules", "--data", "Sentences.",
        "--licence", "CC0", "--steps", 5, "--not-private", "--json", *more,
    )  # fmt: skip


def module(place: Path, owner: str) -> Path:
    return next((place / "modules" / owner).glob("*.safetensors"))


def test_more_experts_than_the_base_has_are_refused(place: Path, tmp_path: Path) -> None:
    result = train(place, "court", "--experts", 3, "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "at most 2 experts per layer" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_stopped_training_goes_on_to_the_same_bytes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_training, "_SNAPSHOT_EVERY", 2)
    out, steps = ("--out", tmp_path), []

    def stop(self: LineProgress, step: int, note: str) -> None:
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LineProgress, "step", stop)
        assert train(place, "court", *out).exit_code != 0
        assert (tmp_path / "court.unfinished.safetensors").is_file()
        other = train(place, "court", *out, "--learning-rate", 1e-3)
        assert other.exit_code == 2
        assert "another run's" in other.stderr
        assert train(place, "court", *out).exit_code == 0
    assert steps == [1, 2, 3, 3, 4, 5]
    (again,) = (tmp_path / "court").glob("*.safetensors")
    assert again.read_bytes() == module(place, "court").read_bytes()
    assert not (tmp_path / "court.unfinished.safetensors").exists()


def test_training_writes_a_module_once(place: Path) -> None:
    path = module(place, "court")
    written = path.stat().st_mtime_ns
    result = train(place, "court")
    told = json.loads(result.stdout)
    assert told["module"] == str(path)
    assert (told["owner"], told["experts"], told["privacy"]) == ("court", 2, "not private")
    assert "steps" not in result.stderr  # nothing was trained
    assert path.stat().st_mtime_ns == written
    other = train(place, "court", "--seed", 1)
    assert other.exit_code == 2
    assert "another recipe" in other.stderr


def test_a_step_may_be_smaller(place: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path)
    assert train(place, "court", *out, "--batch", 2, "--length", 12).exit_code == 0
    (weights,) = (tmp_path / "court").glob("*.safetensors")
    training = read_card(weights).recipe["training"]
    assert (training["batch"], training["sequence_length"]) == (2, 12)
    assert weights.read_bytes() != module(place, "court").read_bytes()
    longer = train(place, "clinic", *out, "--length", 10_000)
    assert longer.exit_code == 2
    assert "10000" in longer.stderr


def test_without_a_word_on_privacy_nothing_is_trained(place: Path, tmp_path: Path) -> None:
    result = expert(
        "train", place / "base", "court", "--text", place / "court.txt", "--public",
        place / "public.txt", "--out", tmp_path / "m", "--data", "x", "--licence", "y",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "--not-private" in result.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("train", "{}/nowhere", "court"), "config.json"),
        (("train", "{}/base", "The Court"), "owner"),
    ],
)
def test_wrong_orders_are_one_line(
    arguments: tuple[str, ...], text: str, place: Path, tmp_path: Path
) -> None:
    result = expert(
        *(argument.format(place) for argument in arguments), "--text", place / "court.txt",
        "--public", place / "public.txt", "--out", tmp_path, "--data", "x", "--licence", "y",
        "--not-private",
    )  # fmt: skip
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_from_modules_to_a_model_and_back(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    made = expert("add", folder, module(place, "court"), "--base", place / "base", "--json")
    assert [each["owner"] for each in json.loads(made.stdout)["modules"]] == ["court"]
    expert("add", folder, module(place, "clinic"))
    listed = expert("list", folder).stdout
    assert "clinic" in listed
    assert "not private" in listed
    both = expert("compose", folder, "--out", tmp_path / "both", "--json")
    for each in (folder, tmp_path / "both"):
        shown = json.loads(RUNNER.invoke(app, ["model", "show", str(each), "--json"]).stdout)
        assert shown["expert_owners"] == {"public": 2, "clinic": 2, "court": 2}
        model, _ = load_model(tmp_path / "both")
        assert shown["parameters"] == sum(p.numel() for p in model.parameters())
    assert json.loads(both.stdout)["experts"] == 6
    shown = RUNNER.invoke(app, ["model", "show", str(tmp_path / "both"), "--json"])
    owners = {"public": 2, "clinic": 2, "court": 2}
    assert json.loads(shown.stdout)["expert_owners"] == owners
    one = expert("compose", folder, "--without", "court", "--out", tmp_path / "one", "--json",
                 "--experts-per-token", 2)  # fmt: skip
    assert json.loads(one.stdout)["owners"] == ["clinic"]
    none = expert("compose", folder, "--owner", "court", "--without", "court", "--out",
                  tmp_path / "none")  # fmt: skip
    assert (none.exit_code, "that --owner and --without leave" in none.stderr) == (2, True)
    assert not (tmp_path / "none").exists()
    gone = expert("withdraw", folder, "court", "--json")
    assert json.loads(gone.stdout) == {
        "withdrawn": "court",
        "module": module(place, "court").stem,
    }
    expert("compose", folder, "--out", tmp_path / "rest")
    token = torch.arange(60).view(2, 30)
    left, chosen = (load_model(tmp_path / name)[0](token) for name in ("rest", "one"))
    assert torch.equal(left, chosen)
    again = expert("withdraw", folder, "court")
    assert again.exit_code == 2
    assert again.stderr.count("\n") == 1
    refused = expert("compose", folder, "--without", "court", "--out", tmp_path / "x")
    assert refused.exit_code == 2
    assert expert("add", folder).exit_code == 2


def test_a_module_of_another_base_makes_no_folder(place: Path, tmp_path: Path) -> None:
    other = Decoder(CONFIG, torch.Generator().manual_seed(9))
    save_model(other, load_model(place / "base")[1], tmp_path / "other")
    new = tmp_path / "federation"
    result = expert("add", new, module(place, "court"), "--base", tmp_path / "other")
    assert result.exit_code == 2
    assert "of base" in result.stderr
    assert not new.exists()
